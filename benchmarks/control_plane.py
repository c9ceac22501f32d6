"""The control plane alone: 1,000 simulated workers of 8 devices and 5,000 replicas in the real lifecycle, and the real links' beats.

What is timed is what the supervisor does for each event, on one core: the lifecycle's step, the routing table and the next wake. Times are
of CPU, so that a busy machine changes them little. That leaves the system's and ZeroMQ's part out: `tcp_links` measures it all together.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from statistics import quantiles

import msgspec

from benchmarks import tcp_links
from benchmarks.results import Row, at_most, report
from benchmarks.simulated import DEVICES, ENGINE, GIB, LAUNCHES, MEMORY, MODEL, REPLICAS, WORKERS, devices_of, name_of, ready, spec_of
from xi_core.cluster import messages as m
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.placement import Assignment, ClusterView, Placement, PlacementRequest, Rejection, Scheduler
from xi_core.cluster.replicas import Action, Start
from xi_core.cluster.supervisor import COLLECT
from xi_core.cluster.table import RoutingTable
from xi_core.errors import NoPlacement
from xi_core.transport.rpc import BEAT, MISSED, LinkServer, dial
from xi_core.transport.vocabulary import Vocabulary
from xi_plugins.schedulers.idle_first import IdleFirst
from xi_plugins.transports.inproc import InprocTransport

MILLI, MICRO = 1e3, 1e6
BEATS = 200
"""Words of workers on their devices between two placements."""
VOCABULARY = Vocabulary(m.ANSWERS, m.NOTICES)
SILENCE = BEAT * (MISSED + 1)
"""Seconds after which a dead worker's link is given up, at the latest."""


class Fill(Scheduler):
    """Goes round the workers; fills the cluster in a moment. A replica that moves is placed by `idle_first`."""

    def __init__(self) -> None:
        self._placed = 0

    def place(self, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
        if self._placed == LAUNCHES * REPLICAS:
            return IdleFirst().place(request, cluster)
        number, self._placed = self._placed, self._placed + 1
        worker = cluster.workers[number % WORKERS]
        return Placement(assignments=(Assignment(worker.worker, (worker.devices[number // WORKERS].device,)),))


class Plane:
    """A lifecycle and a routing table, with the CPU time of each step."""

    def __init__(self) -> None:
        self.core = Lifecycle(IdleFirst(), "e", launch_timeout=600.0, grace=10.0, schedulers={"fill": Fill()})
        self.table = RoutingTable("e")
        for number in range(WORKERS):
            member = Member(name_of(number), "i", devices_of(), (ENGINE,))
            self.do(lambda member=member: self.core.worker_joined(0.0, member, []))

    def do(self, step: Callable[[], list[Action]]) -> tuple[float, list[Start]]:
        """One event, as the executor takes it: seconds of CPU, and the starts that came of it."""
        began = time.process_time()
        actions = step()
        self.table.change({uid: launch.route() if launch is not None else None for uid, launch in self.core.changes().items()})
        self.core.next_wake()
        return time.process_time() - began, [action for action in actions if isinstance(action, Start)]

    def launch(self, uid: str, replicas: int, now: float = 0.0, scheduler: str | None = None) -> float:
        """Launch, and have it READY. Answers the seconds of the launch alone."""
        spec = spec_of(uid, replicas, scheduler)
        wanted = Wanted(uid=uid, spec=spec, model=MODEL, engine=ENGINE, n_gpu=1, created=1, memory=MEMORY)
        took, starts = self.do(lambda: self.core.accept(now, wanted))
        for start in starts:
            self.update(start, wanted, now)
        return took

    def end(self, uid: str, now: float) -> None:
        """Terminate a launch; its processes end at once."""
        launch = self.core.find(uid)
        lives = [replica.incarnation for replica in launch.live] if launch is not None else []
        self.do(lambda: self.core.terminate(now, uid))
        for life in lives:
            self.do(lambda life=life: self.core.replica_gone(now, life))

    def update(self, start: Start, wanted: Wanted, now: float) -> float:
        """A replica is READY. Answers the seconds that its word took."""
        worker, devices = start.assignments[0].worker, start.assignments[0].devices
        record = ready(wanted.spec, start.replica_id, start.incarnation, worker, devices)
        return self.do(lambda: self.core.replica_updated(now, worker, record))[0]


def _placements(plane: Plane, count: int) -> list[Row]:
    _beat_of_workers(plane, WORKERS)
    times = []
    for n in range(count):
        _beat_of_workers(plane, BEATS, first=n * BEATS)
        times.append(plane.launch(f"more-{n}", 1))
    for n in range(count):
        plane.end(f"more-{n}", 1.0)
    cuts = quantiles(times, n=100)
    huge = msgspec.structs.replace(spec_of("huge", 1), n_gpu=DEVICES + 1)
    refused = plane.core.find("m0")
    assert refused is not None
    wanted = msgspec.structs.replace(refused.wanted, uid="huge", spec=huge, n_gpu=DEVICES + 1)
    began = time.process_time()
    try:
        plane.core.accept(2.0, wanted)
    except NoPlacement:
        took = time.process_time() - began
    return [
        at_most("a placement, p50", "ms", cuts[49] * MILLI, 20.0),
        at_most("a placement, p99", "ms", cuts[98] * MILLI, 20.0),
        at_most("a refusal that explains 8,000 devices", "ms", took * MILLI, 500.0),
    ]


def _beat_of_workers(plane: Plane, rounds: int, first: int = 0) -> float:
    """Seconds of CPU for a worker's word on its devices, from its bytes on. `first`: which worker begins."""
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(m.WorkerBeat).decode
    said = []
    for number in range(first, first + rounds):
        name = name_of(number % WORKERS)
        devices = [msgspec.structs.replace(d, memory_free=40 * GIB + number, utilisation=0.5) for d in plane.core.members[name].devices]
        said.append(encode(m.WorkerBeat(worker=name, devices=devices)))
    began = time.process_time()
    for body in said:
        beat = decode(body)
        plane.do(lambda beat=beat: plane.core.worker_beat(1.0, beat.worker, beat.devices))
    return (time.process_time() - began) / rounds


async def _beat_of_links(links: int, seconds: float) -> float:
    """Seconds of CPU per second for one link with nothing to say, both ends together: twice what a supervisor pays."""
    transport = InprocTransport()
    server = LinkServer(transport, "inproc://benchmark", VOCABULARY, lambda link: {}, lambda link: None)
    dialled = [dial(transport, "inproc://benchmark", VOCABULARY, {}, lambda: None) for _ in range(links)]
    await asyncio.sleep(1.0)
    began = time.process_time()
    await asyncio.sleep(seconds)
    used = time.process_time() - began
    for link in dialled:
        assert not link.closed.is_set()
        await link.close()
    await server.close()
    return used / links / seconds


def _lost(plane: Plane) -> list[Row]:
    """A worker is lost: how long its replicas have no place, in simulated time, and what the steps cost."""
    worker = name_of(0)
    held = {replica.replica_id for replica, _ in plane.core.on(worker)}
    lost_at = 10.0
    now = lost_at + SILENCE
    took, _ = plane.do(lambda: plane.core.worker_left(now, worker))
    placed: set[str] = set()
    while not held <= placed:
        wake = plane.core.next_wake()
        assert wake is not None
        now = max(now, wake)
        spent, starts = plane.do(lambda now=now: plane.core.tick(now))
        took += spent
        placed |= {start.replica_id for start in starts}
    return [
        at_most(f"a lost worker's {len(held)} replicas are placed again", "s, simulated", now - lost_at, 5.0),
        at_most("the steps of that", "ms", took * MILLI, 1000.0),
    ]


def run(*, quick: bool, save: bool) -> bool:
    """Measure and report. True when all targets are met."""
    over_tcp, measured = tcp_links.rows(WORKERS, 5.0 if quick else 20.0)  # first: it may be refused
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT)
    try:
        rows = _measured(quick)
    finally:
        gc.set_threshold(*before)
    conditions = {"workers": WORKERS, "devices": WORKERS * DEVICES, "launches": LAUNCHES, "replicas": LAUNCHES * REPLICAS}
    return report("control_plane", [*rows, *over_tcp], conditions | measured, save=save)


def _measured(quick: bool) -> list[Row]:
    plane = Plane()
    for number in range(LAUNCHES):
        plane.launch(f"m{number}", REPLICAS, scheduler="fill")
    rows = _placements(plane, 50 if quick else 300)
    device_beat = _beat_of_workers(plane, WORKERS if quick else 5 * WORKERS)
    link_beat = asyncio.run(_beat_of_links(100, 2.0 if quick else 10.0))
    rows.append(at_most("a worker's word on its devices", "µs", device_beat * MICRO, 200.0))
    rows.append(at_most("a link's beats, both ends, for a second", "µs", link_beat * MICRO, 300.0))
    share = (device_beat + link_beat) * WORKERS * 100
    rows.append(at_most(f"beats of {WORKERS} workers, each telling of its devices each second", "% of a core", share, 30.0))
    return rows + _lost(plane)
