"""Built-in parsers of model output."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.hookspecs import hookimpl
from xi_core.serving.parser import ParserInfo


@hookimpl
def xi_parsers() -> Iterable[ParserInfo]:
    """Tool calls in the form that Hermes and Qwen models write."""
    return [
        ParserInfo(
            name="hermes",
            kind="tool",
            parser="xi_plugins.parsers.hermes:HermesParser",
            description='Tool calls as <tool_call>{"name": …, "arguments": …}</tool_call>',
        )
    ]
