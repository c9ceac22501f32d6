"""Prometheus' text to `EngineCounters`."""

from __future__ import annotations

from xi_core.engine.child_metrics import counters_of
from xi_core.wire.frames import EngineCounters

NAMES = {"running": "s:running", "cache_usage": "s:usage", "generated_tokens": "s:tokens_total"}
TEXT = """# HELP s:running Running.
# TYPE s:running gauge
s:running{rank="0",model="a}b{"} 2.0
s:running{rank="1"} 3.0 1700000000000
s:usage{rank="0"} 0.25
s:usage{rank="1"} 0.75
s:tokens_total 1.2e+03
s:tokens_created 9.0
s:running_more 70
"""


def test_counts_are_added_and_of_shares_the_largest_counts() -> None:
    assert counters_of(TEXT, NAMES) == EngineCounters(running=5, cache_usage=0.75, generated_tokens=1200)


def test_metrics_that_are_not_there() -> None:
    assert counters_of(TEXT, {"waiting": "s:waiting"}) is None
    assert counters_of("", NAMES) is None
    assert counters_of(TEXT, {**NAMES, "waiting": "s:waiting"}) == EngineCounters(running=5, cache_usage=0.75, generated_tokens=1200)


def test_values_that_are_no_numbers_are_left_out() -> None:
    assert counters_of("s:running NaN\ns:usage{} x\ns:tokens_total +Inf", NAMES) is None
