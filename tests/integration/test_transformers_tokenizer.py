"""The tokenizers of the engine `transformers`: exact bytes of tokens, special tokens, long texts."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers

from xi_plugins.engines.transformers.engine import TransformersEngine
from xi_plugins.engines.transformers.tokenizer import HubTokenizer

pytestmark = [pytest.mark.engine("transformers"), pytest.mark.usefixtures("one_torch_thread")]

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
