"""Parsers of model output: the interface that tool and reasoning parsers implement, and their descriptor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from msgspec import Struct, field


class ToolCallDelta(Struct, kw_only=True, omit_defaults=True):
    """A piece of a tool call: `name` on the first piece of each call, then pieces of its arguments' JSON text."""

    index: int
    name: str | None = None
    arguments: str = ""
    id: str | None = None
    """With the name, where the engine has given the call one: a model may read it in the next prompt."""


class Parsed(Struct):
    """What a parser made of some text: content to show, reasoning, and pieces of tool calls."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


class CallForm(Struct, frozen=True, kw_only=True):
    """How a model writes its calls: BEGIN (BEFORE name MIDDLE arguments AFTER) BETWEEN (…) END. Special tokens stand by their names."""

    begin: str = ""
    before: str
    middle: str
    after: str
    between: str = ""
    end: str = ""
    python: bool = False
    """Whether the arguments are `name=value` pairs in Python's syntax, and not a JSON object."""
    several: bool = True
    """Whether an answer may hold more than one call."""
    trigger: str = ""
    """What in free text begins calls; BEGIN and BEFORE start with it. Empty: only a whole answer can be one."""
    first: str = ""
    """The character that only an answer of calls begins with, where there is no trigger."""


class Thought(Struct, frozen=True, kw_only=True):
    """How a model writes reasoning before its answer. Special tokens stand by their names."""

    before: str = ""
    """What opens it; empty where the prompt has opened it already."""
    end: str
    """What ends it."""
    after: str = ""
    """What stands between it and the answer."""
    optional: bool = False
    """Whether the model may answer at once."""


class OutputParser(ABC):
    """Splits the text of one choice as it streams. One instance per choice. Output is data: it is parsed, never evaluated."""

    specials: ClassVar[tuple[str, ...]] = ()
    """Special tokens that the parser reads. They have no text of their own; for such a parser it is put into the text."""

    def begin(self, prompt: str) -> None:  # noqa: B027 - most parsers need not know
        """Called before the first `feed` with the end of the prompt, where a template may have opened something already."""

    def skip(self) -> str:
        """Text that ends the reasoning at once, after `begin`, so that something else can begin. Of reasoning parsers."""
        return ""

    def thought(self) -> Thought | None:
        """The reasoning that the model would write here, after `begin`; None where it would write none. Of reasoning parsers."""
        return None

    def lead(self) -> str:
        """What the model writes before its content, where that is held to a form. Of reasoning parsers."""
        return ""

    def form(self) -> CallForm | None:
        """How calls are written, after `begin`; None where that can't be said: then no call is held to its tool's schema. Of tool parsers.

        What `force` gives must be what a call of this form begins with.
        """
        return None

    def force(self, name: str | None) -> str | None:
        """Text that begins a call of the function `name`, or where it is None of any function; None if there is none. After `begin`.

        Of tool parsers. With a name, it goes on to where the arguments begin. It ends where the model's own tokens end too: not within
        ` {"`, which is one token to many models, and which they write worse when half of it stands there.
        """
        return None

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
