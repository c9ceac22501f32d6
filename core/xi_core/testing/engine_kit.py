"""`EngineKit`: the conformance suite of engines. A plugin's tests subclass it and get every check.

    from xi_core.testing.engine_kit import EngineKit

    class TestMyEngine(EngineKit):
        plugin = "xi_myengine.plugin"
        plan = plan_for("xi_myengine.engine:MyEngine", "model.bin", "myformat")

An engine whose model is too small for a check narrows its manifest, which is what the kit goes by; it never skips silently.
The checks are in `kit_*.py`, by topic. A test that shows that a request field is honoured is marked `@proves(FIELD)` (`proofs.py`).
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from xi_core.engine.info import EngineInfo
from xi_core.testing.harness import Harness
from xi_core.testing.kit_answers import AnswerChecks
from xi_core.testing.kit_limits import LimitChecks
from xi_core.testing.kit_prompts import PromptChecks
from xi_core.testing.kit_sampling import SamplingChecks
from xi_core.testing.kit_streams import StreamChecks
from xi_core.testing.kit_structured import StructuredChecks
from xi_core.testing.manifest_bounds import widened
from xi_core.testing.proofs import HOST, find_info


class EngineKit(AnswerChecks, PromptChecks, StreamChecks, SamplingChecks, StructuredChecks, LimitChecks):
    """Set `plugin` and `plan`; `prompts` are requests in greedy form that the model answers in more than four tokens."""

    @pytest.fixture(scope="class")
    @classmethod
    def info(cls) -> EngineInfo:
        return find_info(cls.plugin, cls.plan.engine.path)

    def test_plugin_imports_nothing_heavy(self) -> None:
        module = self.plan.engine.path.partition(":")[0]
        code = f"import sys, {self.plugin}; sys.exit('{module}' in sys.modules or 'torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

    def test_probe_says_yes_where_the_tests_run(self, info: EngineInfo) -> None:
        support = info.probe(HOST)
        assert support.ok, support.reason
        assert support.reason, "probe gives the version"

    def test_loaded_manifest_only_narrows(self, info: EngineInfo, harness: Harness) -> None:
        loaded = harness.model.manifest
        assert loaded.endpoints, "the model serves something"
        assert widened(loaded, info.manifest) == []
