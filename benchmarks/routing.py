"""Routers beside each other in a simulation: replicas of uneven speed, each with its own cache of prefixes; requests come at random.

The routers are the real classes, fed as the gateway feeds them. Everything is drawn from seeds, so that a figure here can be had again
to the last digit; no clock is read. One pair per seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from benchmarks.replica_model import Report, Workload, simulate
from benchmarks.results import Row, ratio, report
from benchmarks.route_policies import POLICIES

SEEDS = 9
REQUESTS = 6000
SPEEDS = (1.0, 1.0, 0.8, 0.6)

MILD = Workload(speeds=SPEEDS, load=0.6)
UNEVEN = Workload(speeds=(1.0, 1.0, 0.5, 0.5), load=0.6)
VERY = Workload(speeds=(1.0, 1.0, 0.5, 0.25), load=0.7)
SHARED = Workload(speeds=SPEEDS, load=5, groups=32, shared_blocks=128, own_blocks=(1, 6), answer=32)
SHARED_CALM = Workload(speeds=SPEEDS, load=1, groups=32, shared_blocks=128, own_blocks=(1, 6), answer=32)
ALONE = Workload(speeds=SPEEDS, load=1.3)
GREETING = Workload(speeds=SPEEDS, load=0.8, groups=1, shared_blocks=4)
SCENARIOS = {
    "speeds 1, 1, 0.8, 0.6": MILD,
    "speeds 1, 1, 0.5, 0.5": UNEVEN,
    "speeds 1, 1, 0.5, 0.25": VERY,
    "32 shared prefixes, more than can be served": SHARED,
    "32 shared prefixes, calm": SHARED_CALM,
    "nothing shared, more than can be served": ALONE,
    "one short prefix for all": GREETING,
}


class Study:
    """All policies on all scenarios, once per seed."""

    def __init__(self, seeds: int, requests: int) -> None:
        self.conditions = {"seeds": seeds, "requests": requests, "replicas": len(SPEEDS), "slots": SHARED.slots}
        self._runs = {
            (scenario, policy): [simulate(workload, make, seed, requests) for seed in range(seeds)]
            for scenario, workload in SCENARIOS.items()
            for policy, make in POLICIES.items()
        }

    def pairs(self, scenario: Workload, ours: str, theirs: str, figure: Callable[[Report], float]) -> list[tuple[float, float]]:
        """One figure of two policies, per seed."""
        name = next(name for name, workload in SCENARIOS.items() if workload is scenario)
        both = zip(self._runs[name, ours], self._runs[name, theirs], strict=True)
        return [(figure(one), figure(other)) for one, other in both]

    def rows(self) -> list[Row]:
        """The claims, and what there is beside them to see how far they go."""
        return [
            self._row("p99 latency, speeds 1, 1, 0.5, 0.5", "s", UNEVEN, "least_loaded", "round_robin", p99, most=0.7),
            self._row("p99 latency, speeds 1, 1, 0.5, 0.25", "s", VERY, "least_loaded", "round_robin", p99, most=0.7),
            # Without a target: round robin does well there, so that there is little to gain, as the oracle shows.
            self._row("p99 latency, speeds 1, 1, 0.8, 0.6", "s", MILD, "least_loaded", "round_robin", p99),
            self._row("p99 latency, speeds 1, 1, 0.8, 0.6", "s", MILD, "oracle", "round_robin", p99),
            self._row("hit rate, shared prefixes", "", SHARED, "prefix_affinity", "oracle", hits, least=0.9),
            self._row("hit rate, shared prefixes, calm", "", SHARED_CALM, "prefix_affinity", "oracle", hits, least=0.9),
            self._row("throughput, shared prefixes", "1/s", SHARED, "prefix_affinity", "least_loaded", rate, least=1.5),
            self._row("throughput, nothing shared", "1/s", ALONE, "prefix_affinity", "least_loaded", rate, least=0.95),
            self._row("p99 latency, one short prefix for all", "s", GREETING, "prefix_affinity", "least_loaded", p99, most=1.05),
            self._row("median latency, one short prefix for all", "s", GREETING, "prefix_affinity", "least_loaded", p50, most=1.05),
        ]

    def _row(
        self, what: str, unit: str, scenario: Workload, ours: str, theirs: str, figure: Callable[[Report], float],
        *, most: float | None = None, least: float | None = None,
    ) -> Row:  # fmt: skip
        return ratio(f"{ours}: {what}", unit, theirs, self.pairs(scenario, ours, theirs, figure), most=most, least=least)

    def show(self) -> None:
        """All policies, targets or not: medians over the seeds."""
        table = Table("scenario", "policy", "p50 s", "p99 s", "requests/s", "hit rate", title="routing: every policy, medians")
        for (scenario, policy), runs in self._runs.items():
            figures = [statistics.median(figure(run) for run in runs) for figure in (p50, p99, rate, hits)]
            table.add_row(scenario, policy, *(f"{figure:.3g}" for figure in figures), end_section=policy == list(POLICIES)[-1])
        Console(width=150).print(table)


def p50(run: Report) -> float:
    """Median latency in seconds."""
    return run.latency(0.5)


def p99(run: Report) -> float:
    """The 99th percentile of latency in seconds."""
    return run.latency(0.99)


def rate(run: Report) -> float:
    """Requests per second, until the last one is answered."""
    return run.rate


def hits(run: Report) -> float:
    """Share of prompt tokens that were found in a cache."""
    return run.hit_rate


def run(*, quick: bool, save: bool) -> bool:
    """Simulate and report. True when all targets are met."""
    study = Study(3 if quick else SEEDS, 2000 if quick else REQUESTS)
    study.show()
    return report("routing", study.rows(), study.conditions, save=save)
