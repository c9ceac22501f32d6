"""The parity suite on the transformers engine, with xi-tiny."""

from pathlib import Path
from typing import ClassVar

import pytest
from msgspec.structs import replace

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.harness import plan_for
from xi_core.testing.parity_kit import COMPLETION_PROMPTS, ParityKit
from xi_core.testing.proofs import ClaimsKit

pytest.importorskip("torch", reason="the transformers engine's library is not installed")
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
HERMES = {"tool": "xi_plugins.parsers.hermes:HermesParser"}


class TestTransformers(ParityKit):
    plugin = "xi_plugins.engines.transformers.plugin"
    plan = replace(plan_for("xi_plugins.engines.transformers.engine:TransformersEngine", str(XI_TINY), "pytorch"), parsers=HERMES)
    chunked: ClassVar = {"prefill_chunk": 32}


class TestTransformersCompletions(TestTransformers):
    route = COMPLETIONS
    prompts = COMPLETION_PROMPTS
    runs = 10


class TestTransformersClaims(ClaimsKit):
    plugin = TestTransformers.plugin
    engine = TestTransformers.plan.engine.path
