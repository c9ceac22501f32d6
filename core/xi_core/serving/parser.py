"""Parsers of model output: the interface that tool and reasoning parsers implement, and their descriptor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from msgspec import Struct, field


class ToolCallDelta(Struct, kw_only=True, omit_defaults=True):
    """A piece of a tool call: `name` on the first piece of each call, then pieces of its arguments' JSON text."""

    index: int
    name: str | None = None
    arguments: str = ""


class Parsed(Struct):
    """What a parser made of some text: content to show, reasoning, and pieces of tool calls."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


class OutputParser(ABC):
    """Splits the text of one choice as it streams. One instance per choice. Output is data: it is parsed, never evaluated."""

    @abstractmethod
    def feed(self, text: str) -> Parsed:
        """What is certain now that `text` has come; the rest is held back."""

    @abstractmethod
    def finish(self) -> Parsed:
        """What was held back: the text has ended. Never raises on malformed output; what doesn't parse is content."""


class ParserInfo(Struct, kw_only=True):
    """Descriptor of a parser: its name, kind and `module:Class` (an `OutputParser`)."""

    name: str
    kind: Literal["tool", "reasoning"]
    parser: str
    description: str = ""
