"""The engine `transformers` on real models: the bundled one, and small random ones made here."""

from __future__ import annotations

import json
import math
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tokenizers  # noqa: E402

import xi_plugins  # noqa: E402
from xi_core.engine.base import SamplingParams, SequenceError, StepOutput, TokenOut  # noqa: E402
from xi_core.errors import ArtifactError, ContextLengthExceeded, EngineError, UnknownOption, XiError  # noqa: E402
from xi_core.testing.batch_kit import BatchKit  # noqa: E402
from xi_core.testing.harness import plan_for  # noqa: E402
from xi_plugins.engines.transformers.engine import TransformersEngine  # noqa: E402
from xi_plugins.engines.transformers.plugin import full_manifest  # noqa: E402
from xi_plugins.engines.transformers.tokenizer import HubTokenizer  # noqa: E402

pytestmark = pytest.mark.engine("transformers")

XI_TINY = Path(xi_plugins.__file__).parent / "families" / "xi_tiny" / "hf"
ENGINE = "xi_plugins.engines.transformers.engine:TransformersEngine"
EXPECTED = Path(__file__).parents[1] / "data" / "xi_tiny_expected.json"
TEXTS = (
    "Hello, world!",
    "  two  spaces\n\ttab",
    "价格是多少？",
    "naïve café",
    "🇩🇪🇫🇷 flags",
    "👩‍👩‍👧‍👦 family 😀",
    "\x00\x7f",
    "<tool_call>{}</tool_call>",
)
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 400,
    "eos_token_id": 0,
}


def load(directory: Path, **options: Any) -> TransformersEngine:
    plan = plan_for(ENGINE, str(directory), "pytorch", **{"threads": 1, **options})
    engine = TransformersEngine()
    loaded = engine.load(plan, lambda stage, share: None)
    assert loaded.manifest.narrowed_by(full_manifest()) == loaded.manifest
    assert loaded.slots == options.get("batch_size", 32)
    return engine


def save_small(directory: Path, config: Any) -> Path:
    """A random model of `config` whose answers depend on all of the prompt, with a tokenizer."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(6)
    model.save_pretrained(directory)
    words = {f"w{i}": i for i in range(96)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1")).save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("small"), transformers.LlamaConfig(**SMALL))


@pytest.fixture(scope="module")
def tiny() -> TransformersEngine:
    return load(XI_TINY)


@pytest.fixture
def small(small_dir: Path) -> TransformersEngine:
    return load(small_dir, prefill_chunk=32, batch_size=8)


def greedy(count: int, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0, **fields)


def run(engine: TransformersEngine, requests: list[tuple[list[int], SamplingParams]], joins: int = 1000) -> list[list[TokenOut]]:
    """Answers of all requests, of which at most `joins` join before each step."""
    found: dict[int, list[TokenOut]] = {i: [] for i in range(len(requests))}
    ahead = list(enumerate(requests))
    while ahead or engine.stats().running:
        for _ in range(joins):
            if not ahead or not engine.has_capacity():
                break
            i, (prompt, sampling) = ahead.pop(0)
            engine.add(i, prompt, sampling)
        output = engine.step()
        assert not output.errors
        ids = [token.id for token in output.tokens]
        assert len(ids) == len(set(ids)), "one token of a sequence per step"
        for token in output.tokens:
            found[token.id].append(token)
    return list(found.values())


def ids(answer: list[TokenOut]) -> list[int]:
    return [token.token for token in answer]


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(1, 96) for _ in range(chance.randint(1, longest))] for _ in range(count)]


# ---- answers ------------------------------------------------------------------------------------


def expected() -> list[tuple[list[int], list[int]]]:
    sections = json.loads(EXPECTED.read_text(encoding="utf-8"))
    entries = [entry for name in ("chat", "tools", "follow_ups") for entry in sections[name]]
    return [(entry["prompt_ids"], entry["answer_ids"]) for entry in entries]


@pytest.mark.parametrize(("joins", "chunk", "every"), [(3, 512, 1), (32, 512, 2), (5, 16, 4)])
def test_reference_answers_with_joins_and_leaves(joins: int, chunk: int, every: int) -> None:
    engine = load(XI_TINY, prefill_chunk=chunk)
    wanted = expected()[::every]
    found = run(engine, [(prompt, greedy(len(answer))) for prompt, answer in wanted], joins)
    wrong = [i for i, (_, answer) in enumerate(wanted) if ids(found[i]) != answer]
    assert not wrong
    assert all(answer[-1].finish == "stop" for answer in found)


def test_reference_answers_alone(tiny: TransformersEngine) -> None:
    for prompt, answer in expected()[::8]:
        assert ids(run(tiny, [(prompt, greedy(len(answer)))])[0]) == answer


CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**{**SMALL, "sliding_window": None}),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=400, bos_token_id=0, eos_token_id=0),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=16, sliding_window=400),
}


def without_cache(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy answer of the plain model, the whole text read anew for each token."""
    text = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("name", CONFIGS)
def test_batched_answers_equal_the_plain_models(tmp_path: Path, name: str) -> None:
    directory = save_small(tmp_path, CONFIGS[name]())
    engine = load(directory, prefill_chunk=32, batch_size=5)
    asked = prompts(12, 90)
    found = run(engine, [(prompt, greedy(12, ignore_eos=True)) for prompt in asked], joins=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    assert [ids(answer) for answer in found] == [without_cache(model, prompt, 12) for prompt in asked]
    assert len({tuple(ids(answer)) for answer in found}) > 6, "answers depend on prompts"


def test_chunked_prefill_equals_whole(small_dir: Path) -> None:
    asked = [(prompt, greedy(10, ignore_eos=True, logprobs=3)) for prompt in prompts(9, 300, seed=3)]
    whole = run(load(small_dir, prefill_chunk=4096), asked)
    chunked = run(load(small_dir, prefill_chunk=16), asked, joins=2)
    assert [ids(answer) for answer in chunked] == [ids(answer) for answer in whole]
    for one, other in zip(chunked, whole, strict=True):
        pairs = [(a.logprobs, b.logprobs) for a, b in zip(one, other, strict=True)]
        assert all(a and b and a.logprob == pytest.approx(b.logprob, abs=1e-4) for a, b in pairs)


def test_a_long_prompt_does_not_stop_the_others(small: TransformersEngine) -> None:
    small.add(1, [5, 6], greedy(100, ignore_eos=True))
    small.step()
    small.add(2, prompts(1, 1)[0] * 200, greedy(2, ignore_eos=True))
    steps = [small.step() for _ in range(7)]
    assert [[token.id for token in output.tokens] for output in steps[:6]] == [[1]] * 6
    assert [token.id for token in steps[6].tokens] == [1, 2]
    small.remove(1)
    small.remove(2)


def test_finish_reasons_and_limits(small: TransformersEngine) -> None:
    [answer] = run(small, [([5], greedy(4, ignore_eos=True))])
    assert [token.finish for token in answer] == [None, None, None, "length"]
    [full] = run(small, [([5] * 397, greedy(50, ignore_eos=True))])
    assert len(full) == 3, "the context of 400 is full"
    assert full[-1].finish == "length"
    [ended] = run(small, [([5], greedy(9, logit_bias={0: 100.0}))])
    assert [(token.token, token.finish) for token in ended] == [(0, "stop")]
    [ignored] = run(small, [([5], greedy(3, logit_bias={0: 100.0}, ignore_eos=True))])
    assert ids(ignored) == [0, 0, 0]


def test_context_length_can_be_lowered(small_dir: Path) -> None:
    engine = load(small_dir, context_length=20)
    [answer] = run(engine, [([5] * 15, greedy(50, ignore_eos=True))])
    assert len(answer) == 5
    with pytest.raises(ContextLengthExceeded, match="20 tokens; the context holds 20"):
        engine.add(1, [5] * 20, greedy(1))
    with pytest.raises(UnknownOption, match="more than the 400"):
        load(small_dir, context_length=401)


def test_sampling_reproduces_by_seed_beside_others(small: TransformersEngine) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.2, top_p=0.9, seed=5, ignore_eos=True, repetition_penalty=1.1)
    [alone] = run(small, [([7, 8, 9], params)])
    others = [(prompt, SamplingParams(max_tokens=9, seed=i, ignore_eos=True)) for i, prompt in enumerate(prompts(12, 40))]
    among = run(small, [*others[:6], ([7, 8, 9], params), *others[6:]], joins=2)[6]
    assert ids(among) == ids(alone)


def test_logprobs_are_a_distribution(small: TransformersEngine) -> None:
    [answer] = run(small, [([7, 8, 9], greedy(5, logprobs=96, ignore_eos=True))])
    for token in answer:
        assert token.logprobs is not None
        assert sum(math.exp(value) for _, value in token.logprobs.top) == pytest.approx(1, abs=1e-4)
        assert token.logprobs.top[0] == (token.token, token.logprobs.logprob)


# ---- slots --------------------------------------------------------------------------------------


class TestBatch(BatchKit):
    plan = plan_for(ENGINE, str(XI_TINY), "pytorch", threads=1, batch_size=3, prefill_chunk=16)


def test_remove_frees_the_slot_at_once(small: TransformersEngine) -> None:
    for i in range(8):
        small.add(i, [3 + i], greedy(50, ignore_eos=True))
    assert not small.has_capacity()
    with pytest.raises(EngineError, match="all 8 slots"):
        small.add(9, [3], greedy(1))
    small.step()
    small.remove(3)
    small.remove(3)
    small.remove(12345)
    assert small.has_capacity()
    assert small.stats().running == 7
    assert 3 not in {token.id for token in small.step().tokens}
    for i in range(8):
        small.remove(i)
    assert small.stats().running == 0


def test_hundreds_of_joins_and_aborts_leak_nothing(small: TransformersEngine) -> None:
    asked = prompts(400, 40, seed=9)
    alone = ids(run(small, [(asked[0], greedy(10, ignore_eos=True))])[0])
    chance = random.Random(0)
    size = 0
    for i, prompt in enumerate(asked):
        if not small.has_capacity():
            small.remove(chance.choice(range(i)))
            small.step()
        if small.has_capacity():
            small.add(i, prompt, greedy(30, ignore_eos=True))
        if i % 3 == 0:
            small.step()
        if i == 200:
            size = small._runner.cache.nbytes()
    for i in range(len(asked)):
        small.remove(i)
    assert small.stats().running == 0
    assert small._runner.cache.nbytes() == size
    assert (small._runner.cache.rows, small._runner.cache.columns) == (8, 256)
    assert ids(run(small, [(asked[0], greedy(10, ignore_eos=True))])[0]) == alone


def test_the_cache_starts_small_and_grows(small_dir: Path) -> None:
    engine = load(small_dir)
    before = engine._runner.cache.nbytes()
    run(engine, [([5, 6], greedy(3))])
    assert engine._runner.cache.nbytes() == before
    run(engine, [([5] * 300, greedy(3)), *(([i], greedy(3)) for i in range(1, 31))])
    assert (engine._runner.cache.rows, engine._runner.cache.columns) == (31, 400)


def test_a_sequence_that_finds_no_memory_fails_alone(small: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small._runner.cache
    reserve = cache.reserve

    def full(columns: int, lengths: list[int], rows: int) -> None:
        if columns > 256:
            raise MemoryError("no memory for a cache")
        reserve(columns, lengths, rows)

    monkeypatch.setattr(cache, "reserve", full)
    small.add(1, [5, 6], greedy(12, ignore_eos=True))
    small.add(2, [5] * 250, greedy(100, ignore_eos=True))
    outputs = [small.step() for _ in range(25)]
    assert [(error.id, error.message) for output in outputs for error in output.errors] == [(2, "no memory for a cache")]
    assert sum(token.id == 1 for output in outputs for token in output.tokens) == 12
    assert small.stats().running == 0


def test_bad_numbers_fail_one_sequence_and_leave_no_trace(small: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    [good] = run(small, [([5, 6], greedy(8, ignore_eos=True))])
    decode = small._runner.decode

    def spoiled(tokens: list[int], lengths: list[int]) -> Any:
        logits = decode(tokens, lengths)
        logits[1] = math.nan
        small._runner.cache._layers[0].values[1] = math.nan
        return logits

    small.add(1, [5, 6], greedy(8, ignore_eos=True))
    small.add(2, [7], greedy(8, ignore_eos=True))
    tokens = small.step().tokens
    monkeypatch.setattr(small._runner, "decode", spoiled)
    output = small.step()
    monkeypatch.undo()
    assert output.errors == [SequenceError(2, "the model gave numbers that are not finite; try dtype float32 or bfloat16")]
    small.add(3, [5, 6], greedy(8, ignore_eos=True))
    outputs: list[StepOutput] = [output, *(small.step() for _ in range(8))]
    tokens += [token for each in outputs for token in each.tokens]
    assert [token.token for token in tokens if token.id == 1] == ids(good)
    assert [token.token for token in tokens if token.id == 3] == ids(good)


def test_a_failing_model_raises_from_step(small: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("device lost")

    monkeypatch.setattr(small._runner, "prefill", broken)
    small.add(1, [5], greedy(1))
    with pytest.raises(EngineError, match="device lost"):
        small.step()


# ---- tokenizer ----------------------------------------------------------------------------------


def test_a_long_text_has_the_ids_of_its_pieces_and_lets_other_threads_run(tiny: Any) -> None:
    piece = "What is xi? It serves language models.\n"
    short, long = tiny.tokenizer.encode(piece), tiny.tokenizer.encode(piece * 1000)
    assert long == short * 1000
    gaps: list[float] = []
    done = threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not done.wait(0.001):
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    tiny.tokenizer.encode(piece * 40_000)
    took = time.monotonic() - began
    done.set()
    watcher.join()
    assert max(gaps) < max(took / 2, 0.2)


@pytest.mark.parametrize("text", TEXTS)
def test_token_bytes_of_byte_level_tokens_are_exact(tiny: TransformersEngine, text: str) -> None:
    tokens = tiny.tokenizer.encode(text)
    assert b"".join(map(tiny.tokenizer.token_bytes, tokens)).decode() == text


def test_special_tokens_have_no_bytes_and_are_parsed(tiny: TransformersEngine) -> None:
    tokenizer = tiny.tokenizer
    end = tokenizer.special_tokens["eos_token"]
    [token] = tokenizer.encode(end)
    assert tokenizer.token_bytes(token) == b""
    assert len(tokenizer.encode("<tool_call>")) == 1
    assert tokenizer.token_bytes(tokenizer.vocabulary_size - 1) is not None
    assert tokenizer.chat_template
    assert not tokenizer.starts_with_space
    assert tokenizer.encode_prompt("Hi") == tokenizer.encode("Hi")


def sentencepiece_dir(directory: Path, **config: Any) -> Path:
    """A tokenizer of SentencePiece's kind: `▁` for spaces and tokens for single bytes."""
    pieces = {"<s>": 0, "</s>": 1, "<unk>": 2, **{f"<0x{i:02X}>": 3 + i for i in range(256)}}
    for piece in ("▁", "H", "i", "▁H", "▁Hi", "<tool>"):
        pieces[piece] = len(pieces)
    bpe = tokenizers.models.BPE(vocab=pieces, merges=[("▁", "H"), ("▁H", "i")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(bpe)
    backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])
    steps = tokenizers.decoders
    backend.decoder = steps.Sequence([steps.Replace("▁", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)])
    backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **config}), encoding="utf-8")
    return directory


@pytest.mark.parametrize("text", TEXTS[:6])
def test_token_bytes_of_sentencepiece_tokens_are_exact(tmp_path: Path, text: str) -> None:
    tokenizer = HubTokenizer.load(sentencepiece_dir(tmp_path), 300)
    data = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))
    assert data.decode() == " " + text
    assert tokenizer.starts_with_space


def test_begin_token_only_for_raw_prompts(tmp_path: Path) -> None:
    tokenizer = HubTokenizer.load(sentencepiece_dir(tmp_path), 300)
    assert tokenizer.encode("Hi") == [263]
    assert tokenizer.encode_prompt("Hi") == [0, 263]
    assert tokenizer.encode("<s><tool>") == [0, 264]
    assert (tokenizer.token_bytes(0), tokenizer.token_bytes(264), tokenizer.token_bytes(299)) == (b"", b"<tool>", b"")
    assert HubTokenizer.load(sentencepiece_dir(tmp_path, add_bos_token=False), 300).encode_prompt("Hi") == [263]


# ---- loading ------------------------------------------------------------------------------------


def test_dtype_auto_on_a_cpu(tmp_path: Path, small_dir: Path) -> None:
    for stored, wanted in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)):
        directory = tmp_path / str(stored)
        transformers.AutoModelForCausalLM.from_pretrained(small_dir, dtype=stored).save_pretrained(directory)
        shutil.copy(small_dir / "tokenizer.json", directory)
        assert load(directory)._runner._dtype == wanted
    assert load(small_dir, dtype="bfloat16")._runner._dtype == torch.bfloat16


def test_recommended_sampling_and_end_tokens(tmp_path: Path, small_dir: Path) -> None:
    directory = shutil.copytree(small_dir, tmp_path / "m")
    generation = {"do_sample": True, "temperature": 0.6, "top_k": 20, "eos_token_id": [4, 5]}
    (directory / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    engine = load(directory)
    assert engine.default_sampling == {"temperature": 0.6, "top_k": 20}
    assert engine._ends == {0, 4, 5}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"architectures": ["BertModel"]}, ArtifactError, "not a text generation model"),
        ({"model_type": "nonesuch"}, ArtifactError, "can't load this model"),
        ({"model_type": "nonesuch", "auto_map": {"AutoConfig": "evil.Evil"}}, ArtifactError, "launch it with --trust-remote-code"),
        ({"model_type": "t5"}, ArtifactError, "not a text generation model"),
        ({"num_hidden_layers": 3}, ArtifactError, r"lacks 9 weights of the model, the first is model\.layers\.2"),
        ({"hidden_size": 64}, ArtifactError, "weights can't be loaded"),
        ({"model_type": "mistral", "sliding_window": 128}, EngineError, "launch it with --context-length 128"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}},
            EngineError,
            "launch it with --context-length 64",
        ),
        ({"model_type": "mamba"}, EngineError, "full attention"),
    ],
)
def test_what_cannot_be_served_is_said_in_words(
    tmp_path: Path, small_dir: Path, changes: dict[str, Any], error: type[XiError], words: str
) -> None:
    directory = shutil.copytree(small_dir, tmp_path / "m")
    edit(directory / "config.json", **changes)
    (directory / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    with pytest.raises(error, match=words):
        load(directory)


def test_damaged_files_are_named(tmp_path: Path, small_dir: Path) -> None:
    directory = shutil.copytree(small_dir, tmp_path / "m")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="download it again"):
        load(directory)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"no model\.safetensors"):
        load(directory)


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path, small_dir: Path) -> None:
    directory = shutil.copytree(small_dir, tmp_path / "m")
    (directory / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="no tokenizer"):
        load(directory)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(small_dir: Path) -> None:
    with pytest.raises(UnknownOption, match="finds no CUDA device") as caught:
        load(small_dir, device="cuda:0")
    assert caught.value.param == "device"
