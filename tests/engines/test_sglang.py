"""SGLang itself, with xi-tiny on the CPU: the conformance kit, and what its own parser says. `make test-engine-sglang` runs this, in minutes.

The environment has no CUDA: `tests/engines/sglang_environment.sh` tells what stands in for its kernels, which a CPU does not call.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xi_core.engine.child_options import flags
from xi_core.errors import EngineError, UnknownOption, XiError
from xi_core.importing import import_path
from xi_core.serving.parser import CallForm
from xi_core.serving.request import COMPLETIONS
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.parity_kit import COMPLETION_PROMPTS, ParityKit
from xi_core.testing.pooling_kit import EmbeddingKit
from xi_core.testing.proofs import ClaimsKit
from xi_core.wire.plan import RankAddress, Rendezvous
from xi_plugins.engines.sglang.command import options_of
from xi_plugins.engines.sglang.plugin import CALL_FORMS, xi_engines
from xi_plugins.engines.sglang.start import words_for

if find_spec("sglang") is None:
    pytest.skip("SGLang is not installed; `make test-engine-sglang` builds an environment for it", allow_module_level=True)

pytestmark = [pytest.mark.engine("sglang"), pytest.mark.slow, pytest.mark.timeout(600)]

XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
ENGINE = "xi_plugins.engines.sglang.engine:SglangEngine"
NUMBERS = json.loads((Path(__file__).parents[1] / "data/xi_tiny_numbers.json").read_text("utf-8"))
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_total_tokens": 65536}
TOOLS: dict[str, Any] = {"tool_call_parser": "qwen25"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The model is tiny: threads that wait for each other cost more than they compute, most of all on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def shared() -> Iterator[Harness]:
    with Harness(TestSglang.plan) as harness:
        yield harness


class TestSglang(ParityKit):
    plugin = "xi_plugins.engines.sglang.plugin"
    plan = plan_for(ENGINE, str(XI_TINY), "pytorch", **OPTIONS, **TOOLS)
    chunked: ClassVar[dict[str, Any]] = {"chunked_prefill_size": 32, "enable_mixed_chunk": True}

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

    def test_a_top_k_beyond_its_integers_does_not_kill_the_server(self, harness: Harness) -> None:
        assert harness.complete([1, 2, 3], max_tokens=2, top_k=3_000_000_000).status == 200
        assert harness.complete([1, 2, 3], max_tokens=2).status == 200


class TestSglangEmbeddings(EmbeddingKit):
    plugin = TestSglang.plugin
    plan = plan_for("xi_plugins.engines.sglang.pooling:SglangEmbedder", str(XI_TINY), "pytorch", **OPTIONS)
    reference = NUMBERS["last_vectors"]


class TestSglangClaims(ClaimsKit):
    plugin = TestSglang.plugin
    engine = ENGINE
    routes = (TestSglang.route, TestSglangCompletions.route, TestSglangEmbeddings.route)
    unproven: ClassVar[dict[str, str]] = {"seed": "SGLang's deterministic inference has no attention backend for CPUs"}


# ---- its parsers of tool calls ----------------------------------------------------------------------


READ = """
import json, os, sys
from sglang.srt.entrypoints.openai.protocol import Function, Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser

name, text = json.load(sys.stdin)
parser = FunctionCallParser([Tool(function=Function(name=one)) for one in ("look", "count")], name)
content, pieces = "", []
for said, calls in [*map(parser.parse_stream_chunk, text), parser.parse_stream_end()]:
    content += said
    pieces += [(call.tool_index, call.name, call.parameters) for call in calls]
print(json.dumps((content, pieces)), flush=True)
os._exit(0)  # its libraries crash where the interpreter ends
"""


@pytest.mark.parametrize("name", CALL_FORMS)
def test_its_parsers_read_calls_in_the_form_that_they_are_forced_into(
    name: str, calls: list[tuple[str, dict[str, Any]]], write: Callable[[CallForm], str]
) -> None:
    asked = json.dumps((name, write(CALL_FORMS[name])))
    done = subprocess.run([sys.executable, "-c", READ], input=asked, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    content, pieces = json.loads(done.stdout.splitlines()[-1])
    assert not content.strip()
    found = dict[int, list[str]]()
    for index, function, arguments in pieces:
        said = found.setdefault(index, ["", ""])
        said[0] += function or ""
        said[1] += arguments
    assert [(function, json.loads(arguments)) for function, arguments in found.values()] == calls


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


# ---- over several workers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sizes"), [({}, (2, 1, 1)), ({"pp": 2}, (1, 2, 1)), ({"dp": 2, "enable_dp_attention": True}, (2, 1, 2))]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_its_own_parser_takes_the_ranks_of_a_shared_model(options: dict[str, Any], sizes: tuple[int, ...], rank: int) -> None:
    from sglang.srt.server_args import PortArgs, ServerArgs, prepare_server_args

    plan = plan_for(ENGINE, str(XI_TINY), "pytorch", **next(iter(xi_engines())).check_options(options))
    world = tuple(
        RankAddress(rank=number, worker=f"w{number}", host="127.0.0.1", ports=tuple(range(20000 + 8 * number, 20008 + 8 * number)))
        for number in (0, 1)
    )
    plan.rendezvous = Rendezvous(rank=rank, world=world)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    found = prepare_server_args(words_for(parser, flags(options_of(plan, port=4711), negated=True)))
    assert (found.nnodes, found.node_rank, found.dist_init_addr) == (2, rank, "127.0.0.1:20000")
    assert (found.tp_size, found.pp_size, found.dp_size) == sizes
    assert PortArgs.init_new(found).nccl_port == world[rank].ports[-1]
