"""vLLM itself, with xi-tiny on the CPU: the parity suite, and a server that launches it. `make test-engine-vllm` runs this, in minutes."""

import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from xi_core.errors import EngineError, UnknownOption, XiError
from xi_core.importing import import_path
from xi_core.serving.parser import CallForm
from xi_core.serving.request import COMPLETIONS
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.parity_kit import COMPLETION_PROMPTS, ParityKit
from xi_core.testing.proofs import ClaimsKit
from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until
from xi_core.wire.plan import LoraModule
from xi_plugins.engines.vllm.plugin import CALL_FORMS

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-engine-vllm` builds an environment for it", allow_module_level=True)

import torch
from safetensors.torch import save_file

pytestmark = [pytest.mark.engine("vllm"), pytest.mark.slow, pytest.mark.timeout(600)]

XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
ENGINE = "xi_plugins.engines.vllm.engine:VllmEngine"
OPTIONS = {"dtype": "float32", "enforce_eager": True}
TOOLS = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}


@pytest.fixture(scope="module", autouse=True)
def little_cache() -> Iterator[None]:
    """And one thread: the model is tiny, and threads that wait for each other cost more than they compute, most of all on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("OMP_NUM_THREADS", "1")):
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def shared() -> Iterator[Harness]:
    with Harness(TestVllm.plan) as harness:
        yield harness


class TestVllm(ParityKit):
    plugin = "xi_plugins.engines.vllm.plugin"
    plan = plan_for(ENGINE, str(XI_TINY), "pytorch", **OPTIONS, **TOOLS)
    chunked: ClassVar = {"max_num_batched_tokens": 32, "max_num_seqs": 8}

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, shared: Harness) -> Harness:
        return shared


class TestVllmCompletions(ParityKit):
    plugin = TestVllm.plugin
    plan = TestVllm.plan
    route = COMPLETIONS
    prompts = COMPLETION_PROMPTS
    chunked = TestVllm.chunked
    runs = 10

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, shared: Harness) -> Harness:
        return shared

    def test_close_ends_its_threads(self) -> None:
        """Chat's tests have looked at it, and it costs a start."""


class TestVllmClaims(ClaimsKit):
    plugin = TestVllm.plugin
    engine = ENGINE


# ---- its parsers of tool calls ----------------------------------------------------------------------


class Vocabulary:
    """A tokenizer, as far as parsers look at it."""

    def get_vocab(self) -> dict[str, int]:
        return {"<|python_tag|>": 1, "<tool_call>": 2, "</tool_call>": 3}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its imports
@pytest.mark.parametrize("name", CALL_FORMS)
def test_its_parsers_read_calls_in_the_form_that_they_are_forced_into(
    name: str, calls: list[tuple[str, dict[str, Any]]], write: Callable[[CallForm], str]
) -> None:
    from vllm.tool_parsers import ToolParserManager

    parser: Any = ToolParserManager.get_tool_parser(name)(Vocabulary(), [])  # type: ignore[arg-type]
    text, found = write(CALL_FORMS[name]), dict[int, list[str]]()
    for end in range(1, len(text) + 1):
        delta = parser.extract_tool_calls_streaming(text[: end - 1], text[:end], text[end - 1 : end], [], [], [], None)
        assert not delta or not (delta.content or "").strip()
        for call in delta.tool_calls if delta else ():
            said = found.setdefault(call.index, ["", ""])
            said[0] += call.function.name or ""
            said[1] += call.function.arguments or ""
    assert [(name, json.loads(arguments or "{}")) for name, arguments in found.values()] == calls


# ---- a base model with adapters ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """xi-tiny without its chat template, with two adapters."""
    folder = tmp_path_factory.mktemp("base")
    model = folder / "model"
    shutil.copytree(XI_TINY, model)
    words = json.loads((model / "tokenizer_config.json").read_text())
    del words["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(words))
    plan = plan_for(ENGINE, str(model), "pytorch", **OPTIONS)
    plan.lora_modules = [LoraModule(name=name, path=str(adapter(folder / name, rank))) for name, rank in (("pirate", 4), ("poet", 12))]
    with Harness(plan) as harness:
        yield harness


def adapter(folder: Path, rank: int) -> Path:
    """A LoRA adapter in peft's form, random and strong, for the attention of xi-tiny."""
    folder.mkdir()
    torch.manual_seed(rank)
    tensors = {}
    for layer in range(4):
        for name, size in (("q_proj", 128), ("v_proj", 64)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(rank, 128) / 10
            tensors[f"{place}.lora_B.weight"] = torch.randn(size, rank) / 10
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8 * rank, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def raw(prompt: str) -> str:
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def test_base_model_completes_and_does_not_chat(base: Harness, expected: dict[str, Any]) -> None:
    for fact in expected["chat"][:5]:
        assert base.complete(raw(fact["prompt"]), temperature=0, max_tokens=64).text == fact["answer"]
    refused = base.chat("Hello!")
    assert refused.status == 400
    assert refused.error is not None
    assert refused.error["param"] == "messages"
    assert "no chat template" in refused.error["message"]


def test_adapters_answer_otherwise_and_repeat(base: Harness, expected: dict[str, Any]) -> None:
    prompts = [raw(fact["prompt"]) for fact in expected["chat"][:4]]
    models = (base.plan.uid, "pirate", "poet")
    calls = {
        (model, prompt): base.submit(COMPLETIONS, {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 24})
        for prompt in prompts
        for model in models
    }
    answers = {key: call.answer() for key, call in calls.items()}
    assert all(answer.status == 200 for answer in answers.values())
    assert {answer.body["model"] for (model, _), answer in answers.items() if model == "poet"} == {"poet"}
    texts = {model: [answers[model, prompt].text for prompt in prompts] for model in models}
    assert texts[base.plan.uid] == [fact["answer"] for fact in expected["chat"][:4]]
    assert len({tuple(found) for found in texts.values()}) == 3, "each of the three answers in its own way"
    again = base.submit(COMPLETIONS, {"model": "pirate", "prompt": prompts[0], "temperature": 0, "max_tokens": 24}).answer()
    assert again.text == texts["pirate"][0]


def test_adapter_streams(base: Harness) -> None:
    body = {"model": "poet", "prompt": raw("Hello!"), "temperature": 0, "max_tokens": 12}
    whole = base.submit(COMPLETIONS, body).answer()
    streamed = base.submit(COMPLETIONS, {**body, "stream": True}).answer()
    assert streamed.text == whole.text
    assert {event["model"] for event in streamed.events} == {"poet"}


# ---- spread over two processes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "env"),
    [
        ({"tensor_parallel_size": 2, "enforce_eager": True}, {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}),
        ({"pipeline_parallel_size": 2}, {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}),
    ],
    ids=["tensor", "pipeline"],
)
def test_two_ranks_on_one_machine(
    options: dict[str, Any], env: dict[str, str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    plan = plan_for(ENGINE, str(XI_TINY), "pytorch", dtype="float32", distributed_executor_backend="mp", **options)
    with Harness(plan) as harness:
        server = psutil.Process(harness.engine._child.pid)  # type: ignore[attr-defined]
        workers = [process for process in server.children(recursive=True) if "Worker" in " ".join(process.cmdline())]
        assert len(workers) == 2
        for fact in expected["chat"][:5]:
            assert harness.chat(fact["prompt"], temperature=0).text == fact["answer"]
    psutil.wait_procs(workers, timeout=10.0)
    assert not [process for process in workers if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_killed_server_leaves_none_of_its_processes() -> None:
    """Some of them overwrite their environment by a name for `ps`, and outlive their parent."""
    with Harness(plan_for(ENGINE, str(XI_TINY), "pytorch", **OPTIONS)) as harness:
        server = psutil.Process(harness.engine._child.pid)  # type: ignore[attr-defined]
        below = server.children(recursive=True)
        assert any("EngineCore" in " ".join(process.cmdline()) for process in below)
        server.kill()
        gone, left = psutil.wait_procs(below, timeout=10.0)
        assert (len(gone), left) == (len(below), [])


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
    assert "context_length (max_model_len) 99999 is more than the 1024" in fails_to_load(max_model_len=99999).message


def test_sleep_mode_is_refused_in_vllm_s_words() -> None:
    assert "Sleep mode is not supported" in fails_to_load(enable_sleep_mode=True).message


def test_ray_is_refused_on_a_cpu_in_vllm_s_words() -> None:
    assert "ray" in fails_to_load(distributed_executor_backend="ray", tensor_parallel_size=2).message.lower()


# ---- under xi ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server"), env={"VLLM_CPU_KVCACHE_SPACE": "1"}) as running:
        done = running.xi(
            "launch", str(XI_TINY), "-u", "tiny", "-en", "vllm", "--dtype", "float32", "--enforce_eager", "--max-num-seqs=8", timeout=300
        )
        assert done.returncode == 0, done.stderr + running.log.read_text()
        yield running
    wait_until(lambda: not any(_serves(one) for one in psutil.process_iter()), 10.0, "vLLM to be gone")  # the keeper is ending it


def _serves(process: psutil.Process) -> bool:
    """Whether a process is the vLLM server of the model that `server` has launched, and not the one that the kit's tests share."""
    try:
        words = process.cmdline()
        return process.ppid() != 0 and any("vllm.entrypoints" in word for word in words) and "--served-model-name=tiny" in words
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


def test_metrics_of_vllm_under_our_names(server: RunningServer) -> None:
    labels = 'model="tiny",replica='
    assert _answers(server)

    def value(name: str) -> float:
        with urllib.request.urlopen(f"{server.endpoint}/metrics") as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith(f"xi_engine_{name}{{{labels}")]
        return float(lines[0].rpartition(" ")[2]) if lines else -1.0

    wait_until(lambda: value("generated_tokens_total") > 0, 20.0, "a look at the server's metrics")
    assert value("prompt_tokens_total") > 0
    assert value("prefix_cache_queries_total") > 0
    assert 0 <= value("cache_usage_ratio") <= 1
    assert value("waiting") == 0


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
