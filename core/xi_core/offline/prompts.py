"""What `LLM`'s methods may be given as prompts, texts and conversations, and as one or several of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from xi_core.errors import InvalidRequest

Prompt: TypeAlias = str | list[int] | Mapping[str, Any]
"""A text, token ids, or as vLLM has it `{"prompt": text}` or `{"prompt_token_ids": ids}`."""
Conversation: TypeAlias = Sequence[Mapping[str, Any]]
PART = 256
"""Documents of one request: more are several, which replicas share."""


def prompts_of(given: Prompt | Iterable[Prompt]) -> list[str | list[int]]:
    """Every prompt as a text or token ids. Raises `InvalidRequest` for what is neither."""
    if isinstance(given, str | Mapping):
        return [_prompt(given)]
    several: list[Any] = list(given)  # once: what can be read only once is no prompt shorter then
    one = bool(several) and all(isinstance(part, int) for part in several)
    return [_prompt(several)] if one else [_prompt(prompt) for prompt in several]


def pairs_of(first: str | Sequence[str], second: str | Sequence[str]) -> list[tuple[str, list[str]]]:
    """Queries, each with some of its documents: one query with all of them, in parts, or as many queries as documents, each with its own.

    Raises `InvalidRequest` for numbers that don't go together.
    """
    queries = [first] if isinstance(first, str) else list(first)
    documents = [second] if isinstance(second, str) else list(second)
    if len(queries) == 1 and documents:
        return [(queries[0], documents[at : at + PART]) for at in range(0, len(documents), PART)]
    if not documents or len(queries) != len(documents):
        raise InvalidRequest(
            f"{len(queries)} queries for {len(documents)} documents; give one query, or one for each document", param="queries"
        )
    return [(query, [document]) for query, document in zip(queries, documents, strict=True)]


def _prompt(prompt: Any) -> str | list[int]:
    found = (prompt.get("prompt_token_ids") or prompt.get("prompt")) if isinstance(prompt, Mapping) else prompt
    if isinstance(found, str):
        return found
    if isinstance(found, Sequence) and found and all(isinstance(one, int) for one in found):
        return list(found)
    raise InvalidRequest(f"a prompt is a text or a list of token ids, not {str(prompt)[:80]!r}", param="prompts")
