"""Turns dialogues into token ids with labels, packs them into batches, and measures how sure a model is of them."""

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from .dialogues import Dialogue
from .tokenizer import END_OF_TEXT, TURN_END, TURN_START

IGNORED = -100
BATCH_TOKENS = 2048


class Example(NamedTuple):
    """Token ids, and for each one the id to learn there or IGNORED."""

    ids: list[int]
    labels: list[int]

    def split(self) -> tuple[list[int], list[int]]:
        """Return the prompt's ids and the answer's, of an example that learns its last turn alone."""
        start = next(at for at, label in enumerate(self.labels) if label != IGNORED)
        return self.ids[:start], [label for label in self.labels[start:] if label != IGNORED]


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of one token of the vocabulary."""
    return tokenizer.get_vocab()[token]


def encode(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue) -> Example:
    """Render a dialogue by the chat template and label the assistant's turns that are to be learned."""
    tools: list[Any] | None = dialogue.tools
    text = tokenizer.apply_chat_template(dialogue.messages, tools=tools, tokenize=False)
    ids: list[int] = tokenizer.encode(text)
    header: list[int] = tokenizer.encode(f"{TURN_START}assistant\n")
    turn_end = token_id(tokenizer, TURN_END)
    starts = [at + len(header) for at in range(len(ids)) if ids[at : at + len(header)] == header]
    skipped = sum(message["role"] == "assistant" for message in dialogue.messages[: dialogue.learn_from])
    labels = [IGNORED] * len(ids)
    for start in starts[skipped:]:
        stop = ids.index(turn_end, start) + 1
        labels[start:stop] = ids[start:stop]
    return Example(ids, labels)


def batches(examples: list[Example], rng: Random) -> Iterator[list[Example]]:
    """Yield every example once, those of like length together, the batches in random order."""
    ordered = sorted(examples, key=lambda example: len(example.ids) + rng.random() * 8)
    cut: list[list[Example]] = [[]]
    for example in ordered:
        if (len(cut[-1]) + 1) * (len(example.ids) + 8) > BATCH_TOKENS and cut[-1]:
            cut.append([])
        cut[-1].append(example)
    rng.shuffle(cut)
    yield from cut


def label_logits(model: Qwen2ForCausalLM, pad: int, batch: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits that predict the labelled tokens, those tokens, and the row of the batch that each is in."""
    width = max(len(example.ids) for example in batch)
    ids = torch.tensor([e.ids + [pad] * (width - len(e.ids)) for e in batch])
    labels = torch.tensor([e.labels + [IGNORED] * (width - len(e.labels)) for e in batch])[:, 1:]
    # Padding is on the right and attention is causal, so no mask is needed; logits are made only where one is learned.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    learned = labels != IGNORED
    return model.lm_head(hidden[learned]), labels[learned], learned.nonzero()[:, 0]


def margins(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> list[float]:
    """Return for each example by how much its surest wrong token loses; above zero, greedy decoding is right."""
    pad = token_id(tokenizer, END_OF_TEXT)
    found: list[float] = []
    model.train(False)
    with torch.no_grad():
        for at in range(0, len(examples), 32):
            batch = examples[at : at + 32]
            logits, targets, rows = label_logits(model, pad, batch)
            right = logits.gather(1, targets[:, None])[:, 0]
            wrong = logits.scatter(1, targets[:, None], float("-inf")).amax(1)
            found += [float((right - wrong)[rows == row].min()) for row in range(len(batch))]
    model.train()
    return found
