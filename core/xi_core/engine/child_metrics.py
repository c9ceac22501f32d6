"""From a child server's metrics to `EngineCounters`. Pure; `child_server.py` asks for them now and then, never on a token's path.

The text is Prometheus': https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from msgspec.structs import fields

from xi_core.wire.frames import EngineCounters

_TYPES = {one.name: one.type for one in fields(EngineCounters)}


def counters_of(text: str, names: Mapping[str, str]) -> EngineCounters | None:
    """The counters that `text` has: `names` maps fields of `EngineCounters` to metrics. None where it has none of them.

    A metric with several label sets (vLLM has one for each data parallel rank) counts as their sum, a share as the largest.
    """
    found = {field: values for field, name in names.items() if (values := _values(text, name))}
    if not found:
        return None
    counters = EngineCounters()
    for field, values in found.items():
        setattr(counters, field, max(values) if _TYPES[field] is float else int(sum(values)))
    return counters


def _values(text: str, name: str) -> list[float]:
    """A metric's values, one per label set."""
    lines = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})?[ \t]+(\S+)", text, re.MULTILINE)
    return [value for line in lines if math.isfinite(value := _number(line))]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
