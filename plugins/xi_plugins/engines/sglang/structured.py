"""Structured output and calls in SGLang's words: grammars go as `ebnf`, which its llguidance backend reads in llguidance's dialect too.

So that JSON, expressions and choices mean the same here as in xi's other engines: SGLang's `regex` has Unicode's digits, its
`response_format` blanks without end, and the arguments of calls that it forces itself were no whole JSON. Sources: `protocol.py` of its
OpenAI server, and `constrained/llguidance_backend.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xi_core.engine.lark import checked_lark
from xi_core.serving.parser import CallForm
from xi_core.serving.server_calls import server_calls
from xi_core.serving.structured import grammar_in


def with_grammar(body: dict[str, Any], form: CallForm | None, specials: Mapping[str, int]) -> dict[str, Any]:
    """`body` with its `response_format`, `structured_outputs` or calls as SGLang takes them. Raises `InvalidRequest`, naming the part.

    `form` and `specials` are those of `server_calls`.
    """
    grammar = grammar_in(body)
    if grammar is None:
        rest, text = server_calls(body, form, specials)
    else:
        rest = {name: value for name, value in body.items() if name not in ("response_format", "structured_outputs")}
        text = checked_lark(grammar, lambda name: None)
    return {**rest, "ebnf": text} if text else rest
