"""What befalls a simulated cluster: users who want something now and then, and everything that fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from xi_core.api.control import LaunchSpec
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.placement import Scheduler
from xi_core.errors import Conflict, ModelNotFound, NoPlacement, WorkerNotFound
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.testing.simulation.checks import require
from xi_core.testing.simulation.cluster import GIB, Make, SimCluster
from xi_core.testing.simulation.supervisors import ENGINE
from xi_core.testing.simulation.workers import SimWorker

CHAOS, CALM = 40.0, 16.0
"""Seconds of chaos, and the bound within which all must be well after it."""
UIDS = ("a", "b", "c")
MODEL = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))


def wanted(uid: str, random: Random) -> Wanted:
    """A launch of some kind."""
    n_gpu, n_worker = random.choice([0, 0, 1, 1, 2]), random.choice([1, 1, 2])
    pool = n_gpu * n_worker * random.choice([0, 0, 1, 2]) or None
    spec = LaunchSpec(model_name="toy", model_uid=uid, replica=random.randint(1, 3), n_gpu=n_gpu, n_worker=n_worker, gpu_pool=pool)
    memory = (0, 20, 40, 60)[(ord(uid) + 2 * n_gpu + spec.n_worker) % 4] * GIB  # the same for the same spec, as in life
    return Wanted(uid=uid, spec=spec, model=MODEL, engine=ENGINE, n_gpu=n_gpu, created=1, memory=memory, exclusive=uid == UIDS[0])


class Chaos:
    """Troubles a cluster until its time is over."""

    def __init__(self, cluster: SimCluster, until: float) -> None:
        self._cluster, self._random, self._until = cluster, cluster.random, until
        cluster.harm = self._random.choice([0.0, 0.1, 0.4])
        cluster.slow_deaths = 0.2
        pace = self._random.choice([0.3, 1.0, 3.0])
        self._every(0.5 * pace, self._user)
        self._every(1.0 * pace, self._fault)

    def _every(self, mean: float, do: Callable[[], None]) -> None:
        delay = self._random.expovariate(1 / mean)
        if self._cluster.clock.now + delay < self._until:
            self._cluster.clock.after(delay, self._next, mean, do)

    def _next(self, mean: float, do: Callable[[], None]) -> None:
        do()
        self._every(mean, do)

    # ---- users ----------------------------------------------------------------------------------

    def _user(self) -> None:
        core_do, uid, now = self._cluster.ask, self._random.choice(UIDS), self._cluster.clock.now
        worker = self._random.choice(self._cluster.workers).name
        count, seconds = self._random.randint(1, 4), self._random.uniform(0, 10)
        new = wanted(uid, self._random)
        wishes: list[tuple[str, Callable[[Lifecycle], list]]] = [  # type: ignore[type-arg]
            (f"launch {uid}: {new.spec.replica} x {new.spec.n_worker} x {new.n_gpu}", lambda core: core.accept(now, new)),
            (f"terminate {uid}", lambda core: core.terminate(now, uid)),
            (f"scale {uid} to {count}", lambda core: core.scale(now, uid, count)),
            (f"drain {worker} in {seconds:.1f} s", lambda core: core.drain(now, worker, seconds)),
            (f"undrain {worker}", lambda core: core.undrain(now, worker)),
            (f"explain {uid}", lambda core: core.explain(new) and []),
        ]
        what, wish = self._random.choices(wishes, weights=[6, 2, 2, 1, 2, 1])[0]
        self._cluster.trace(f"user: {what}")
        try:
            core_do(wish)
        except (Conflict, ModelNotFound, NoPlacement, WorkerNotFound) as refusal:
            self._cluster.trace(f"refused: {refusal}")

    # ---- faults ---------------------------------------------------------------------------------

    def _fault(self) -> None:
        worker = self._random.choice(self._cluster.workers)
        lasts = self._random.choice([0.3, 1.0, 2.0, 4.0, 8.0]) * self._random.uniform(0.5, 1.5)
        faults = (self._supervisor, self._crash, self._stop, self._cut, self._still, self._slow)
        self._random.choices(faults, weights=[2, 3, 1, 4, 2, 1])[0](worker, lasts)

    def _supervisor(self, _: SimWorker, lasts: float) -> None:
        self._cluster.crash()
        self._cluster.clock.after(lasts / 2, self._cluster.boot)

    def _crash(self, worker: SimWorker, lasts: float) -> None:
        worker.crash()
        self._cluster.clock.after(0.5 + lasts, worker.boot)

    def _stop(self, worker: SimWorker, lasts: float) -> None:
        worker.stop()
        self._cluster.clock.after(4.0 + lasts, worker.boot)

    def _cut(self, worker: SimWorker, lasts: float) -> None:
        ways = self._random.choice([(True, True), (True, True), (True, False), (False, True)])
        worker.cut(*ways)
        self._cluster.clock.after(lasts, worker.cut, False, False)

    def _still(self, worker: SimWorker, lasts: float) -> None:
        worker.stand_still(True)
        self._cluster.clock.after(lasts, worker.stand_still, False)

    def _slow(self, worker: SimWorker, lasts: float) -> None:
        worker.path.slowness = self._random.choice([5.0, 20.0, 60.0])
        self._cluster.clock.after(lasts, self._fast, worker)

    def _fast(self, worker: SimWorker) -> None:
        worker.path.slowness = 1.0


def troubled(seed: int, scheduler: Scheduler, *, make: Make, say: Callable[[str], None] | None = None) -> SimCluster:
    """A cluster that has lived through the chaos of this seed and has converged. Raises `checks.Broken`, or what the lifecycle raises."""
    cluster = SimCluster(seed, scheduler, make=make, say=say)
    Chaos(cluster, CHAOS)
    cluster.run(CHAOS)
    cluster.calm()
    cluster.run(CALM)
    cluster.converged()
    return cluster


def quiet(seed: int, scheduler: Scheduler, *, make: Make, say: Callable[[str], None] | None = None) -> SimCluster:
    """A cluster where all that was launched serves."""
    cluster = SimCluster(seed, scheduler, workers=4, make=make, say=say)
    cluster.run(3.0)
    for uid in UIDS:
        count, n_worker = cluster.random.randint(1, 4), cluster.random.choice([1, 1, 2])
        spec = LaunchSpec(model_name="toy", model_uid=uid, replica=count, n_gpu=0, n_worker=n_worker)
        launch = Wanted(uid=uid, spec=spec, model=MODEL, engine=ENGINE, n_gpu=0, created=1)
        cluster.ask(partial(Lifecycle.accept, now=cluster.clock.now, wanted=launch))
    cluster.run(5.0 + cluster.random.random())
    cluster.converged()
    return cluster


def lost_worker(seed: int, scheduler: Scheduler, *, make: Make, say: Callable[[str], None] | None = None) -> float:
    """Seconds until everything that one worker ran has begun a life elsewhere, after that worker was lost for ever; `inf` after 10."""
    cluster = quiet(seed, scheduler, make=make, say=say)
    lost = cluster.random.choice(cluster.workers)
    lives = {replica.incarnation for replica in cluster.replicas() if any(rank.worker == lost.name for rank in replica.ranks)}
    began, all_of_it = cluster.clock.now, len(cluster.replicas())
    if cluster.random.random() < 0.5:
        lost.crash()
    else:
        lost.cut(True, True)
    while cluster.clock.now < began + 10.0:
        cluster.run(0.05)
        now = {replica.incarnation for replica in cluster.replicas() if replica.live}
        if len(now) == all_of_it and not now & lives:
            return cluster.clock.now - began
    return float("inf")


def restarted_supervisor(seed: int, scheduler: Scheduler, *, make: Make, say: Callable[[str], None] | None = None) -> None:
    """The supervisor is killed and starts again: it adopts everything, with a store or without. Raises `checks.Broken`."""
    cluster = quiet(seed, scheduler, make=make, say=say)
    before = {process.life for worker in cluster.workers for process in worker.running.values()}
    cluster.crash()
    cluster.run(cluster.random.uniform(0.3, 4.0))
    cluster.boot()
    cluster.run(8.0)
    cluster.converged()
    after = {process.life for worker in cluster.workers for process in worker.running.values()}
    require(
        before == after, f"a supervisor that was started again did away with {sorted(before - after)} and began {sorted(after - before)}"
    )
