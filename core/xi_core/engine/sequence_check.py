"""Whether a sequence can join a batch at all: what every `TokenEngine` asks in `add`, whoever calls it."""

from __future__ import annotations

from collections.abc import Collection

from xi_core.engine.base import SamplingParams
from xi_core.errors import ContextLengthExceeded, InvalidRequest


def check_sequence(prompt: list[int], sampling: SamplingParams, context: int, vocabulary: int) -> None:
    """`context`: most tokens of prompt and answer together; `vocabulary`: ids are below it.

    Raises `InvalidRequest`, and `ContextLengthExceeded` for a prompt that leaves no room for an answer.
    """
    if not prompt:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if len(prompt) >= context:
        raise ContextLengthExceeded(f"the prompt has {len(prompt)} tokens; the context holds {context}, answer included", param="prompt")
    check_ids("prompt", prompt, vocabulary)
    check_ids("logit_bias", sampling.logit_bias, vocabulary)


def check_ids(param: str, ids: Collection[int], vocabulary: int) -> None:
    """Raises `InvalidRequest` for the first id that is no token's."""
    if ids and not (min(ids) >= 0 and max(ids) < vocabulary):
        wrong = next(id for id in ids if not 0 <= id < vocabulary)
        raise InvalidRequest(f"{param}: token id {wrong} is outside the vocabulary of {vocabulary}", param=param)
