"""Answers that several engines give to `match`, and with them to `probe`. Called by plugins."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.engine.info import HostInfo, Support
from xi_core.models.family import ModelSpec


def not_on_linux(name: str, host: HostInfo) -> Support | None:
    """The refusal of an engine that runs on Linux only; None where this is Linux."""
    if host.system.lower() == "linux":
        return None
    return Support(ok=False, reason=f"{name} runs on Linux, and this is {host.system}")


def wrong_format(name: str, spec: ModelSpec, formats: Iterable[str]) -> Support | None:
    """The refusal of a model in none of `formats`; None for others."""
    return None if spec.format in formats else Support(ok=False, reason=f"{name} runs {', '.join(formats)}, not format {spec.format}")


def wrong_type(spec: ModelSpec, others: Iterable[str]) -> Support | None:
    """The refusal of a model of a type that is neither LLM nor one of `others`; None for those."""
    types = ("LLM", *others)
    return None if spec.model_type in types else Support(ok=False, reason=f"model type {spec.model_type} is none of {', '.join(types)}")
