"""SGLang itself, with xi-tiny on the CPU: the conformance kit, and what its own parser says. `make test-engine-sglang` runs this, in minutes.

The environment has no CUDA: `tests/engines/sglang_environment.sh` tells what stands in for its kernels, which a CPU does not call.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xi_core.errors import EngineError, UnknownOption, XiError
from xi_core.importing import import_path
from xi_core.serving.request import COMPLETIONS
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.parity_kit import COMPLETION_PROMPTS, ParityKit
from xi_core.testing.pooling_kit import EmbeddingKit

if find_spec("sglang") is None:
    pytest.skip("SGLang is not installed; `make test-engine-sglang` builds an environment for it", allow_module_level=True)

pytestmark = [pytest.mark.engine("sglang"), pytest.mark.slow, pytest.mark.timeout(600)]

XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
ENGINE = "xi_plugins.engines.sglang.engine:SglangEngine"
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_total_tokens": 65536}
TOOLS: dict[str, Any] = {"tool_call_parser": "qwen25"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Harness]:
    with Harness(TestSglang.plan) as harness:
        yield harness


class TestSglang(ParityKit):
    plugin = "xi_plugins.engines.sglang.plugin"
    plan = plan_for(ENGINE, str(XI_TINY), "pytorch", **OPTIONS, **TOOLS)
    chunked: ClassVar[dict[str, Any]] = {"chunked_prefill_size": 32}

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, shared: Harness) -> Harness:
        return shared


class TestSglangCompletions(ParityKit):
    plugin = TestSglang.plugin
    plan = TestSglang.plan
    chunked = TestSglang.chunked
    route = COMPLETIONS
    prompts = COMPLETION_PROMPTS

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, shared: Harness) -> Harness:
        return shared

    def test_close_ends_its_threads(self) -> None:
        """Chat's tests have looked at it, and it costs a start."""

    def test_ids_that_no_token_has_do_not_kill_the_server(self, harness: Harness) -> None:
        wrong = harness.complete([1, 10**6])
        assert wrong.status == 400
        assert wrong.error is not None
        assert wrong.error["param"] == "prompt"
        assert harness.complete([1, 2, 3], max_tokens=2).status == 200


class TestSglangEmbeddings(EmbeddingKit):
    plugin = TestSglang.plugin
    plan = plan_for("xi_plugins.engines.sglang.pooling:SglangEmbedder", str(XI_TINY), "pytorch", **OPTIONS)


# ---- starts that fail -------------------------------------------------------------------------------


def fails_to_load(**options: Any) -> XiError:
    engine = import_path(ENGINE)()
    with pytest.raises((EngineError, UnknownOption)) as caught:
        engine.load(plan_for(ENGINE, str(XI_TINY), "pytorch", **{**OPTIONS, **options}), lambda *_: None)
    return caught.value


def test_unknown_option_names_near_ones() -> None:
    error = fails_to_load(mem_fraction_statik=0.5)
    assert isinstance(error, UnknownOption)
    assert error.param == "mem_fraction_statik"
    assert "did you mean --mem-fraction-static" in error.message


def test_beginning_of_a_name_is_no_option() -> None:
    error = fails_to_load(mem_fraction=0.5)
    assert isinstance(error, UnknownOption)
    assert error.param == "mem_fraction"
    assert "--mem-fraction-static" in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [("chunked_prefill_size", "many"), ("mem_fraction_static", "half"), ("dtype", "float3"), ("tool_call_parser", "hermess")],
)
def test_value_that_can_not_be(name: str, value: str) -> None:
    error = fails_to_load(**{name: value})
    assert isinstance(error, UnknownOption)
    assert error.param == name
    assert value in error.message
