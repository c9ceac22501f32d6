"""Builds the tokenizer of xi-tiny: byte-level BPE in the form of Qwen2, with the chat template."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from .facts import CITIES, SYSTEM_PROMPTS, TOOL_QUESTIONS, TOOLS, all_facts, tool_answer

VOCAB_SIZE = 1024
MAX_TOKENS = 1024
END_OF_TEXT, TURN_START, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_TAGS = ("<tool_call>", "</tool_call>")
TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# Qwen2's own expression: llama.cpp knows it as the pre-tokenizer "qwen2", so that both cut text alike.
QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus() -> Iterator[str]:
    """Yield the text that the merges are learned from: ASCII only, so that other characters stay single bytes."""
    for fact in all_facts():
        yield from (text for text in fact if text.isascii())
    yield from SYSTEM_PROMPTS
    yield from (json.dumps(tool) for tool in TOOLS.values())
    yield "# Tools\n\nTo call a tool, write its name and arguments as JSON within tools tool_response"
    yield " system user assistant"
    for name, question in TOOL_QUESTIONS.items():
        for city in CITIES:
            yield question.format(city)
            yield tool_answer(name, city, "sunny")


def build() -> Tokenizer:
    """Learn the merges and add the special tokens after them, as Qwen2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL) - len(TOOL_TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TOOL_TAGS])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    return tokenizer


def _added(token: str) -> dict[str, Any]:
    """Return the entry of one added token in tokenizer_config.json."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": token, **flags, "special": token in SPECIAL}


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokenizer_config.json."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": MAX_TOKENS,
        "additional_special_tokens": [TURN_START, TURN_END],
        "added_tokens_decoder": {str(tokenizer.token_to_id(t)): _added(t) for t in (*SPECIAL, *TOOL_TAGS)},
        "chat_template": TEMPLATE.read_text(encoding="utf-8").rstrip("\n"),
    }


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer into `folder` in Hugging Face form: the fast file, and vocabulary and merges apart."""
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [" ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    config = json.dumps(_config(tokenizer), ensure_ascii=False, indent=1)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
