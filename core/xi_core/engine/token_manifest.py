"""The manifest of a `TokenEngine` whose sampler does all that xi asks of it, and lets tokens be left out. Called by plugins and engines."""

from __future__ import annotations

import importlib.util

from xi_core.wire.manifest import COMMON_FIELDS, STRUCTURED_FIELDS, YES, Ability, Manifest, no, of_fields


def token_manifest(install: str, *, ends: bool = True, **narrower: Ability) -> Manifest:
    """What a model honours, with or without a chat template; `narrower`: fields of chat and completions that are not wholly honoured.

    `ends`: whether the model has an end token. `install` is the line that installs llguidance, which structured output needs.
    """
    common = dict.fromkeys(COMMON_FIELDS, YES) | dict.fromkeys(STRUCTURED_FIELDS, _structured(install, ends)) | narrower
    return of_fields(
        chat={**common, "tools": YES, "tool_choice": YES, "parallel_tool_calls": YES, "chat_template_kwargs": YES},
        completions={**common, "echo": YES},
    )


def _structured(install: str, ends: bool) -> Ability:
    if importlib.util.find_spec("llguidance") is None:
        return no(f"llguidance is not installed: {install}")
    return YES if ends else no("the model names no end token, so that an answer that is complete could not end")
