"""The metrics registry's text, and what engines count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from xi_core.wire.frames import EngineCounters, Load
from xi_server.engine_metrics import observe_engines
from xi_server.metrics import Counter, Histogram, Metrics


def test_counter_lines_escape_labels() -> None:
    counter = Counter("c", "Text.", "model")
    counter.add('a"b\\c\nd', by=2)
    counter.add("x")
    counter.add("x")
    assert list(counter.lines()) == ['c{model="a\\"b\\\\c\\nd"} 2', 'c{model="x"} 2']


def test_histogram_buckets_are_cumulative() -> None:
    histogram = Histogram("h", "Text.", "m")
    for value in (0.004, 0.005, 0.2, 10_000.0):
        histogram.observe(value, "a")
    lines = list(histogram.lines())
    assert lines[0] == 'h_bucket{m="a",le="0.005"} 2'
    assert 'h_bucket{m="a",le="0.25"} 3' in lines
    assert 'h_bucket{m="a",le="600"} 3' in lines
    assert lines[-3:] == ['h_bucket{m="a",le="+Inf"} 4', 'h_sum{m="a"} 10000.209', 'h_count{m="a"} 4']


def test_every_metric_has_help_and_type() -> None:
    metrics = Metrics()
    metrics.observe("gauge", "g", "A gauge.", (), lambda: [((), 1.5)])
    text = metrics.render()
    assert text.endswith("# HELP g A gauge.\n# TYPE g gauge\ng 1.5\n")
    assert text.count("# HELP") == text.count("# TYPE") == 8


def test_counters_of_engines_by_model_and_replica() -> None:
    metrics = Metrics()
    counting = SimpleNamespace(load=Load(engine=EngineCounters(running=3, cache_usage=0.25, prefix_queries=8, prefix_hits=2)))
    links = {"m-0": counting, "m-1": SimpleNamespace(load=Load())}
    observe_engines(metrics, cast(Any, SimpleNamespace(models={"m": SimpleNamespace(links=links)})))
    lines = metrics.render().splitlines()
    assert 'xi_engine_running{model="m",replica="m-0"} 3' in lines
    assert 'xi_engine_cache_usage_ratio{model="m",replica="m-0"} 0.25' in lines
    assert 'xi_engine_prefix_cache_queries_total{model="m",replica="m-0"} 8' in lines
    assert 'xi_engine_prefix_cache_hits_total{model="m",replica="m-0"} 2' in lines
    assert "# TYPE xi_engine_generated_tokens_total counter" in lines
    assert not [line for line in lines if "m-1" in line]
