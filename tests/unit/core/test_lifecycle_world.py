"""The pure core of the supervisor as a state machine, against a model of the workers' world: processes by life and rank, events in any order."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xi_core.api.control import LaunchSpec, LaunchState, ReplicaStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import LEASE, Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.replicas import Action, Start
from xi_core.errors import Conflict, ModelNotFound, NoPlacement
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.testing.simulation.checks import Lives, drains, spares_what_serves, states
from xi_core.wire.manifest import of_fields
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan, RankAddress, Rendezvous
from xi_plugins.schedulers.idle_first import IdleFirst

GIB = 2**30
TIMEOUT, DRAIN = 100.0, 20.0
DEVICES = {"w1": 2, "w2": 1, "w3": 0}
WORKERS = st.sampled_from(sorted(DEVICES))
UIDS = st.sampled_from(["a", "b"])
Key = tuple[str, int]
"""An incarnation, and the number of a rank."""


def wanted(uid: str, replicas: int, n_worker: int, n_gpu: int) -> Wanted:
    """Those of `a` share no device; those of `b` take memory of it. The same spec is resolved to the same."""
    memory = 0 if uid == "a" else 30 * n_worker
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    spec = LaunchSpec(model_name="toy", model_uid=uid, replica=replicas, n_gpu=n_gpu, n_worker=n_worker)
    return Wanted(uid=uid, spec=spec, model=model, engine="e", n_gpu=n_gpu, created=1, memory=memory * GIB, exclusive=not memory)


def records(start: Start, what: Wanted) -> list[ReplicaRecord]:
    """What the workers of a life tell of it at its beginning."""
    world = tuple(RankAddress(rank=n, worker=a.worker, host="h", devices=a.devices) for n, a in enumerate(start.assignments))
    made = []
    for number, assignment in enumerate(start.assignments):
        plan = LaunchPlan(
            uid=start.uid,
            replica_id=start.replica_id,
            incarnation=start.incarnation,
            engine=EngineRef(name="e", path="x:X"),
            artifact=Artifact(format="toy", path="/x"),
            endpoint="ipc:///x",
            devices=list(assignment.devices),
            rendezvous=Rendezvous(rank=number, world=world) if len(world) > 1 else None,
            memory=what.memory,
            exclusive=what.exclusive,
        )
        status = ReplicaStatus(replica_id=start.replica_id, state="PREPARING", worker=assignment.worker, pid=7)
        made.append(ReplicaRecord(plan=plan, spec=what.spec, status=status, created=1, model=what.model, endpoint="ipc:///x"))
    return made


class World(RuleBasedStateMachine):
    """Workers with real processes, a supervisor that may forget everything, links that break."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.epoch = 0.0, 0
        self.up: set[str] = set()
        self.processes: dict[Key, ReplicaRecord] = {}
        self.doomed: set[Key] = set()
        self.lives = Lives()
        self.were_ready: set[str] = set()
        self.core = self.supervisor(settle=0.0)
        for name in DEVICES:
            self.connect(name)

    def supervisor(self, settle: float = 2 * LEASE) -> Lifecycle:
        self.epoch += 1
        return Lifecycle(IdleFirst(), f"e{self.epoch:03}", launch_timeout=TIMEOUT, grace=1.0, settled_at=self.now + settle)

    # ---- how actions are carried out --------------------------------------------------------------

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self.start(action)
                continue
            key = action.incarnation, action.rank
            if action.worker in self.up and key in self.processes:
                self.doomed.add(key)
                process = self.processes[key]
                self.processes[key] = msgspec.structs.replace(process, status=msgspec.structs.replace(process.status, state="STOPPING"))
            elif action.worker in self.up:
                self.carry_out(self.core.replica_gone(self.now, action.incarnation, rank=action.rank))

    def start(self, action: Start) -> None:
        launch = self.core.find(action.uid)
        if launch is None:
            self.carry_out(self.core.replica_gone(self.now, action.incarnation, "not wanted"))
            return
        self.lives.begin(action)
        made = records(action, launch.wanted)
        for number, one in enumerate(made):
            if one.status.worker in self.up:
                self.processes[action.incarnation, number] = one
        for number, one in enumerate(made):
            if one.status.worker not in self.up:
                self.carry_out(self.core.replica_gone(self.now, action.incarnation, "away", rank=number))

    def connect(self, name: str) -> None:
        self.up.add(name)
        devices = [
            Device(id=f"cuda:{n}", kind="cuda", memory=80 * GIB, memory_free=80 * GIB - self.used(name, f"cuda:{n}"))
            for n in range(DEVICES[name])
        ]
        mine = [p for p in self.processes.values() if p.status.worker == name]
        self.carry_out(self.core.worker_joined(self.now, Member(name, "i1", devices, ("e",)), mine))

    def used(self, worker: str, device: str) -> int:
        """Bytes of a device that processes have taken."""
        loaded = [p for p in self.processes.values() if p.status.worker == worker and device in p.plan.devices]
        return sum(p.plan.memory for p in loaded if p.status.state in ("READY", "STOPPING"))

    def visible(self) -> dict[Key, ReplicaRecord]:
        return {key: p for key, p in self.processes.items() if p.status.worker in self.up}

    def end(self, key: Key, error: str | None, final: bool = False) -> None:
        process = self.processes.pop(key)
        self.doomed.discard(key)
        if process.status.worker in self.up:
            self.carry_out(self.core.replica_gone(self.now, key[0], error, final, rank=key[1]))

    # ---- what users do ----------------------------------------------------------------------------

    @precondition(lambda self: len(self.core.listed()) < 2 or self.now % 2 < 0.5)
    @rule(uid=UIDS, replicas=st.integers(1, 2), n_worker=st.integers(1, 2), n_gpu=st.integers(0, 1))
    def launch(self, uid: str, replicas: int, n_worker: int, n_gpu: int) -> None:
        try:
            self.carry_out(self.core.accept(self.now, wanted(uid, replicas, n_worker, n_gpu)))
        except (Conflict, NoPlacement):
            return

    @rule(uid=UIDS)
    def terminate(self, uid: str) -> None:
        try:
            self.carry_out(self.core.terminate(self.now, uid))
        except ModelNotFound:
            assert self.core.find(uid) is None

    @rule(uid=UIDS, count=st.integers(1, 3))
    def scale(self, uid: str, count: int) -> None:
        before = {launch.uid: launch.wanted for launch in self.core.listed()}
        try:
            self.carry_out(self.core.scale(self.now, uid, count))
        except (ModelNotFound, Conflict, NoPlacement):
            assert before == {launch.uid: launch.wanted for launch in self.core.listed()}

    @rule(name=WORKERS)
    def drain(self, name: str) -> None:
        if name in self.core.members:
            self.carry_out(self.core.drain(self.now, name, DRAIN))

    @rule(name=WORKERS)
    def undrain(self, name: str) -> None:
        if name in self.core.members:
            self.carry_out(self.core.undrain(self.now, name))

    # ---- what processes do ------------------------------------------------------------------------

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), new=st.sampled_from(["LOADING", "READY", "READY"]))
    def progress(self, data: st.DataObject, new: LaunchState) -> None:
        key = data.draw(st.sampled_from(sorted(self.processes)))
        before, manifest = self.processes[key], of_fields(chat={}) if new == "READY" else None
        status = msgspec.structs.replace(before.status, state=new)
        process = msgspec.structs.replace(before, status=status, manifest=manifest)
        if key not in self.doomed:  # else it said so before it was told to end
            self.processes[key] = process
        if process.status.worker in self.up:
            self.carry_out(self.core.replica_updated(self.now, process.status.worker, process))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), final=st.booleans())
    def die(self, data: st.DataObject, final: bool) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.processes))), "boom", final)

    @precondition(lambda self: self.doomed)
    @rule(data=st.data())
    def obey(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.doomed))), None)

    # ---- what workers do --------------------------------------------------------------------------

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.up)))
        devices = [
            Device(id=f"cuda:{n}", kind="cuda", memory=80 * GIB, memory_free=80 * GIB - self.used(name, f"cuda:{n}"))
            for n in range(DEVICES[name])
        ]
        self.carry_out(self.core.worker_beat(self.now, name, devices))

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def break_link(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.up)))
        self.up.discard(name)
        self.carry_out(self.core.worker_left(self.now, name))

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def stop_worker(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.up)))
        self.carry_out(self.core.worker_leaving(name))
        for key in [key for key, p in self.processes.items() if p.status.worker == name]:
            self.end(key, None)
        assert not [p for p in self.processes.values() if p.status.worker == name], "started on a worker that is being stopped"
        self.up.discard(name)
        self.carry_out(self.core.worker_left(self.now, name))

    @precondition(lambda self: self.core.members)
    @rule(data=st.data())
    def remove_worker(self, data: st.DataObject) -> None:
        """It ends by itself, with what it runs, and may come anew."""
        name = data.draw(st.sampled_from(sorted(self.core.members)))
        self.processes = {key: p for key, p in self.processes.items() if p.status.worker != name}
        self.doomed &= set(self.processes)
        if name in self.up:
            self.up.discard(name)
            self.carry_out(self.core.worker_left(self.now, name))
        self.carry_out(self.core.worker_removed(self.now, name))
        assert name not in self.core.members
        assert self.core.on(name) == [], "nothing is asked of it, nor expected"

    @precondition(lambda self: len(self.up) < len(DEVICES))
    @rule()
    def heal_links(self) -> None:
        for name in sorted(DEVICES.keys() - self.up):
            self.connect(name)

    @rule(name=WORKERS)
    def restart_worker(self, name: str) -> None:
        self.processes = {key: p for key, p in self.processes.items() if p.status.worker != name}
        self.doomed &= set(self.processes)
        self.connect(name)

    @rule(store=st.booleans())
    def restart_supervisor(self, store: bool) -> None:
        desired = self.core.wanted()
        self.core, self.up = self.supervisor(), set()
        for one in desired if store else ():
            self.core.restore(self.now, one)

    @rule(seconds=st.sampled_from([0.6, 3.1, 3.1, 40.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(1000):
            wake = self.core.next_wake()
            if wake is None or wake > until:
                break
            self.now = max(self.now, wake)
            self.carry_out(self.core.tick(self.now))
            following = self.core.next_wake()
            assert following is None or following > self.now, "a wake that changes nothing"
        self.now = until

    # ---- what holds -------------------------------------------------------------------------------

    @invariant()
    def ready_means_ready_and_the_rest_has_a_deadline(self) -> None:
        states(self.core, self.now)

    @invariant()
    def what_serves_is_not_ended_for_what_cannot_be_had(self) -> None:
        spares_what_serves(self.core, self.were_ready)

    @invariant()
    def what_runs_on_a_drained_worker_is_going(self) -> None:
        drains(self.core)

    @invariant()
    def no_rank_runs_twice(self) -> None:
        wanted_here = [(p.plan.replica_id, key[1]) for key, p in self.visible().items() if key not in self.doomed]
        assert len(wanted_here) == len(set(wanted_here)), wanted_here

    @invariant()
    def no_device_is_booked_twice(self) -> None:
        books: dict[tuple[str, str], list[LaunchPlan]] = {}
        for process in self.visible().values():
            for device in process.plan.devices:
                books.setdefault((process.status.worker, device), []).append(process.plan)
        for device_of, plans in books.items():
            assert len(plans) == 1 or not any(plan.exclusive for plan in plans), device_of
            assert sum(plan.memory for plan in plans) <= 80 * GIB, device_of

    @invariant()
    def what_runs_unasked_is_told_to_end(self) -> None:
        known = {
            (r.incarnation, number)
            for launch in self.core.listed()
            for r in launch.live
            for number, rank in enumerate(r.ranks)
            if not rank.gone
        }
        assert self.visible().keys() <= known | self.doomed

    def teardown(self) -> None:
        self.heal_links()
        for _ in range(20):
            for key in sorted(self.doomed):
                self.end(key, None)
            self.wait(30.0)
        for launch in self.core.listed():
            assert launch.state in ("READY", "FAILED", "CANCELLED") or launch.serves or launch.waits, launch
            self.carry_out(self.core.terminate(self.now, launch.uid))
        for key in sorted(self.doomed):
            self.end(key, None)
        assert not self.processes
        assert not [launch for launch in self.core.listed() if launch.live]


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
