"""What a chat template's text tells of its model's answers: the form of its tool calls, and how it thinks. Pure; called by `inspect`."""

from __future__ import annotations

from msgspec import Struct

_HARMONY = "<|channel|>"
_TOOL_MARKS = (
    (_HARMONY, "gpt-oss-tools"),
    ("<｜tool▁calls▁begin｜>", "deepseek"),
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>", "hermes"),
    ("func_name1(params_name1=", "pythonic"),
    ("<|python_tag|>", "llama3_json"),
    ('"parameters": dictionary of argument name', "llama3_json"),
)
"""What the calls of each parser begin with, or what templates tell the model to write; the first that is found counts."""
_OTHER_FORMS = ("<function=", "<arg_key>")
"""Marks of other forms within `<tool_call>`, which no parser of xi's reads."""
_SWITCHES = ("enable_thinking", "thinking is defined")


class Traits(Struct, frozen=True):
    """Names of built-in parsers, None where there is none; `hybrid`: the template has a switch for thinking."""

    tool_parser: str | None = None
    reasoning_parser: str | None = None
    hybrid: bool = False

    @property
    def abilities(self) -> list[str]:
        """What of it people want to know when they choose a model."""
        found = {"tools": self.tool_parser, "reasoning": self.reasoning_parser, "hybrid": self.hybrid}
        return [name for name, value in found.items() if value]


def traits_of(template: str) -> Traits:
    """The traits of a model with this chat template."""
    tool = next((parser for mark, parser in _TOOL_MARKS if mark in template), None)
    if tool == "hermes" and any(mark in template for mark in _OTHER_FORMS):
        tool = None
    reasoning = _reasoning(template)
    return Traits(tool, reasoning, reasoning is not None and any(word in template for word in _SWITCHES))


def _reasoning(template: str) -> str | None:
    if _HARMONY in template:
        return "gpt-oss"
    if "<think>" not in template and "</think>" not in template:
        return None
    return "deepseek-r1" if "<｜Assistant｜>" in template else "qwen3"
