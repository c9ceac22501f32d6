"""The kit decides whether the fakes behave as real engines do."""

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import plan_for
from xi_core.testing.pooling_kit import EmbeddingKit, RerankKit


class TestCountingEngine(EngineKit):
    plugin = "xi_core.testing.fake_plugin"
    plan = plan_for("xi_core.testing.fakes:CountingEngine", "nowhere", "fake")


class TestCountingEngineCompletions(EngineKit):
    plugin = "xi_core.testing.fake_plugin"
    plan = plan_for("xi_core.testing.fakes:CountingEngine", "nowhere", "fake")
    route = COMPLETIONS


class TestScriptedEngine(EngineKit):
    plugin = "xi_core.testing.fake_plugin"
    plan = plan_for("xi_core.testing.fakes:ScriptedEngine", "nowhere", "fake")


class TestStubServer(EngineKit):
    """An engine over a server that runs as a child process."""

    plugin = "xi_core.testing.fake_plugin"
    plan = plan_for("xi_core.testing.stub_engine:StubServerEngine", "nowhere", "fake", pace=0.001)


class TestStubServerCompletions(EngineKit):
    plugin = "xi_core.testing.fake_plugin"
    plan = plan_for("xi_core.testing.stub_engine:StubServerEngine", "nowhere", "fake", pace=0.001)
    route = COMPLETIONS


class TestLetterEmbeddings(EmbeddingKit):
    plugin = "xi_core.testing.fake_plugin"
    plan = plan_for("xi_core.testing.pooling_fakes:LetterEngine", "nowhere", "fake")


class TestLetterRerank(RerankKit):
    plugin = "xi_core.testing.fake_plugin"
    plan = plan_for("xi_core.testing.pooling_fakes:LetterEngine", "nowhere", "fake")
