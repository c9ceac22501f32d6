"""A simulated supervisor: the real lifecycle and routing table, on simulated links and timers. As `xi_core.cluster.supervisor`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from xi_core.cluster import messages as m
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.replicas import Action, Start, Stop
from xi_core.cluster.table import RoutingTable
from xi_core.errors import Conflict, LaunchError, Unavailable, XiError
from xi_core.testing.simulation.clock import Clock
from xi_core.testing.simulation.wire import Answer, Asked, Link
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan, Rendezvous

SUPERVISOR = 1
"""Its side of a link."""
ENGINE = "simulated"

Answered = Callable[[Any], None]
"""Takes a command's answer, or its error."""


class SimSupervisor:
    """One life of the supervisor."""

    stands_still = False

    def __init__(
        self, clock: Clock, lifecycle: Lifecycle, epoch: str, trace: Callable[[str], None], begun: Callable[[Start], None],
        changed: Callable[[Lifecycle], None],
    ) -> None:  # fmt: skip
        """`begun` is called with each life that begins, `changed` after each step of the lifecycle."""
        self.lifecycle, self.table = lifecycle, RoutingTable(epoch)
        self.alive = True
        self.began: dict[str, float] = {}
        """When each life was begun."""
        self.followed: dict[str, m.ModelRoute] = {}
        """The table as a gateway has it, made of the changes alone."""
        self._clock, self._trace, self._begun, self._changed = clock, trace, begun, changed
        self._workers: dict[str, tuple[str, Link]] = {}
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[Link, Answered]] = {}
        self._timer = 0

    def crash(self) -> None:
        """It is killed."""
        self.alive = False
        for _, link in self._workers.values():
            link.close(SUPERVISOR)

    def do(self, actions: Iterable[Action]) -> None:
        """Carry out what the lifecycle decided. As `Executor.do`."""
        for action in actions:
            if isinstance(action, Start):
                self._begun(action)
                self.began[action.incarnation] = self._clock.now
                self._trace(f"start {action.incarnation} of {action.replica_id} on {[(a.worker, *a.devices) for a in action.assignments]}")
                self._clock.after(0.0, self._start, action)
            else:
                self._trace(f"stop {action.incarnation} rank {action.rank} on {action.worker}")
                self._clock.after(0.0, self._stop, action)
        self._publish()
        self._changed(self.lifecycle)
        wake = self.lifecycle.next_wake()
        self._timer += 1
        if wake is not None:
            self._clock.after(max(0.01, wake - self._clock.now), self._tick, self._timer)

    def _tick(self, timer: int) -> None:
        if self.alive and timer == self._timer:
            self.do(self.lifecycle.tick(self._clock.now))

    def _publish(self) -> None:
        changes = self.lifecycle.changes()
        update = self.table.change({uid: launch.route() if launch is not None else None for uid, launch in changes.items()})
        if update is not None:
            self.followed.update((model.uid, model) for model in update.models)
            for uid in update.removed:
                del self.followed[uid]

    # ---- links ----------------------------------------------------------------------------------

    def receive(self, link: Link, message: Any) -> None:
        """A message of a worker's."""
        now, core = self._clock.now, self.lifecycle
        if not self.alive:
            return
        match message:
            case Asked(command=m.Register()):
                link.send(SUPERVISOR, Answer(message.number, self._register(link, message.command)))
            case Answer():
                _, answered = self._waiting.pop(message.number, (None, None))
                if answered is not None:
                    answered(message.body)
            case m.ReplicaUpdate():
                worker = next((name for name, (_, known) in self._workers.items() if known is link), None)
                if worker is not None:
                    self.do(core.replica_updated(now, worker, message.record))
            case m.ReplicaGone():
                self.do(core.replica_gone(now, message.incarnation, message.error, message.final, message.code, message.rank))
            case m.WorkerBeat():
                self.do(core.worker_beat(now, message.worker, message.devices))
            case m.Leaving():
                self.do(core.worker_leaving(message.worker))

    def _register(self, link: Link, command: m.Register) -> Any:
        before = self._workers.get(command.worker)
        if before is not None and before[0] != command.incarnation and before[1].open[SUPERVISOR]:
            return Conflict(f"another worker is named {command.worker} and is connected")
        self._workers[command.worker] = command.incarnation, link
        member = Member(command.worker, command.incarnation, command.devices, (ENGINE,), address=command.address)
        self.do(self.lifecycle.worker_joined(self._clock.now, member, command.replicas))
        return m.Registered()

    def lost(self, link: Link) -> None:
        """A link is gone."""
        if not self.alive:
            return
        for number in [n for n, (asked, _) in self._waiting.items() if asked is link]:
            del self._waiting[number]  # as a TransportError: the next registration tells
        for name, (_, known) in list(self._workers.items()):
            if known is link:
                self._trace(f"the supervisor loses {name}")
                del self._workers[name]
                self.do(self.lifecycle.worker_left(self._clock.now, name))

    def _ask(self, worker: str, command: Any, answered: Answered) -> bool:
        """Send a command to a worker. False where it is away."""
        found = self._workers.get(worker)
        if found is None:
            return False
        number = next(self._numbers)
        if found[1].send(SUPERVISOR, Asked(number, command)):
            self._waiting[number] = found[1], answered
        return True

    # ---- actions --------------------------------------------------------------------------------

    def _start(self, action: Start) -> None:
        launch = self.lifecycle.find(action.uid)
        if not self.alive:
            return
        if launch is None:
            self._gone(action, 0, Unavailable("not wanted any more"))
            return
        commands = [self._command(action, launch.wanted, rank) for rank in range(len(action.assignments))]
        if len(commands) > 1:
            Rendezvousing(self, action, commands).begin()
        else:
            self.start_ranks(action, commands)

    def start_ranks(self, action: Start, commands: list[m.StartReplica]) -> None:
        """Start the processes of all ranks."""
        for rank, (assignment, command) in enumerate(zip(action.assignments, commands, strict=True)):
            self.ask_rank(action, rank, assignment.worker, command, lambda _: None)

    def ask_rank(self, action: Start, rank: int, worker: str, command: Any, answered: Answered) -> None:
        """Ask the worker of a rank. Its refusal is the end of the rank."""

        def judged(body: Any) -> None:
            if isinstance(body, XiError):
                self._gone(action, rank, body)
            else:
                answered(body)

        if not self._ask(worker, command, judged):
            self._gone(action, rank, Unavailable(f"worker {worker} is away"))

    def _gone(self, action: Start, rank: int, error: XiError) -> None:
        final = isinstance(error, LaunchError)
        self.do(self.lifecycle.replica_gone(self._clock.now, action.incarnation, error.message, final, None, rank))

    def _stop(self, action: Stop) -> None:
        if self.alive:
            command = m.StopReplica(action.replica_id, action.grace, action.incarnation, action.rank)
            self._ask(action.worker, command, lambda _: None)

    def _command(self, action: Start, wanted: Wanted, rank: int) -> m.StartReplica:
        plan = LaunchPlan(
            uid=wanted.uid,
            replica_id=action.replica_id,
            incarnation=action.incarnation,
            engine=EngineRef(name=ENGINE, path="simulated:Engine"),
            artifact=Artifact(format="toy", path=""),
            endpoint="",
            devices=list(action.assignments[rank].devices),
            memory=wanted.memory,
            memory_share=wanted.memory_share,
            exclusive=wanted.exclusive,
        )
        return m.StartReplica(spec=wanted.spec, model=wanted.model, plan=plan, created=wanted.created, deadline=action.deadline)


class Rendezvousing:
    """Prepares all ranks of a life, then starts them; with the first that can't be prepared it ends. As `xi_core.cluster.rendezvous`."""

    def __init__(self, supervisor: SimSupervisor, action: Start, commands: list[m.StartReplica]) -> None:
        self._supervisor, self._action, self._commands = supervisor, action, commands
        self._addresses: dict[int, Any] = {}

    def begin(self) -> None:
        """Ask all of them to prepare."""
        for rank, (assignment, c) in enumerate(zip(self._action.assignments, self._commands, strict=True)):
            prepare = m.Prepare(spec=c.spec, model=c.model, plan=c.plan, created=c.created, rank=rank, deadline=c.deadline)
            self._supervisor.ask_rank(self._action, rank, assignment.worker, prepare, self._prepared)

    def _prepared(self, answer: m.Prepared) -> None:
        self._addresses[answer.address.rank] = answer.address
        if len(self._addresses) < len(self._commands):
            return
        world = tuple(self._addresses[rank] for rank in range(len(self._commands)))
        commands = [
            msgspec.structs.replace(c, plan=msgspec.structs.replace(c.plan, rendezvous=Rendezvous(rank=rank, world=world)))
            for rank, c in enumerate(self._commands)
        ]
        self._supervisor.start_ranks(self._action, commands)
