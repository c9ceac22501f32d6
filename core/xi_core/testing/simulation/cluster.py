"""A simulated cluster: its machines, its supervisor, and what befalls them, all drawn from one seed. Then it must converge.

The lifecycle and the routing table are the real ones; links, workers and processes behave as theirs do. See `python -m
xi_core.testing.simulation`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.placement import Scheduler
from xi_core.cluster.replicas import Action, Replica
from xi_core.testing.simulation import checks
from xi_core.testing.simulation.clock import Clock
from xi_core.testing.simulation.processes import Fate, Process
from xi_core.testing.simulation.supervisors import SimSupervisor
from xi_core.testing.simulation.wire import Side
from xi_core.testing.simulation.workers import SimWorker

GIB = 2**30
LAUNCH_TIMEOUT, GRACE, SETTLE = 20.0, 2.0, 3.0
WATCH = 0.5
"""Seconds between looks at what must hold at every moment."""

Make = Callable[..., Lifecycle]
"""Makes a lifecycle: `Lifecycle` itself, or a class like it."""


class SimCluster:
    """Workers `w1` … and a supervisor that can be killed. Raises `checks.Broken` from `run` where something doesn't hold."""

    def __init__(
        self, seed: int, scheduler: Scheduler, *, workers: int = 0, make: Make = Lifecycle, say: Callable[[str], None] | None = None
    ):
        """`workers`: how many; 0 leaves it to the seed. `say` takes each line of the trace."""
        self.clock, self.random = Clock(), Random(seed)
        self.keeps = self.random.random() < 0.7
        """Whether supervisors have a store, and so know what was wanted and drained before they were killed."""
        self.harm = 0.0
        """How likely a process that starts fails in one way or another."""
        self.slow_deaths = 0.0
        """How likely a process takes long to die."""
        self.supervisor: SimSupervisor | None = None
        self.desired: dict[str, Wanted] = {}
        self.drains: dict[str, float] = {}
        self._scheduler, self._make, self._say = scheduler, make, say
        self._epoch, self._settled_at = 0, 0.0
        self._lives = checks.Lives()
        self._were_ready: set[str] = set()
        self.workers = [SimWorker(self, f"w{n + 1}", self._devices(), GRACE) for n in range(workers or self.random.randint(3, 6))]
        self.boot()
        for worker in self.workers:
            worker.boot()
        self.clock.after(WATCH, self._watch)

    def _devices(self) -> list[Device]:
        memory = self.random.choice([0, 80 * GIB, 80 * GIB])
        return [Device(id=f"cuda:{n}", kind="cuda", memory=memory, memory_free=memory) for n in range(self.random.choice([0, 1, 2, 2, 4]))]

    # ---- what workers need of it ----------------------------------------------------------------

    def trace(self, line: str) -> None:
        """Note what happens."""
        if self._say is not None:
            self._say(f"{self.clock.now:8.3f} {line}")

    def listener(self) -> Side | None:
        """The supervisor that listens, if one does."""
        return self.supervisor

    def fate(self) -> Fate:
        """What will become of a process that starts now."""
        fates: list[Fate] = ["dies loading", "can't load", "hangs loading", "dies", "dies", "hangs", "downloads for long", "stalls"]
        return self.random.choice(fates) if self.random.random() < self.harm else "serves"

    def lingers(self) -> float:
        """Seconds that it takes to die, when it must."""
        return self.random.uniform(0.01, 3.0) if self.random.random() < self.slow_deaths else self.random.uniform(0.005, 0.2)

    def spawned(self, process: Process) -> None:
        """A process takes its devices."""
        checks.books(next(w for w in self.workers if w.name == process.worker), process)

    # ---- the supervisor -------------------------------------------------------------------------

    def boot(self) -> None:
        """A supervisor starts. It knows what was wanted, where there is a store, and places nothing before it has settled."""
        if self.supervisor is not None:
            return
        self._epoch += 1
        epoch = f"{self._epoch:04x}"
        now = self.clock.now
        self._settled_at = now + (SETTLE if self._epoch > 1 else 0.0)
        drains = self.drains if self.keeps else {}
        lifecycle = self._make(
            self._scheduler, epoch, launch_timeout=LAUNCH_TIMEOUT, grace=GRACE, settled_at=self._settled_at, drains=drains
        )
        checks.remembers(lifecycle, drains)
        self.trace(f"a supervisor boots, epoch {epoch}, to restore {sorted(self.desired) if self.keeps else 'nothing'}")
        for wanted in self.desired.values() if self.keeps else ():
            lifecycle.restore(now, wanted)
        self.supervisor = SimSupervisor(self.clock, lifecycle, epoch, self.trace, self._lives.begin, self._changed)
        self.supervisor.do([])

    def crash(self) -> None:
        """The supervisor is killed."""
        if self.supervisor is not None:
            self.trace("the supervisor crashes")
            self.supervisor.crash()
            self.supervisor = None

    def ask(self, what: Callable[[Lifecycle], list[Action]]) -> None:
        """Have the supervisor do what a user asks for, if it is there. Raises what it raises."""
        if self.supervisor is not None:
            self.supervisor.do(what(self.supervisor.lifecycle))

    def _changed(self, core: Lifecycle) -> None:
        self.desired = {launch.uid: launch.wanted for launch in core.listed() if not launch.end}
        self.drains = dict(core.drains)
        checks.spares_what_serves(core, self._were_ready)

    # ---- time -----------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.run(self.clock.now + seconds)

    def calm(self) -> None:
        """Nothing fails any more: networks heal, what is down comes up again."""
        self.trace("calm")
        self.harm = 0.0
        self.boot()
        for worker in self.workers:
            worker.cut(False, False)
            worker.path.slowness = 1.0
            worker.stand_still(False)
            if worker.leaving:
                worker.crash()
            for process in list(worker.running.values()):
                process.calm()
            self.clock.after(1.0, worker.boot)  # its keeper has killed what it left by then

    def converged(self) -> None:
        """Raises `checks.Broken` unless exactly what is wanted runs."""
        self.trace("must have converged")
        assert self.supervisor is not None
        checks.converged(self.clock.now, self.supervisor, self.workers, list(self.desired))

    def _watch(self) -> None:
        self.clock.after(WATCH, self._watch)
        if self.supervisor is not None:
            core, now = self.supervisor.lifecycle, self.clock.now
            checks.states(core, now)
            checks.drains(core)
            checks.waits_for_room_only(core, now, self._settled_at)
            checks.follows(self.supervisor)

    def replicas(self) -> list[Replica]:
        """All replicas that the supervisor has."""
        return (
            [replica for launch in self.supervisor.lifecycle.listed() for replica in launch.replicas] if self.supervisor is not None else []
        )
