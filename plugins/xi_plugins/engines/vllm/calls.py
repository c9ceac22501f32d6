"""In which form a launch's calls are written, where vLLM can hold an answer to it. Pure; called by engine.py."""

from __future__ import annotations

from typing import Any

import msgspec

from xi_core.serving.parser import CallForm
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.vllm.plugin import CALL_FORMS

GRAMMARS = "guidance"
"""The backend of structured output whose dialect xi writes: llguidance's."""
_CONFIG = "structured_outputs_config"


def call_form(plan: LaunchPlan) -> CallForm | None:
    """The form of the launch's tool parser; None where xi doesn't know it, or an answer can't be held to it."""
    return None if no_grammars(plan) else CALL_FORMS.get(str(plan.options.get("tool_call_parser")))


def no_grammars(plan: LaunchPlan) -> str | None:
    """Why answers can't be held to grammars in llguidance's dialect; None where they can."""
    named = plan.options.get(f"{_CONFIG}.backend") or _config(plan.options.get(_CONFIG)).get("backend")
    if named == GRAMMARS or (named is None and _CONFIG not in plan.options):
        return None
    return "calls can be required with --structured-outputs-config.backend guidance only, which is xi's default"


def _config(given: Any) -> dict[str, Any]:
    """The option, which may be given as JSON."""
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except msgspec.DecodeError:  # vLLM's own parser will tell
            return {}
    return given if isinstance(given, dict) else {}
