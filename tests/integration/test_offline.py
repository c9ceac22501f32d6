"""`LLM` on both engines: right answers, typed errors, and nothing left when its program ends, however it ends."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from xi_core import LLM, SamplingParams
from xi_core import errors as e
from xi_core.config import settings
from xi_core.testing.waiting import wait_until

GREEDY = SamplingParams(temperature=0, max_tokens=256)


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("XI_", "XINFERENCE_")):
                patch.delenv(name)
        patch.setenv("XI_HOME", str(tmp_path_factory.mktemp("offline")))
        settings.cache_clear()
        yield Path(os.environ["XI_HOME"])
        settings.cache_clear()


def processes(home: Path) -> list[psutil.Process]:
    """Whatever runs with this home, but not this process."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("XI_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module", params=["llama.cpp", "transformers"])
def llm(home: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM("xi-tiny", engine=request.param) as llm:
        yield llm
    assert not processes(home)
    assert not list((home / "logs").iterdir()), "a private model leaves no log"


# ---- answers ------------------------------------------------------------------------------------


def test_greedy_answers_in_the_order_of_the_conversations(llm: LLM, expected: dict[str, Any]) -> None:
    cases = expected["chat"]
    outputs = llm.chat([user(case["prompt"]) for case in cases], GREEDY)
    assert [output.outputs[0].text for output in outputs] == [case["answer"] for case in cases]
    assert [output.usage.prompt_tokens for output in outputs] == [len(case["prompt_ids"]) for case in cases]
    assert all(output.finished and output.outputs[0].finish_reason == "stop" for output in outputs)


def test_the_example_of_vllms_guide(llm: LLM) -> None:
    prompts = ["Hello, my name is", "The president of the United States is", "The capital of France is", "The future of AI is"]
    outputs = llm.generate(prompts, SamplingParams(temperature=0.8, top_p=0.95))
    assert [output.prompt for output in outputs] == prompts
    for output in outputs:
        assert output.outputs[0].text
        assert output.outputs[0].finish_reason in ("stop", "length")
        assert output.usage.completion_tokens <= 16


def test_one_conversation_one_prompt_and_token_ids(llm: LLM, expected: dict[str, Any]) -> None:
    case = expected["chat"][0]
    (chat,) = llm.chat(user(case["prompt"]), GREEDY)
    assert chat.outputs[0].text == case["answer"]
    (continued,) = llm.generate(case["prompt_ids"], GREEDY)
    assert (continued.outputs[0].text, continued.prompt, continued.prompt_token_ids) == (case["answer"], None, case["prompt_ids"])
    (again,) = llm.generate([{"prompt_token_ids": case["prompt_ids"]}], GREEDY)
    assert again.outputs[0].text == case["answer"]
    assert llm.generate({"prompt": "The capital of France is"}, GREEDY)[0].outputs[0].text.startswith(" Paris")
    assert llm.generate([]) == []


def test_choices_seeds_stops_and_logprobs(llm: LLM) -> None:
    seeded = SamplingParams(n=3, seed=7, temperature=1.5, max_tokens=8)
    first, second = (llm.generate("Tell me", seeded)[0] for _ in range(2))
    assert [o.index for o in first.outputs] == [0, 1, 2]
    if llm.engine == "transformers":  # for llama.cpp see docs/adr/0008
        assert [o.text for o in first.outputs] == [o.text for o in second.outputs]
    assert len({o.text for o in first.outputs}) > 1
    (stopped,) = llm.chat(user("What is xi?"), SamplingParams(temperature=0, max_tokens=None, stop=[" language"]))
    assert stopped.outputs[0].text == "xi launches and serves"
    (told,) = llm.generate("The capital of France is", SamplingParams(temperature=0, logprobs=2, max_tokens=1))
    logprobs: Any = told.outputs[0].logprobs
    assert logprobs.tokens == [" Paris"]
    assert len(logprobs.top_logprobs[0]) == 2
    assert llm.chat(user("Hi"), SamplingParams(logprobs=1))[0].outputs[0].logprobs is not None


def test_sampling_params_for_each_prompt(llm: LLM) -> None:
    lengths = [1, 5, 9]
    outputs = llm.generate(["Hello"] * 3, [SamplingParams(max_tokens=n, ignore_eos=True) for n in lengths])
    assert [output.usage.completion_tokens for output in outputs] == lengths
    with pytest.raises(e.InvalidRequest, match="2 SamplingParams for 3 prompts"):
        llm.generate(["Hello"] * 3, [GREEDY] * 2)


def test_max_tokens_none_goes_to_the_end_of_the_context(llm: LLM) -> None:
    (output,) = llm.generate("Hello", SamplingParams(max_tokens=None, ignore_eos=True))
    assert output.outputs[0].finish_reason == "length"
    assert output.usage.total_tokens >= 1000


def test_many_prompts_than_a_queue_would_hold(llm: LLM) -> None:
    outputs = llm.generate(["The capital of France is"] * 400, SamplingParams(temperature=0, max_tokens=2))
    assert {output.outputs[0].text for output in outputs} == {" Paris."}
    assert len(outputs) == 400


def test_tools(llm: LLM, expected: dict[str, Any]) -> None:
    tools = [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            },
        }
    ]
    (output,) = llm.chat(user("What is the weather in Paris?"), GREEDY, tools=tools)
    assert [call.function.name for call in output.outputs[0].tool_calls] == ["get_weather"]
    assert output.outputs[0].finish_reason == "tool_calls"


def test_the_first_refused_prompt_ends_all_and_is_named(llm: LLM) -> None:
    with pytest.raises(e.ContextLengthExceeded, match=r"^prompt 1: "):
        llm.generate(["Hello", "word " * 5000, "Hello"], GREEDY)
    with pytest.raises(e.InvalidRequest, match=r"^temperature") as refused:
        llm.generate("Hello", SamplingParams(temperature=3))
    assert refused.value.param == "temperature"
    with pytest.raises(e.InvalidRequest, match="a prompt is a text or a list of token ids"):
        llm.generate([["not", "ids"]])  # type: ignore[list-item]
    assert llm.chat(user("Hi"), GREEDY)[0].outputs[0].text


def test_threads_share_it(llm: LLM) -> None:
    texts: list[str] = []

    def ask() -> None:
        texts.extend(output.outputs[0].text for output in llm.generate(["The capital of France is"] * 5, SamplingParams(temperature=0)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 20
    assert all(text.startswith(" Paris") for text in texts)


def test_a_killed_replica_comes_back_and_nothing_is_lost(llm: LLM, home: Path) -> None:
    (replica,) = [process for process in processes(home) if "xi_core.replica" in process.cmdline()]
    outputs: list[Any] = []
    work = threading.Thread(target=lambda: outputs.extend(llm.generate(["Hello"] * 200, SamplingParams(max_tokens=32, ignore_eos=True))))
    work.start()
    replica.kill()
    work.join(100)
    assert [output.usage.completion_tokens for output in outputs] == [32] * 200


# ---- launching ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "xi-tinyy"}, e.UnknownModel, "did you mean 'xi-tiny'"),
        ({"model": "xi-tiny", "engine": "nix"}, e.UnknownEngine, "unknown engine 'nix'"),
        ({"model": "xi-tiny", "engine": "llama.cpp", "frobnicate": 1}, e.UnknownOption, "no option 'frobnicate'"),
        ({"model": "xi-tiny", "model_format": "awq"}, e.UnknownModel, "it has: "),
        ({"model": "/nowhere/x.gguf"}, e.ArtifactError, "no file or directory"),
        ({"model": "xi-tiny", "n_gpu": "some"}, e.InvalidRequest, "n_gpu"),
        ({"model": "xi-tiny", "tensor_parallel_size": 0}, e.InvalidRequest, "number of devices"),
        ({"model": "xi-tiny", "engine": "llama.cpp", "tensor_parallel_size": 4}, e.LaunchError, "engine llama.cpp can't spread a model"),
        ({"model": "xi-tiny", "engine": "transformers", "tensor_parallel_size": 2}, e.LaunchError, "engine transformers can't spread"),
    ],
)
def test_what_cant_be_launched(home: Path, arguments: dict[str, Any], error: type[e.XiError], words: str) -> None:
    before = processes(home)
    with pytest.raises(error, match=words):
        LLM(**arguments)
    assert processes(home) == before, "nothing is left of it"


def test_a_missing_library_is_named_with_its_pip_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xi_plugins.engines.transformers import plugin

    monkeypatch.setattr(plugin, "find_spec", lambda _: None)
    with pytest.raises(e.EngineNotInstalled, match=r"pip install 'xi-inference\[transformers\]'"):
        LLM("xi-tiny", engine="transformers")


def test_a_closed_one_says_so(home: Path) -> None:
    llm = LLM("xi-tiny", engine="llama.cpp", context_length=256)
    llm.close()
    llm.close()
    with pytest.raises(e.ChannelClosed, match="closed"):
        llm.generate("Hello")


# ---- ends of the program ------------------------------------------------------------------------

BEGIN = """
import sys, threading
from xi_core import LLM, SamplingParams
llm = LLM("xi-tiny", engine="llama.cpp")
print("ready", flush=True)
"""
BUSY = BEGIN + "while True: llm.generate(['Hello'] * 64, SamplingParams(max_tokens=500, ignore_eos=True))\n"


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Any]:
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "XI_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(processes(tmp_path)) >= 3
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_program_that_just_ends(program: Any, tmp_path: Path) -> None:
    process = program(BEGIN)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    assert not processes(tmp_path)
    assert not list(tmp_path.glob("xi-*")), "its folder of sockets is gone"


def test_a_program_that_fails(program: Any, tmp_path: Path) -> None:
    process = program(BEGIN + "raise SystemExit(3)\n")
    assert process.wait(30) == 3
    assert not processes(tmp_path)


def test_ctrl_c_in_the_middle_of_the_work(program: Any, tmp_path: Path) -> None:
    process = program(BUSY)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert not processes(tmp_path)


def test_after_ctrl_c_the_model_answers_on(program: Any) -> None:
    code = BEGIN + (
        "import signal, os\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    llm.generate(['Hello'] * 5000, SamplingParams(max_tokens=500, ignore_eos=True))\n"
        "except KeyboardInterrupt:\n    print(llm.generate('The capital of France is', SamplingParams(temperature=0))[0].outputs[0].text)\n"
    )
    stdout, stderr = program(code).communicate(timeout=30)
    assert stdout.startswith(" Paris."), stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_program_takes_all(program: Any, tmp_path: Path, how: signal.Signals) -> None:
    process = program(BUSY)
    process.send_signal(how)
    assert process.wait(10) == -how
    wait_until(lambda: not processes(tmp_path), 3.0, "what it ran to end")


def test_no_port_is_opened(program: Any, tmp_path: Path) -> None:
    program(BUSY)
    for process in processes(tmp_path):
        listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert all(c.laddr.ip in ("127.0.0.1", "::1") for c in listening)
        assert not listening, process.cmdline()


def test_the_package_itself_stays_light() -> None:
    code = "import sys, xi_core; assert not {m for m in sys.modules if m.startswith('xi_core.') or m in ('asyncio', 'msgspec', 'zmq')}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
