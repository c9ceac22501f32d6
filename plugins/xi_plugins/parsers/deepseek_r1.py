"""The `deepseek-r1` reasoning parser: models that always think, so that all before `</think>` is reasoning, opened by a tag or not."""

from __future__ import annotations

from xi_plugins.parsers.thinking import ThinkingParser


class DeepseekR1Parser(ThinkingParser):
    """An answer that never closes its reasoning is all reasoning, unless the template has closed it before."""

    always = True
