"""The kit decides whether the fakes behave as real engines do."""

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import plan_for


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
