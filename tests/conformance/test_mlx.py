"""The parity suite on the MLX engine, with xi-tiny. `make test-engine-mlx` runs it where mlx is installed."""

from pathlib import Path
from typing import ClassVar

import pytest
from msgspec.structs import replace

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.harness import plan_for
from xi_core.testing.parity_kit import COMPLETION_PROMPTS, ParityKit
from xi_core.testing.proofs import ClaimsKit

pytest.importorskip("mlx_lm", reason="the mlx engine's library is not installed: make test-engine-mlx")
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
ENGINE = "xi_plugins.engines.mlx.engine:MlxEngine"
HERMES = {"tool": "xi_plugins.parsers.hermes:HermesParser"}


class TestMlx(ParityKit):
    plugin = "xi_plugins.engines.mlx.plugin"
    plan = replace(plan_for(ENGINE, str(XI_TINY), "pytorch"), parsers=HERMES)
    chunked: ClassVar = {"prefill_chunk": 32}
    logprob_tolerance = 0.1


class TestMlxCompletions(TestMlx):
    route = COMPLETIONS
    prompts = COMPLETION_PROMPTS
    runs = 10


class TestMlxClaims(ClaimsKit):
    plugin = TestMlx.plugin
    engine = ENGINE
