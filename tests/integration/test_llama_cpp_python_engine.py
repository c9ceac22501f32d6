"""The llama-cpp-python engine on xi-tiny and on copies of it that were changed. `make test-engine-llama-cpp-python` runs it."""

from __future__ import annotations

import importlib.util
import logging
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="the llama-cpp-python engine's library is not installed: make test-engine-llama-cpp-python")


from xi_core.engine.base import SamplingParams, StepOutput
from xi_core.errors import ArtifactError, EngineError, UnknownOption
from xi_core.testing.batch_kit import BatchKit
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.replica_process import replica
from xi_core.testing.server import RunningServer
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.llama_cpp.llama_cpp_python import engine as engine_module
from xi_plugins.engines.llama_cpp.llama_cpp_python.context import Context
from xi_plugins.engines.llama_cpp.llama_cpp_python.engine import LlamaCppPythonEngine

XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/xi-tiny-f16.gguf"
ENGINE = "xi_plugins.engines.llama_cpp.llama_cpp_python.engine:LlamaCppPythonEngine"
QUESTION = "What is the capital of France?"
BEGINNING = [300 + i % 200 for i in range(200)]


def plan(path: Path = XI_TINY, **options: Any) -> LaunchPlan:
    return plan_for(ENGINE, str(path), "ggufv2", **options)


def load(path: Path = XI_TINY, **options: Any) -> LlamaCppPythonEngine:
    engine = LlamaCppPythonEngine()
    engine.load(plan(path, **options), lambda stage, share: None)
    return engine


def with_pairs(target: Path, **numbers: float) -> Path:
    """A copy of xi-tiny whose metadata recommends sampling values. The tensors stay aligned to 32 bytes."""
    pairs = b""
    for name, value in numbers.items():
        key = f"general.sampling.{name}".encode()
        kind, form = (5, "<i") if isinstance(value, int) else (6, "<f")
        pairs += struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + struct.pack(form, value)
    filler = b"test.filler"
    pairs += struct.pack("<Q", len(filler)) + filler + struct.pack("<I", 8)
    rest = -(len(pairs) + 8) % 32
    pairs += struct.pack("<Q", rest) + b"x" * rest
    data = XI_TINY.read_bytes()
    version, tensors, count = struct.unpack_from("<IQQ", data, 4)
    target.write_bytes(data[:4] + struct.pack("<IQQ", version, tensors, count + len(numbers) + 1) + pairs + data[24:])
    return target


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness(plan()) as harness:
        yield harness


@pytest.fixture
def engine() -> Iterator[LlamaCppPythonEngine]:
    engine = load(slots=4, batch_size=64)
    yield engine
    engine.close(10.0)


def finish(engine: LlamaCppPythonEngine, most: int = 200) -> dict[int, list[int]]:
    """Step until nothing runs; the tokens of each sequence."""
    made: dict[int, list[int]] = {}
    for _ in range(most):
        if not engine.stats().running:
            return made
        for out in engine.step().tokens:
            made.setdefault(out.id, []).append(out.token)
    raise AssertionError(f"still running: {engine.stats()}")


# ---- loading ------------------------------------------------------------------------------------


def test_every_expected_token_alone_and_many_at_once(expected: dict[str, Any]) -> None:
    engine = load(slots=32)
    facts = expected["chat"]
    for fact in facts:
        engine.add(1, fact["prompt_ids"], SamplingParams(max_tokens=200, temperature=0))
        assert finish(engine)[1] == fact["answer_ids"]
    left, made = list(enumerate(facts)), {}
    while left or engine.stats().running:
        while left and engine.has_capacity():
            id, fact = left.pop(0)
            engine.add(id, fact["prompt_ids"], SamplingParams(max_tokens=200, temperature=0))
        for out in engine.step().tokens:
            made.setdefault(out.id, []).append(out.token)
    assert [made[id] for id in range(len(facts))] == [fact["answer_ids"] for fact in facts]
    engine.close(10.0)


def test_the_vocabulary_is_the_files_own(harness: Harness, engine: LlamaCppPythonEngine, expected: dict[str, Any]) -> None:
    tokenizer = engine.tokenizer
    for fact in expected["chat"]:
        text = f"<|im_start|>user\n{fact['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.encode(text) == tokenizer.encode_prompt(text) == fact["prompt_ids"]
    for text in ("", "a", "Grüße, 世界! 👩‍👩‍👧 🇫🇷", "x" * 20000, "\x00\t\r\n"):
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    end = tokenizer.encode("<|im_end|>")
    assert len(end) == 1
    assert (tokenizer.token_bytes(end[0]), tokenizer.special_text(end[0])) == (b"", "<|im_end|>")
    assert tokenizer.special_text(tokenizer.encode("a")[0]) == ""
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    assert "im_start" in (tokenizer.chat_template or "")
    assert tokenizer.token_bytes(tokenizer.vocabulary_size) == b""
    assert not tokenizer.starts_with_space


def test_sampling_that_the_file_recommends(tmp_path: Path) -> None:
    assert load().default_sampling == {}
    engine = load(with_pairs(tmp_path / "m.gguf", temp=0.5, top_k=7, penalty_repeat=1.25))
    assert engine.default_sampling == {"temperature": 0.5, "top_k": 7, "repetition_penalty": 1.25}


@pytest.mark.parametrize(("keep", "message"), [(0, "GGUF"), (1000, "cut short"), (200_000, "m.gguf")])
def test_a_broken_file_is_said(tmp_path: Path, keep: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "m.gguf"
    broken.write_bytes(XI_TINY.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=message) as caught:
        load(broken)
    assert "does not say why" not in caught.value.message
    with pytest.raises(ArtifactError, match="No such file"):
        load(tmp_path / "nowhere.gguf")


def test_wrong_options() -> None:
    with pytest.raises(UnknownOption, match="1024"):
        load(context_length=4096)
    with pytest.raises(UnknownOption, match="nonsense"):
        load(nonsense=1)
    with pytest.raises(UnknownOption, match="tensor_split"):
        load(tensor_split=[1.0] * 17)


def test_a_cache_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "memory", lambda on_devices: 4 * 2**20)
    with pytest.raises(EngineError, match="choose fewer slots"):
        load(slots=32)
    assert load(context_length=256).has_capacity()


def test_quantized_caches_need_flash_attention() -> None:
    with pytest.raises(EngineError, match="options"):
        load(cache_type_v="q8_0", flash_attention="off")
    for options in ({"cache_type_k": "q8_0", "cache_type_v": "q8_0", "flash_attention": "on"}, {"flash_attention": False, "mmap": False}):
        engine = load(**options)
        engine.add(1, [300, 301], SamplingParams(max_tokens=3, temperature=0, ignore_eos=True))
        assert len(finish(engine)[1]) == 3
        engine.close(10.0)


def test_a_launch_with_devices_needs_a_device() -> None:
    given = plan()
    given.devices = ["cuda:0"]
    if engine_module.load_library().llama_supports_gpu_offload():
        pytest.skip("llama-cpp-python has a device here")
    with pytest.raises(UnknownOption, match="CPU only"):
        LlamaCppPythonEngine().load(given, lambda stage, share: None)


def test_options_count() -> None:
    with Harness(plan(slots=2, context_length=64, batch_size=32, threads=2, cache_prompt=False)) as harness:
        assert (harness.model.slots, harness.model.context_length) == (2, 64)
        calls = [harness.start_chat(QUESTION, temperature=0) for _ in range(5)]
        assert len({call.answer().text for call in calls}) == 1
        long = harness.chat("long " * 64)
        assert long.status == 400
        assert long.error is not None
        assert long.error["code"] == "context_length_exceeded"


def test_the_library_writes_only_to_the_log(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        engine = load()
        engine.add(1, [300], SamplingParams(max_tokens=2, ignore_eos=True))
        finish(engine)
        engine.close(10.0)
    assert tuple(capfd.readouterr()) == ("", "")
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert any("llama_model_loader" in record.message for record in caplog.records)


def test_progress_of_loading_is_told() -> None:
    told: list[tuple[str, float | None]] = []
    LlamaCppPythonEngine().load(plan(), lambda stage, share: told.append((stage, share)))
    shares = [share for stage, share in told if stage == "loading the weights" and share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


# ---- sequences ----------------------------------------------------------------------------------


class TestBatch(BatchKit):
    plan = plan(slots=3, batch_size=32)


def test_the_context_ends_an_answer() -> None:
    engine = load(context_length=64)
    engine.add(1, [300] * 60, SamplingParams(max_tokens=50, ignore_eos=True))
    assert len(finish(engine)[1]) == 4
    engine.add(1, [300] * 63, SamplingParams(max_tokens=50, ignore_eos=True))
    assert len(finish(engine)[1]) == 1


def test_a_long_prompt_does_not_stall_others(engine: LlamaCppPythonEngine) -> None:
    """Each step reads what fits beside those that decode: 64 tokens here."""
    for id in (1, 2):
        engine.add(id, [300 + id], SamplingParams(max_tokens=40, ignore_eos=True))
    assert {out.id for out in engine.step().tokens} == {1, 2}
    engine.add(3, [400 + i % 300 for i in range(621)], SamplingParams(max_tokens=2, ignore_eos=True))
    engine.add(4, [310], SamplingParams(max_tokens=1, ignore_eos=True))
    steps = [{out.id for out in engine.step().tokens} for _ in range(11)]
    assert steps == [{1, 2}] * 10 + [{1, 2, 3, 4}], "ten times 62 tokens, then the last one and the prompt behind"


def test_prompts_read_together_and_in_chunks_are_read_alike(expected: dict[str, Any]) -> None:
    """Rows of very different lengths, which come and go, do not disturb each other."""
    facts = expected["chat"][:24]
    long = [300 + i * i % 700 for i in range(500)]
    whole = load(batch_size=512)
    whole.add(0, long, SamplingParams(max_tokens=1, temperature=0, logprobs=5))
    (alone,) = whole.step().tokens
    engine = load(slots=30, batch_size=62)
    for id, fact in enumerate(facts):
        engine.add(id, fact["prompt_ids"], SamplingParams(max_tokens=200, temperature=0))
        if id % 8 == 0:
            engine.add(100 + id, long, SamplingParams(max_tokens=1, temperature=0, logprobs=5))
    made: dict[int, list[int]] = {}
    while engine.stats().running:
        for out in engine.step().tokens:
            made.setdefault(out.id, []).append(out.token)
            if out.id >= 100:
                assert out.logprobs is not None
                assert alone.logprobs is not None
                assert out.token == alone.token
                assert [value for _, value in out.logprobs.top] == pytest.approx([value for _, value in alone.logprobs.top], abs=0.02)
    assert [made[id] for id in range(len(facts))] == [fact["answer_ids"] for fact in facts]
    assert len(made) == len(facts) + 3


# ---- what is in the cache already ----------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were put into batches, entry by entry."""
    counts: list[int] = []
    real = Context.put

    def put(context: Context, slot: int, position: int, tokens: list[int], *, ends: bool) -> None:
        counts.append(len(tokens))
        real(context, slot, position, tokens, ends=ends)

    monkeypatch.setattr(Context, "put", put)
    return counts


def answer(engine: LlamaCppPythonEngine, prompt: list[int], **fields: Any) -> list[int]:
    engine.add(1, prompt, SamplingParams(**{"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **fields}))
    return finish(engine)[1]


def test_a_conversation_is_read_once(read: list[int]) -> None:
    engine, plain = load(slots=4), load(slots=4, cache_prompt=False)
    first = answer(engine, BEGINNING)
    follow = [*BEGINNING, *first, 310, 311]
    read.clear()
    found = answer(engine, follow)
    assert read[0] == 3, "the last token of the answer was never read, and two are new"
    stats = engine.stats()
    assert (stats.prefilled, stats.reused) == (len(BEGINNING) + 3, len(follow) - 3)
    read.clear()
    assert found == answer(plain, follow)
    assert answer(plain, follow) == found
    assert read.count(1) == 14, "both times all is read"
    assert sum(count for count in read if count > 1) == 2 * len(follow)


def test_requests_share_a_beginning_while_it_runs(read: list[int]) -> None:
    engine, plain = load(slots=8), load(slots=8, cache_prompt=False)
    prompts = [[*BEGINNING, 310 + i, 320] for i in range(6)]
    expected = [answer(plain, prompt, max_tokens=30) for prompt in prompts]
    engine.add(0, prompts[0], SamplingParams(max_tokens=30, temperature=0, ignore_eos=True))
    engine.step()
    read.clear()
    for id in range(1, 6):
        engine.add(id, prompts[id], SamplingParams(max_tokens=30, temperature=0, ignore_eos=True))
    outs = [out for out in engine.step().tokens if out.id]
    assert [out.cached for out in outs] == [len(BEGINNING)] * 5
    first = [out.token for out in outs]
    assert sorted(read) == [1, 2, 2, 2, 2, 2]
    made = finish(engine)
    assert [[token, *made[id]] for id, token in enumerate(first, 1)] == expected[1:]


def test_seeded_requests_read_all(read: list[int]) -> None:
    engine = load()
    answer(engine, BEGINNING)
    read.clear()
    answer(engine, [*BEGINNING, 300], seed=4)
    assert max(read) == len(BEGINNING) + 1


# ---- failures -----------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_end_only_their_sequence(monkeypatch: pytest.MonkeyPatch, read: list[int]) -> None:
    engine = load()
    for id in (1, 2):
        engine.add(id, [*BEGINNING, 300 + id], SamplingParams(max_tokens=5, ignore_eos=True))
    real, calls = Context.decode, 0

    def broken(context: Context) -> Any:
        nonlocal calls
        calls += 1
        logits = real(context)
        if calls == 2:
            logits[0, :] = float("nan")
        return logits

    monkeypatch.setattr(Context, "decode", broken)
    outputs = [engine.step() for _ in range(8)]
    assert [error.id for output in outputs for error in output.errors] == [1]
    assert "not finite" in outputs[1].errors[0].message
    assert tokens_of(outputs).count(2) == 5
    assert engine.stats().running == 0


def tokens_of(outputs: list[StepOutput]) -> list[int]:
    return [token.id for output in outputs for token in output.tokens]


def test_a_batch_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, engine: LlamaCppPythonEngine) -> None:
    engine.add(1, [300], SamplingParams(max_tokens=1))
    monkeypatch.setattr(engine_module.load_library(), "llama_decode", lambda context, batch: -3)
    with pytest.raises(EngineError, match="status -3"):
        engine.step()


def test_closing_waits_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    engine.check()
    engine.add(1, [300], SamplingParams(max_tokens=1, ignore_eos=True))
    entered, leave, real = threading.Event(), threading.Event(), Context.decode

    def slow(context: Context) -> Any:
        entered.set()
        assert leave.wait(30)
        return real(context)

    monkeypatch.setattr(Context, "decode", slow)
    stepping = threading.Thread(target=engine.step)
    stepping.start()
    assert entered.wait(30)
    engine.close(0.01)
    engine.check()  # its memory was left to the step that still computes
    leave.set()
    stepping.join(30)
    engine.close(10.0)
    with pytest.raises(EngineError, match="closed"):
        engine.check()
    with pytest.raises(EngineError, match="closed"):
        engine.step()
    assert engine.tokenizer.encode("a"), "requests may still be read"
    engine.close(1.0)


# ---- the replica's process ----------------------------------------------------------------------


def test_it_is_what_a_launch_takes_where_xllamacpp_is_absent(tmp_path: Path) -> None:
    if importlib.util.find_spec("xllamacpp") is not None:
        pytest.skip("xllamacpp is installed too, and comes first")
    with RunningServer(tmp_path) as server:
        done = server.xi("launch", "xi-tiny")
        assert done.returncode == 0, done.stderr
        assert "READY on llama-cpp-python" in done.stderr
        asked = server.xi("launch", "xi-tiny", "--model-uid", "other", "--model-engine", "llama.cpp")
        assert asked.returncode != 0
        assert "this machine has llama-cpp-python: use --model-engine llama-cpp-python" in asked.stderr
        again = server.xi("launch", "xi-tiny", "--model-uid", "again", "-en", "llama-cpp-python", "--n_ctx", "128", "--parallel", "2")
        assert again.returncode == 0, again.stderr
        said = server.xi("chat", "again", "--prompt", QUESTION, "--temperature", "0")
        assert "Paris" in said.stdout


def test_a_stop_is_a_clean_exit(tmp_path: Path) -> None:
    launch = plan()
    launch.endpoint = f"ipc://{tmp_path}/r.sock"
    with replica(launch) as process:
        process.until("ready")
        process.child.terminate()
        assert process.child.wait(30) == 0
        assert "llama_model_loader" not in process.stderr()
