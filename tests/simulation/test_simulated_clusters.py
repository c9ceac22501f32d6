"""Whole clusters, simulated from seeds: a fixed set of them here, as many as wanted with `make simulate`. And known bugs, which it must find."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from xi_core.api.control import LaunchSpec
from xi_core.cluster.launches import LaunchEntry, Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.placement import Scheduler
from xi_core.cluster.replicas import Action, Start
from xi_core.testing.simulation import __main__ as command
from xi_core.testing.simulation.chaos import MODEL, lost_worker, restarted_supervisor, troubled
from xi_core.testing.simulation.checks import Broken
from xi_core.testing.simulation.cluster import LAUNCH_TIMEOUT, SimCluster
from xi_core.testing.simulation.processes import LONG, Fate
from xi_core.testing.simulation.supervisors import ENGINE
from xi_plugins.schedulers.idle_first import IdleFirst
from xi_plugins.schedulers.spread import Spread

BUGS = 150
"""Seeds within which each known bug must show."""


@pytest.mark.parametrize(("scheduler", "first", "count"), [(IdleFirst(), 0, 240), (Spread(), 240, 60)], ids=["idle_first", "spread"])
def test_clusters_converge_after_any_chaos(scheduler: Scheduler, first: int, count: int) -> None:
    failures = {seed: reason for seed in range(first, first + count) if (reason := command.failure(seed, scheduler))}
    assert not failures, "replay with `python -m xi_core.testing.simulation --replay SEED`"


def test_what_a_lost_worker_ran_is_placed_again_in_under_5_s() -> None:
    slow = {seed: took for seed in range(60) if (took := lost_worker(seed, IdleFirst(), make=Lifecycle)) >= 5.0}
    assert not slow


def test_a_new_supervisor_adopts_everything() -> None:
    for seed in range(60):
        restarted_supervisor(seed, IdleFirst(), make=Lifecycle)


class ForgetsReadiness(Lifecycle):
    """A supervisor that starts again doesn't know which launches served."""

    def restore(self, now: float, wanted: Wanted) -> None:
        super().restore(now, msgspec.structs.replace(wanted, was_ready=False))


def ended_as_the_supervisor_starts_again(seed: int, make: Callable[..., Lifecycle]) -> set[str]:
    """A worker and the supervisor are lost; only the supervisor comes back. Lives on other workers that ended; there was no room for more."""
    cluster = SimCluster(seed, IdleFirst(), workers=4, make=make)
    cluster.run(3.0)
    count = sum(len(worker.devices) for worker in cluster.workers)
    if not count:
        return set()
    spec = LaunchSpec(model_name="toy", model_uid="m", replica=count, n_gpu=1)
    wanted = Wanted(uid="m", spec=spec, model=MODEL, engine=ENGINE, n_gpu=1, created=1, exclusive=True)
    cluster.ask(lambda core: core.accept(cluster.clock.now, wanted))
    cluster.run(6.0)
    cluster.converged()
    lost = cluster.random.choice([worker for worker in cluster.workers if worker.devices])
    before = {process.life for worker in cluster.workers if worker is not lost for process in worker.running.values()}
    lost.crash()
    cluster.crash()
    cluster.run(cluster.random.uniform(0.3, 4.0))
    cluster.boot()
    cluster.run(2 * LAUNCH_TIMEOUT)
    return before - {process.life for worker in cluster.workers for process in worker.running.values()}


def test_a_new_supervisor_ends_nothing_that_serves_while_a_worker_is_away() -> None:
    for seed in range(30):
        assert ended_as_the_supervisor_starts_again(seed, Lifecycle) == set()


def test_a_supervisor_that_forgets_what_served_is_found() -> None:
    def restart_all() -> None:
        for seed in range(30):
            ended_as_the_supervisor_starts_again(seed, ForgetsReadiness)

    with pytest.raises(Broken, match=r"has FAILED .* along, which serves"):
        restart_all()


def launched_where_files_take(fate: Fate, n_worker: int) -> tuple[SimCluster, LaunchEntry]:
    """A cluster with a launch whose first process has this fate."""
    cluster = SimCluster(3, IdleFirst(), workers=4)
    cluster.run(3.0)
    fates: list[Fate] = [fate]
    cluster.fate = lambda: fates.pop() if fates else "serves"  # type: ignore[method-assign]
    spec = LaunchSpec(model_name="toy", model_uid="m", n_gpu=0, n_worker=n_worker)
    wanted = Wanted(uid="m", spec=spec, model=MODEL, engine=ENGINE, n_gpu=0, created=1)
    cluster.ask(lambda core: core.accept(cluster.clock.now, wanted))
    (launch,) = cluster.supervisor.lifecycle.listed() if cluster.supervisor is not None else ()
    return cluster, launch


@pytest.mark.parametrize("n_worker", [1, 2])
def test_a_download_that_goes_on_for_longer_than_the_launch_timeout_is_waited_for(n_worker: int) -> None:
    cluster, launch = launched_where_files_take("downloads for long", n_worker)
    cluster.run(LAUNCH_TIMEOUT + 2.0)
    assert (launch.state, launch.end) == ("PREPARING", "")
    cluster.run(LONG - LAUNCH_TIMEOUT + 4.0)
    assert launch.state == "READY"
    cluster.converged()


@pytest.mark.parametrize("n_worker", [1, 2])
def test_a_download_that_stalls_ends_the_launch_by_its_deadline(n_worker: int) -> None:
    cluster, launch = launched_where_files_take("stalls", n_worker)
    cluster.run(LONG / 5 + LAUNCH_TIMEOUT + 2.0)
    assert launch.state == "FAILED"
    assert "not ready within its time" in (launch.error or "")
    cluster.run(5.0)
    cluster.converged()


class ForgetsOtherRanks(Lifecycle):
    """When one rank has ended, the others run on."""

    def replica_gone(self, *args: Any, **more: Any) -> list[Action]:
        return [action for action in super().replica_gone(*args, **more) if isinstance(action, Start)]


class NeverSettles(Lifecycle):
    """It places before workers have told what they run."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{**more, "settled_at": 0.0})


class TrustsStrangers(Lifecycle):
    """It lets run what a worker reports, wanted or not."""

    def worker_joined(self, *args: Any) -> list[Action]:
        return [action for action in super().worker_joined(*args) if isinstance(action, Start)]


class NeverExpires(Lifecycle):
    """Replicas of a worker that is away stay there."""

    def worker_left(self, now: float, worker: str) -> list[Action]:
        self.members[worker].present = False
        return []


class KeepsSecrets(Lifecycle):
    """It forgets to publish that a launch has ended."""

    def changes(self) -> dict[str, LaunchEntry | None]:
        return {uid: launch for uid, launch in super().changes().items() if launch is None or not launch.end}


class CountsFromOne(Lifecycle):
    """Each supervisor names its lives as the first one did."""

    def __init__(self, scheduler: Scheduler, epoch: str, **more: Any) -> None:
        super().__init__(scheduler, "0001", **more)


class NeverRetries(Lifecycle):
    """What waits is not tried again when a worker may take replicas again."""

    def undrain(self, now: float, worker: str) -> list[Action]:
        self.drains.pop(worker, None)
        return []


class ForgetsDrains(Lifecycle):
    """A supervisor that starts again places replicas on workers that its last life was told to empty."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{**more, "drains": {}})


@pytest.mark.parametrize("make", [ForgetsOtherRanks, TrustsStrangers, KeepsSecrets, CountsFromOne, NeverRetries, ForgetsDrains])
def test_known_bugs_are_found(make: type[Lifecycle]) -> None:
    assert _first_broken(make) is not None


def test_a_supervisor_that_does_not_settle_is_found() -> None:
    def restart_all() -> None:
        for seed in range(BUGS):
            restarted_supervisor(seed, IdleFirst(), make=NeverSettles)

    with pytest.raises(Broken, match="did away with"):
        restart_all()


def test_a_supervisor_that_waits_for_lost_workers_is_found() -> None:
    assert any(lost_worker(seed, IdleFirst(), make=NeverExpires) == float("inf") for seed in range(BUGS))


def _first_broken(make: type[Lifecycle]) -> str | None:
    """What breaks first; None where all goes well."""
    for seed in range(BUGS):
        try:
            troubled(seed, IdleFirst(), make=make)
        except (Broken, KeyError) as error:
            return f"seed {seed}: {error}"
    return None


def test_a_seed_replays_exactly_in_any_process() -> None:
    def trace(hashes: str) -> str:
        line = [sys.executable, "-m", "xi_core.testing.simulation", "--replay", "7"]
        return subprocess.run(line, env={**os.environ, "PYTHONHASHSEED": hashes}, check=True, capture_output=True, text=True).stdout

    first = trace("1")
    assert len(first.splitlines()) > 50
    assert first == trace("2")


def test_the_command_names_failing_seeds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "Lifecycle", ForgetsOtherRanks)
    monkeypatch.setattr(sys, "argv", ["simulation", "--seeds", str(BUGS)])
    assert command.main() == 1
    said = capsys.readouterr().out
    seed = said.partition("seed ")[2].partition(":")[0]
    assert f"--replay {seed}" in said
    monkeypatch.setattr(sys, "argv", ["simulation", "--replay", seed])
    assert command.main() == 1
    assert "Broken" in capsys.readouterr().out
