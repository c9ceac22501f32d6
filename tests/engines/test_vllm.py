"""vLLM itself, with xi-tiny on the CPU: the conformance kit, and a server that launches it. `make test-engine-vllm` runs this, in minutes."""

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from xi_core.errors import EngineError, UnknownOption, XiError
from xi_core.importing import import_path
from xi_core.serving.request import COMPLETIONS
from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-engine-vllm` builds an environment for it", allow_module_level=True)

pytestmark = [pytest.mark.engine("vllm"), pytest.mark.slow, pytest.mark.timeout(600)]

XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
ENGINE = "xi_plugins.engines.vllm.engine:VllmEngine"
OPTIONS = {"dtype": "float32", "enforce_eager": True}
TOOLS = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}


@pytest.fixture(scope="module", autouse=True)
def little_cache() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


@pytest.fixture(scope="module")
def shared() -> Iterator[Harness]:
    with Harness(TestVllm.plan) as harness:
        yield harness


class TestVllm(EngineKit):
    plugin = "xi_plugins.engines.vllm.plugin"
    plan = plan_for(ENGINE, str(XI_TINY), "pytorch", **OPTIONS, **TOOLS)

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, shared: Harness) -> Harness:
        return shared

    def test_expected_answers(self, harness: Harness, expected: dict[str, Any]) -> None:
        calls = [(fact, harness.start_chat(fact["prompt"], temperature=0)) for fact in expected["chat"]]
        for fact, call in calls:
            answer = call.answer()
            assert answer.text == fact["answer"]
            assert answer.usage["prompt_tokens"] == len(fact["prompt_ids"])
            assert answer.usage["completion_tokens"] == len(fact["answer_ids"])


class TestVllmCompletions(EngineKit):
    plugin = TestVllm.plugin
    plan = TestVllm.plan
    route = COMPLETIONS
    prompts = tuple(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in EngineKit.prompts)

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, shared: Harness) -> Harness:
        return shared

    def test_close_ends_its_threads(self) -> None:
        """Chat's tests have looked at it, and it costs a start."""


# ---- starts that fail -------------------------------------------------------------------------------


def fails_to_load(**options: Any) -> EngineError | UnknownOption:
    engine = import_path(ENGINE)()
    with pytest.raises((EngineError, UnknownOption)) as caught:
        engine.load(plan_for(ENGINE, str(XI_TINY), "pytorch", **{**OPTIONS, **options}), lambda *_: None)
    return caught.value


def test_unknown_option_names_near_ones() -> None:
    error = fails_to_load(gpu_memory_utilisation=0.5)
    assert isinstance(error, UnknownOption)
    assert error.param == "gpu_memory_utilisation"
    assert "did you mean --gpu-memory-utilization" in error.message


def test_value_that_can_not_be() -> None:
    error = fails_to_load(dtype="float3")
    assert isinstance(error, UnknownOption)
    assert error.param == "dtype"


def test_too_long_a_context_is_said() -> None:
    assert "max_model_len" in fails_to_load(max_model_len=99999).message


# ---- under xi ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server"), env={"VLLM_CPU_KVCACHE_SPACE": "1"}) as running:
        done = running.xi(
            "launch", str(XI_TINY), "-u", "tiny", "-en", "vllm", "--dtype", "float32", "--enforce_eager", "--max-num-seqs=8", timeout=300
        )
        assert done.returncode == 0, done.stderr + running.log.read_text()
        yield running
    assert not [one for one in psutil.process_iter() if _serves(one)]


def _serves(process: psutil.Process) -> bool:
    """Whether a process is a vLLM server of ours."""
    try:
        return (
            process.ppid() != 0 and any("vllm.entrypoints" in word for word in process.cmdline()) and str(XI_TINY) in str(process.cmdline())
        )
    except psutil.Error:
        return False


def _ask(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _answers(server: RunningServer) -> bool:
    try:
        return bool(server.client.chat("tiny", _ask("Hello!"), max_tokens=4).choices)
    except XiError:
        return False


def test_expected_answers_through_the_gateway(server: RunningServer, expected: dict[str, Any]) -> None:
    for fact in expected["chat"][:30]:
        whole = server.client.chat("tiny", _ask(fact["prompt"]), temperature=0)
        assert whole.choices[0].message.content == fact["answer"]
        streamed = server.client.chat("tiny", _ask(fact["prompt"]), temperature=0, stream=True)
        assert "".join(delta.text for delta in streamed) == fact["answer"]


def test_leaving_frees_the_slots(server: RunningServer) -> None:
    for _ in range(20):
        stream = server.client.chat("tiny", _ask("Tell me a story."), stream=True, ignore_eos=True, max_tokens=900)
        next(stream)
        stream.close()
    assert _answers(server)


def test_killed_child_is_replaced(server: RunningServer) -> None:
    before = next(one.pid for one in psutil.process_iter() if _serves(one))
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: any(_serves(one) and one.pid != before for one in psutil.process_iter()), 60.0, "another vLLM")
    wait_until(lambda: _answers(server), 120.0, "an answer of it")
