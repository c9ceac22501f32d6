"""Chat templates: Jinja from model files, run in an immutable sandbox with caps on time and output.

The conventions are those of Hugging Face's `apply_chat_template` (https://huggingface.co/docs/transformers/chat_templating):
`messages`, `tools`, `add_generation_prompt`, the special tokens, `raise_exception`, `strftime_now`, and a `tojson` without HTML escapes.
"""

from __future__ import annotations

import json
import re
import threading
import time
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from xi_core.errors import ArtifactError, InvalidRequest

MAX_OUTPUT = 8 * 1024 * 1024
MAX_SECONDS = 5.0
_ASKS_FOR_NONE = re.compile(r"""content(?:['"]\])?\s+is\s+(?:not\s+)?none""", re.IGNORECASE)


class _TooLong(TemplateError):
    """The template ran over its caps."""


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks training spans; at inference only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Clock(threading.local):
    """Each thread's own deadline: long prompts are rendered beside the loop."""

    deadline = 0.0


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a clock: each call and look-up checks the deadline, so that no loop runs on for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = _Clock()

    def start_clock(self) -> None:
        """What this thread renders from here on may take `MAX_SECONDS`."""
        self._clock.deadline = time.monotonic() + MAX_SECONDS

    def _check(self) -> None:
        if time.monotonic() > self._clock.deadline:
            raise _TooLong(f"it ran longer than {MAX_SECONDS:.0f} s")

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return super().call(*args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._check()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._check()
        return super().getitem(obj, argument)


class ChatTemplate:
    """A compiled chat template. `special_tokens` are the names that it may use (`bos_token`, `eos_token`)."""

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None) -> None:
        self._environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self._environment.filters["tojson"] = _tojson
        self._environment.globals["raise_exception"] = _raise
        self._environment.globals["strftime_now"] = _strftime_now
        self._special = special_tokens or {}
        self.knows_no_content = _ASKS_FOR_NONE.search(source) is not None
        """Whether it tells a message without content (None) from one whose content is empty."""
        try:
            self._template = self._environment.from_string(source)
        except TemplateError as error:
            raise ArtifactError(f"the model's chat template can't be compiled: {error}") from None

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **variables: Any) -> str:
        """The prompt for `messages`, ending where the assistant's answer begins. Raises `InvalidRequest` where the template refuses."""
        names = {**self._special, **variables, "messages": messages, "tools": tools, "add_generation_prompt": True}
        self._environment.start_clock()
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(names):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT:
                    raise _TooLong(f"it wrote more than {MAX_OUTPUT} characters")
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError, ArithmeticError) as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}", param="messages") from None
        return "".join(parts)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
