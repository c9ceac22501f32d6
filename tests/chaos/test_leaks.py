"""Launches that come and go, and clients that leave: nothing is held afterwards.

`CHAOS_MINUTES` makes the churn last so long (default: until forty launches have been). An hour's also judges the slope of
each process's memory; a shorter one's says nothing."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
from town import BODY, UID, Load, Town, eventually

LAUNCHES = 40
WARM = 8
"""Launches before the first count: caches fill, pools grow to their size."""
SAMPLES = 10.0
"""Seconds between two looks at the memory."""
FOR_A_SLOPE = 60.0
"""Minutes of churn that a slope needs. The first third doesn't count: pools and caches still grow to their size."""
SLOPE = 0.01
"""Of a process's memory, per hour."""
PACE = 1.25
"""Seconds from one launch to the next, while memory is looked at: what has ended is remembered for ten minutes, so that a pace that changes
would show as memory that does. A machine that is busy with other things doesn't keep it."""
ABORTS = 300
STORY = {**BODY, "max_tokens": 2000, "stream": True}


class Held(NamedTuple):
    """What a process holds: descriptors, threads, children, and memory in MB."""

    descriptors: int
    threads: int
    children: int
    memory: float


def held(pid: int) -> Held:
    proc = Path(f"/proc/{pid}")
    threads = list((proc / "task").iterdir())
    children = sum(map(_children, threads))
    line = next(line for line in (proc / "smaps_rollup").read_text().splitlines() if line.startswith("Pss_Anon:"))
    return Held(len(list((proc / "fd").iterdir())), len(threads), children, int(line.split()[1]) / 1000)


def _children(task: Path) -> int:
    """Those that a thread has started; none where it has just ended."""
    try:
        return len((task / "children").read_text().split())
    except OSError:
        return 0


def all_held(town: Town) -> dict[str, Held]:
    """By role, of the processes that outlive launches."""
    gateway = next(process["pid"] for process in town.word["processes"] if process["role"] == "gateway")
    pids = {"supervisor": town.pid("supervisor"), "gateway": gateway, "launcher": town.processes["head"].pid}
    return {role: held(pid) for role, pid in (pids | town.pids("worker")).items()}


class Memory:
    """What each role's process holds, sampled while launches come and go: seconds since the beginning, and MB."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._began = self._next = time.monotonic()
        self._samples: dict[str, list[tuple[float, float]]] = {}

    def look(self) -> None:
        """Take a sample, unless one was taken within `SAMPLES`."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + SAMPLES
        for role, what in all_held(self._town).items():
            self._samples.setdefault(role, []).append((now - self._began, what.memory))

    def course(self) -> str:
        """By role, the mean of every ten minutes in MB: whether what has grown did so in a step, with the pace, or on and on."""
        lines = []
        for role, samples in self._samples.items():
            tens = itertools.groupby(samples, key=lambda sample: int(sample[0] / 600))
            lines.append(f"{role} " + " ".join(f"{statistics.mean(size for _, size in ten):.2f}" for _, ten in tens))
        return "; ".join(lines)

    def slopes(self) -> dict[str, float]:
        """By role, the slope without the first third, as a share of the mean per hour."""
        return {role: slope(samples[len(samples) // 3 :]) for role, samples in self._samples.items()}


def slope(samples: list[tuple[float, float]]) -> float:
    """Of seconds and sizes: the growth in an hour as a share of the mean size, by least squares."""
    times, sizes = zip(*samples, strict=True)
    return statistics.linear_regression(times, sizes).slope * 3600 / statistics.mean(sizes)


def churn(town: Town, uid: str) -> None:
    """Launch, ask, terminate."""
    town.launch(1, model_uid=uid)
    answer = town.http.post("/v1/chat/completions", json={**BODY, "model": uid})
    assert answer.status_code == 200, f"{answer.text}\n{town.said('head')[-4000:]}"
    ended = town.http.delete(f"/v1/models/{uid}")
    assert ended.is_success, f"{ended.text}\n{town.said('head')[-4000:]}"


def test_launches_that_come_and_go_leave_nothing(busy: Town) -> None:
    for n in range(WARM):
        churn(busy, f"warm-{n}")
    busy.settled(["w1", "w2"])
    before, processes = all_held(busy), busy.everyone()
    minutes = float(os.environ.get("CHAOS_MINUTES", "0"))
    end = time.monotonic() + 60 * minutes
    count, memory = 0, Memory(busy)
    with Load(busy, clients=1) as load:
        while count < LAUNCHES or time.monotonic() < end:
            began = time.monotonic()
            churn(busy, f"brief-{count}")
            count += 1
            memory.look()
            if minutes:
                time.sleep(max(0.0, began + PACE - time.monotonic()))
    load.all_well()
    if minutes >= FOR_A_SLOPE:
        slopes = memory.slopes()
        print(
            f"{count} launches in {minutes:.0f} minutes ({60 * minutes / PACE:.0f} at the full pace); memory per hour:",
            ", ".join(f"{role} {slope:+.2%}" for role, slope in slopes.items()),
            f"\nMB in each ten minutes: {memory.course()}",
        )
        assert max(slopes.values()) <= SLOPE, slopes
    busy.settled(["w1", "w2"])
    assert busy.everyone() == processes, "the processes that were there before, and no other"

    def as_before() -> bool:
        now = all_held(busy)
        return all(now[role][:3] <= tuple(n + slack for n, slack in zip(was[:3], (3, 0, 0), strict=True)) for role, was in before.items())

    eventually(as_before, 20.0, "descriptors, threads and children as before", lambda: f"{before}\n{all_held(busy)}")
    for role, was in before.items():
        grown = (all_held(busy)[role].memory - was.memory) / count
        assert grown < 0.1, f"{role} keeps {grown:.2f} MB of each launch"


def open_requests(town: Town) -> float:
    """Requests that the gateway or a replica still counts."""
    counted = ("xi_requests_open", "xi_requests_waiting", "xi_replica_running", "xi_replica_waiting", "xi_replica_tokens")
    return sum(value for name, value in town.metrics().items() if name.startswith(counted))


def leave(town: Town, number: int) -> None:
    """Ask for a story, and hang up: before the answer, at its head, or after some of it."""
    with town.visitor(timeout=10.0) as http:
        if number % 3 == 0:
            try:
                http.post("/v1/chat/completions", json={**STORY, "stream": False}, timeout=0.05)
            except httpx.TimeoutException:
                return
        with http.stream("POST", "/v1/chat/completions", json=STORY) as answer:
            assert answer.status_code == 200, answer.read()
            lines = answer.iter_lines()
            for _ in range(number % 7):
                next(lines)


def test_clients_that_leave_hold_no_slot(busy: Town) -> None:
    before = busy.pids("replica")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: leave(busy, n), range(24)))
    eventually(lambda: open_requests(busy) == 0, 10.0, "the first to be forgotten")
    gateway = next(process["pid"] for process in busy.word["processes"] if process["role"] == "gateway")
    was = held(gateway)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: leave(busy, n), range(ABORTS)))
    eventually(lambda: open_requests(busy) == 0, 2.0, "all to be forgotten: a second, and a beat", lambda: str(busy.metrics()))
    eventually(
        lambda: held(gateway).descriptors <= was.descriptors + 3, 10.0, "their connections to be closed", lambda: f"{was} {held(gateway)}"
    )
    assert busy.pids("replica") == before, "nothing was restarted"
    with Load(busy, clients=8) as load:
        load.more()
    load.all_well()
    assert busy.status()["state"] == "READY"
    assert busy.metrics()[f'xi_requests_waiting{{model="{UID}"}}'] == 0
