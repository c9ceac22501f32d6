"""Structured output in SGLang's words: every grammar goes as `ebnf`, which its llguidance backend reads as llguidance's own dialect too.

So that JSON, expressions and choices mean the same here as in xi's other engines: SGLang's `regex` has Unicode's digits, and its
`response_format` blanks without end. Sources: `protocol.py` of its OpenAI server, and `constrained/llguidance_backend.py`.
"""

from __future__ import annotations

from typing import Any

from xi_core.engine.lark import first_line, to_lark
from xi_core.errors import InvalidRequest
from xi_core.serving.structured import grammar_in

_MOST_ITEMS = 20_000
_MARK = "%llguidance {}\n"
"""What tells llguidance that the text is its own dialect, not GBNF."""


def with_grammar(body: dict[str, Any]) -> dict[str, Any]:
    """`body` with its `response_format` or `structured_outputs` as SGLang takes it. Raises `InvalidRequest`, naming the part."""
    grammar = grammar_in(body)
    if grammar is None:
        return body
    import llguidance  # SGLang brings it; a launch that claims these fields has it

    text = _MARK + to_lark(llguidance, grammar, lambda name: None)
    limits = llguidance.LLParserLimits(verbose_errors=False, max_items_in_row=_MOST_ITEMS, step_max_items=10 * _MOST_ITEMS)
    wrong = llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_lark(text), limits=limits)
    if wrong:
        raise InvalidRequest(f"{grammar.param}: {first_line(wrong)}", param=grammar.param)
    rest = {name: value for name, value in body.items() if name not in ("response_format", "structured_outputs")}
    return {**rest, "ebnf": text}
