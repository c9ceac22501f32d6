"""`LLM` on both engines: right answers, typed errors, and nothing left when its program ends, however it ends."""

import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from xi_core import LLM, SamplingParams, StructuredOutputsParams
from xi_core import errors as e
from xi_core.batch import read_requests, run
from xi_core.batch_results import Results
from xi_core.config import settings
from xi_core.offline import private
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


def test_token_ids_where_the_engine_knows_them(llm: LLM, expected: dict[str, Any]) -> None:
    case = expected["chat"][0]
    (chat,) = llm.chat(user(case["prompt"]), GREEDY)
    (two,) = llm.generate("The capital of France is", SamplingParams(n=2, max_tokens=3, ignore_eos=True))
    if llm.engine == "llama.cpp":  # its manifest says why not
        assert (chat.outputs[0].token_ids, chat.prompt_token_ids, two.outputs[1].token_ids) == (None, None, None)
        return
    assert chat.prompt_token_ids == case["prompt_ids"]
    assert chat.outputs[0].token_ids is not None
    assert len(chat.outputs[0].token_ids) == chat.usage.completion_tokens
    (again,) = llm.generate([[*case["prompt_ids"], *chat.outputs[0].token_ids[:3]]], GREEDY)
    assert case["answer"].endswith(again.outputs[0].text), "the ids are those of the answer's beginning"
    assert len(again.outputs[0].text) < len(case["answer"])
    assert [len(output.token_ids or []) for output in two.outputs] == [3, 3]
    assert len(two.prompt_token_ids or []) == two.usage.prompt_tokens


def test_structured_outputs_and_template_variables(llm: LLM) -> None:
    params = SamplingParams(temperature=1, max_tokens=64, structured_outputs=StructuredOutputsParams(choice=["yes", "no"]))
    assert {output.outputs[0].text for output in llm.chat([user("Is it?")] * 5, params)} <= {"yes", "no"}
    assert {output.outputs[0].text for output in llm.generate(["Is it?"] * 5, params)} <= {"yes", "no"}
    (output,) = llm.chat(user("Hi"), GREEDY, chat_template_kwargs={"enable_thinking": False})
    assert output.outputs[0].text
    with pytest.raises(e.InvalidRequest, match="chat_template_kwargs: 'messages' is set by xi itself"):
        llm.chat(user("Hi"), GREEDY, chat_template_kwargs={"messages": "x"})
    with pytest.raises(e.NotFound, match="does not serve /v1/embeddings; it serves: /v1/chat/completions"):
        llm.embed("Hi")


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
        llm.generate([["not", "ids"]])  # type: ignore[arg-type]
    assert llm.chat(user("Hi"), GREEDY)[0].outputs[0].text


def test_what_no_json_can_carry_is_refused(llm: LLM) -> None:
    with pytest.raises(e.InvalidRequest, match="temperature: nan is no finite number"):
        llm.generate("Hello", SamplingParams(temperature=float("nan")))
    with pytest.raises(e.InvalidRequest, match="the text is not UTF-8"):
        llm.generate("caf\udce9")


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


def test_a_line_that_is_lost_while_its_replica_lives_is_dialled_again(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "REDIAL", 0.2)
    lost = threading.Event()

    def lose() -> None:
        for line in llm._private._lines:
            line._lose()
        lost.set()

    llm.generate("Hello")
    llm._private._loop.call_soon_threadsafe(lose)
    assert lost.wait(10)
    outputs: list[Any] = []
    work = threading.Thread(target=lambda: outputs.extend(llm.generate(["Hello"] * 8)), daemon=True)
    work.start()
    work.join(20)
    assert len(outputs) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_is_told_whose_it_is(llm: LLM) -> None:
    def ask(told: Connection) -> None:
        try:
            llm.generate("Hello")
        except e.ChannelClosed as error:
            told.send(error.message)

    hears, tells = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork").Process(target=ask, args=(tells,))
    fork.start()
    assert hears.poll(20)
    assert hears.recv() == f"this LLM belongs to process {os.getpid()}, of which this one is a fork; make one here"
    fork.join(20)
    assert fork.exitcode == 0
    assert len(llm.generate("Hello")) == 1


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
        (
            {"model": "xi-tiny", "engine": "llama.cpp", "distributed_executor_backend": "mp"},
            e.UnknownOption,
            "distributed_executor_backend",
        ),
        ({"model": "xi-tiny", "engine": "llama.cpp", "replica": 0}, e.InvalidRequest, "replica"),
        ({"model": "xi-tiny", "model_type": "image"}, e.InvalidRequest, "model type 'image' can't be launched"),
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
    from xi_core.engine.info import Support
    from xi_plugins.engines.transformers import plugin

    monkeypatch.setattr(plugin, "installed", lambda *_, **__: Support(ok=False, reason=f"torch not installed: {plugin.INSTALL}"))
    with pytest.raises(e.EngineNotInstalled, match=r"pip install 'xi-inference\[transformers\]'"):
        LLM("xi-tiny", engine="transformers")


def test_a_model_that_cant_be_loaded_tells_the_engines_reason(home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    before = processes(home)
    with pytest.raises(e.LaunchError, match=r"broken\.gguf"):
        LLM(str(broken))
    assert processes(home) == before


def test_several_replicas_share_the_work(home: Path) -> None:
    def replicas() -> int:
        return sum("xi_core.replica" in process.cmdline() for process in processes(home))

    before = replicas()
    with LLM("xi-tiny", engine="llama.cpp", replica=2, context_length=256, slots=2) as llm:
        wait_until(lambda: replicas() == before + 2, 10.0, "two replicas to run")
        outputs = llm.generate(["The capital of France is"] * 50, SamplingParams(temperature=0, max_tokens=2))
        assert {output.outputs[0].text for output in outputs} == {" Paris."}
    assert replicas() == before


def save_bert(directory: Path, labels: int = 0) -> str:
    """A random model with a tokenizer of bytes: an embedder, or with one label a reranker."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(3)
    transformers.utils.logging.disable_progress_bar()
    shape: dict[str, Any] = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.BertConfig(**shape, **({"num_labels": labels} if labels else {}))
    model = (transformers.AutoModelForSequenceClassification if labels else transformers.AutoModel).from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4)
    model.save_pretrained(directory)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: index for index, token in enumerate(["[PAD]", *alphabet])}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(directory / "tokenizer.json"))
    return str(directory)


def test_embeddings_and_scores(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with LLM(save_bert(tmp_path / "embedder"), engine="transformers", model_type="embedding") as llm:
        texts: list[Any] = ["Hi", "there", [1, 2], "Hi"]
        outputs = llm.embed(texts)
        vectors = [output.outputs.embedding for output in outputs]
        assert [len(vector) for vector in vectors] == [32] * 4
        assert sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-4)
        assert vectors[3] == pytest.approx(vectors[0], abs=1e-5)
        assert vectors[1] != pytest.approx(vectors[0], abs=1e-2)
        assert outputs[2].prompt_token_ids == [1, 2]
        assert len(llm.embed("Hi", dimensions=8)[0].outputs.embedding) == 8
        with pytest.raises(e.NotFound, match="does not serve /v1/completions"):
            llm.generate("Hi")
        lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "Hi"}} for n in range(3)]
        (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
        with Results(tmp_path / "out.jsonl") as results:
            counts = run(read_requests(tmp_path / "in.jsonl", None), llm.ask, results, 2, lambda counts, result: None)
        assert (counts.done, counts.failed) == (3, 0)
        bodies = [json.loads(text)["response"]["body"] for text in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [body["data"][0]["embedding"] for body in bodies] == [pytest.approx(vectors[0], abs=1e-5)] * 3
    with LLM(save_bert(tmp_path / "ranker", labels=1), engine="transformers", model_type="rerank") as llm:
        scores = [output.outputs.score for output in llm.score("capital?", ["a cat", "Paris", "rain"])]
        assert len(set(scores)) == 3
        pairs = llm.score(["capital?", "capital?"], ["rain", "a cat"])
        assert [output.outputs.score for output in pairs] == pytest.approx([scores[2], scores[0]], abs=1e-4)


def test_a_closed_one_says_so(home: Path) -> None:
    llm = LLM("xi-tiny", engine="llama.cpp", context_length=256)
    llm.close()
    llm.close()
    with pytest.raises(e.ChannelClosed, match="closed"):
        llm.generate("Hello")
