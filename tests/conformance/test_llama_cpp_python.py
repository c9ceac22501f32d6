"""The parity suite on the llama-cpp-python engine, with xi-tiny. `make test-engine-llama-cpp-python` runs it where the library is installed."""

from pathlib import Path
from typing import ClassVar

import pytest
from msgspec.structs import replace

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.harness import plan_for
from xi_core.testing.parity_kit import COMPLETION_PROMPTS, ParityKit
from xi_core.testing.proofs import ClaimsKit

pytest.importorskip("llama_cpp", reason="the llama-cpp-python engine's library is not installed: make test-engine-llama-cpp-python")
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/xi-tiny-f16.gguf"
ENGINE = "xi_plugins.engines.llama_cpp.llama_cpp_python.engine:LlamaCppPythonEngine"
HERMES = {"tool": "xi_plugins.parsers.hermes:HermesParser"}


class TestLlamaCppPython(ParityKit):
    plugin = "xi_plugins.engines.llama_cpp.plugin"
    plan = replace(plan_for(ENGINE, str(XI_TINY), "ggufv2"), parsers=HERMES)
    chunked: ClassVar = {"batch_size": 32}
    logprob_tolerance = 0.1


class TestLlamaCppPythonCompletions(TestLlamaCppPython):
    route = COMPLETIONS
    prompts = COMPLETION_PROMPTS
    runs = 10


class TestLlamaCppPythonClaims(ClaimsKit):
    plugin = TestLlamaCppPython.plugin
    engine = ENGINE
