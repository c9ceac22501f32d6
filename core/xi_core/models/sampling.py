"""Sampling values that a model's own files recommend, for what requests leave open. One that no request may have is left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from xi_core.api.openai.requests import RepetitionPenalty, Share, Temperature, TopP

log = logging.getLogger(__name__)

_FIELDS: dict[str, Any] = {
    "temperature": Temperature,
    "top_p": TopP,
    "top_k": Annotated[int, Meta(ge=-1)],
    "min_p": Share,
    "repetition_penalty": RepetitionPenalty,
}


def recommended(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of `values` those that are sampling fields, each as a request might have it."""
    found: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        value = values.get(name)
        if value is None:
            continue
        try:
            found[name] = msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            log.warning("the model's files recommend %s %r, which is left out: %s", name, value, error)
    return found
