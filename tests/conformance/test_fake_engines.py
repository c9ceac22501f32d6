"""The kit decides whether the fakes behave as real engines do."""

from typing import ClassVar

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import plan_for
from xi_core.testing.pooling_kit import EmbeddingKit, RerankKit
from xi_core.testing.proofs import ClaimsKit

PLUGIN = "xi_core.testing.fake_plugin"
NO_MODEL = "the fakes have no probabilities to narrow or to lower"
NO_CALLS = "the fakes' text is fixed and holds no calls"
UNPROVEN = {
    **dict.fromkeys(("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), NO_MODEL),
    **dict.fromkeys(("tools", "tool_choice", "parallel_tool_calls"), NO_CALLS),
}


class TestCountingEngine(EngineKit):
    plugin = PLUGIN
    plan = plan_for("xi_core.testing.fakes:CountingEngine", "nowhere", "fake")


class TestCountingEngineCompletions(TestCountingEngine):
    route = COMPLETIONS


class TestScriptedEngine(EngineKit):
    plugin = PLUGIN
    plan = plan_for("xi_core.testing.fakes:ScriptedEngine", "nowhere", "fake")


class TestScriptedEngineCompletions(TestScriptedEngine):
    route = COMPLETIONS


class TestStubServer(EngineKit):
    """An engine over a server that runs as a child process."""

    plugin = PLUGIN
    plan = plan_for("xi_core.testing.stub_engine:StubServerEngine", "nowhere", "fake", pace=0.001)


class TestStubServerCompletions(TestStubServer):
    route = COMPLETIONS


class TestLetterEmbeddings(EmbeddingKit):
    plugin = PLUGIN
    plan = plan_for("xi_core.testing.pooling_fakes:LetterEngine", "nowhere", "fake")


class TestLetterRerank(RerankKit):
    plugin = PLUGIN
    plan = plan_for("xi_core.testing.pooling_fakes:LetterEngine", "nowhere", "fake")


class TestCountingClaims(ClaimsKit):
    plugin = PLUGIN
    engine = TestCountingEngine.plan.engine.path
    unproven: ClassVar = UNPROVEN


class TestScriptedClaims(ClaimsKit):
    plugin = PLUGIN
    engine = TestScriptedEngine.plan.engine.path
    unproven: ClassVar = UNPROVEN


class TestStubClaims(ClaimsKit):
    plugin = PLUGIN
    engine = TestStubServer.plan.engine.path
    unproven: ClassVar = UNPROVEN


class TestLetterClaims(ClaimsKit):
    plugin = PLUGIN
    engine = TestLetterEmbeddings.plan.engine.path
    routes = (TestLetterEmbeddings.route, TestLetterRerank.route)
