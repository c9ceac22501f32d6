"""What the gateway counts, and `/metrics` in Prometheus' text format. A registry of our own keeps the base install small."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal, TypeVar

T = TypeVar("T")

Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float]]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

KEPT = 600.0
"""Seconds for which what was counted of a model that is gone is still shown: time enough for whoever collects it to see the last of it."""
SWEEP = 10.0
"""Seconds between two looks for models that are gone."""


class Counter:
    """A number per set of label values, one of which is the model, that only grows."""

    kind = "counter"

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self.values: dict[Labels, float] = {}

    def add(self, *labels: str, by: float = 1) -> None:
        """Count `by` more under these label values."""
        self.values[labels] = self.values.get(labels, 0) + by

    def models(self) -> set[str]:
        """The models of which something was counted."""
        return _models(self.labels, self.values)

    def forget(self, gone: Collection[str]) -> None:
        """Drop what was counted of these models."""
        self.values = _without(gone, self.labels, self.values)

    def lines(self) -> Iterator[str]:
        """Sample lines."""
        for labels, value in sorted(self.values.items()):
            yield _line(self.name, self.labels, labels, value)


class Histogram:
    """Observations per set of label values, one of which is the model, in buckets of seconds."""

    kind = "histogram"

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count one observation, in seconds."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(SECONDS) + 1)
        counts[bisect_left(SECONDS, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + value

    def models(self) -> set[str]:
        """The models of which something was observed."""
        return _models(self.labels, self._counts)

    def forget(self, gone: Collection[str]) -> None:
        """Drop what was observed of these models."""
        self._counts = _without(gone, self.labels, self._counts)
        self._sums = _without(gone, self.labels, self._sums)

    def lines(self) -> Iterator[str]:
        """Sample lines: cumulative buckets, sum and count."""
        names = (*self.labels, "le")
        for labels, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip((*SECONDS, float("inf")), counts, strict=True):
                total += count
                yield _line(f"{self.name}_bucket", names, (*labels, "+Inf" if bound == float("inf") else f"{bound:g}"), total)
            yield _line(f"{self.name}_sum", self.labels, labels, self._sums[labels])
            yield _line(f"{self.name}_count", self.labels, labels, total)


class Observed:
    """Numbers that are looked up when somebody asks for the metrics."""

    def __init__(self, kind: Literal["gauge", "counter"], name: str, text: str, labels: Labels, read: Callable[[], Samples]) -> None:
        self.kind = kind
        self.name = name
        self.text = text
        self.labels = labels
        self._read = read

    def lines(self) -> Iterator[str]:
        """Sample lines."""
        for labels, value in self._read():
            yield _line(self.name, self.labels, labels, value)


class Metrics:
    """The gateway's counters and histograms; `observe` adds numbers that live elsewhere."""

    def __init__(self) -> None:
        self.requests = Counter("xi_requests_total", "Requests answered, by route, model and HTTP status.", "route", "model", "status")
        self.tokens = Counter("xi_tokens_total", "Tokens of answers that have ended.", "model")
        """Shown together with those of open answers, which is why it isn't in the list below."""
        self.retries = Counter("xi_retries_total", "Times that a request was sent to another replica.", "model")
        self.refusals = Counter("xi_requests_refused_total", "Requests refused because the model's queue was full.", "model")
        self.losses = Counter("xi_replica_losses_total", "Replicas that this gateway lost.", "model")
        self.slow_clients = Counter("xi_slow_clients_total", "Requests ended because the client read too slowly.", "model")
        self.ttft = Histogram("xi_time_to_first_token_seconds", "From the request's arrival to the first bytes of its answer.", "model")
        self.duration = Histogram("xi_request_duration_seconds", "From the request's arrival to the end of its answer.", "route", "model")
        self._own: list[Counter | Histogram] = [
            self.requests, self.retries, self.refusals, self.losses, self.slow_clients, self.ttft, self.duration,
        ]  # fmt: skip
        self._all: list[Counter | Histogram | Observed] = [*self._own]
        self._gone: dict[str, float] = {}
        """When each model was first seen to be gone."""
        self._next_sweep = 0.0

    def observe(self, kind: Literal["gauge", "counter"], name: str, text: str, labels: Labels, read: Callable[[], Samples]) -> None:
        """Show what `read` returns under `name`."""
        self._all.append(Observed(kind, name, text, labels, read))

    @property
    def declared(self) -> list[Counter | Histogram | Observed]:
        """All that are shown, in their order, counted or not."""
        return [*self._all]

    def sweep(self, present: Collection[str], now: float) -> None:
        """Forget models that have been gone for `KEPT` seconds, of those that are not `present`: launches come and go without end."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP
        own = [*self._own, self.tokens]
        counted = {uid for metric in own for uid in metric.models()} - {""}  # no model: requests that named none that there is
        self._gone = {uid: self._gone.get(uid, now) for uid in counted if uid not in present}
        old = [uid for uid, since in self._gone.items() if now - since >= KEPT]
        if old:
            for metric in own:
                metric.forget(old)

    def render(self) -> str:
        """Everything, in Prometheus' text format."""
        lines: list[str] = []
        for metric in self._all:
            lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


def _models(names: Labels, values: Iterable[Labels]) -> set[str]:
    at = names.index("model")
    return {labels[at] for labels in values}


def _without(gone: Collection[str], names: Labels, values: dict[Labels, T]) -> dict[Labels, T]:
    at = names.index("model")
    return {labels: value for labels, value in values.items() if labels[at] not in gone}


def _line(name: str, labels: Labels, values: Labels, value: float) -> str:
    pairs = ",".join(f'{label}="{_escaped(text)}"' for label, text in zip(labels, values, strict=True))
    number = str(int(value)) if float(value).is_integer() else f"{value:.9g}"
    return f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
