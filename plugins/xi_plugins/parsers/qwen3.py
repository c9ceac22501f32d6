"""The `qwen3` reasoning parser: models that may think or not. Only what `<think>` opens, in the prompt or the answer, is reasoning."""

from __future__ import annotations

from xi_plugins.parsers.thinking import ThinkingParser


class Qwen3Parser(ThinkingParser):
    """With `enable_thinking: false` the template closes an empty block, and the answer is content from its first character."""
