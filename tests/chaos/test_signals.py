"""`kill -9`, -STOP and -CONT of each process of a cluster, under load of plain requests, none of which may fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from town import Load, Town, alive, eventually, stopped

from xi_core.cluster.lifecycle import LEASE
from xi_core.testing.cluster import LocalCluster, pids, rank
from xi_core.testing.sharded_plugin import MODEL, WEIGHTS
from xi_core.testing.waiting import wait_until

ORPHANS = 2.0
"""Seconds after which nothing of a dead worker may hold a device."""


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def second_gateway(busy: Town) -> str:
    """The URL of a gateway that isn't the head's."""
    busy.gateway("g1")
    return "http://127.0.0.1:18997"


# ---- replica ------------------------------------------------------------------------------------


def test_a_killed_replica_takes_no_request_and_comes_back(busy: Town) -> None:
    victim = busy.replicas("w1")
    with Load(busy) as load:
        kill(*victim)
        eventually(lambda: busy.usable() == 1, 0.5, "it to leave the routing")
        busy.settled(["w1", "w2"])
        load.more()
    load.all_well()


def test_a_stopped_replica_takes_no_request_and_is_used_again(busy: Town) -> None:
    before = busy.pids("replica")
    (victim,) = busy.replicas("w1")
    with Load(busy) as load:
        with stopped(victim):
            eventually(lambda: busy.usable() == 1, 0.75, "it to leave the routing: three heartbeats")
            load.more()
        busy.settled(["w1", "w2"])
        load.more()
    load.all_well()
    assert busy.pids("replica") == before


# ---- worker and keeper --------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["keeper lives", "keeper killed before"])
def test_a_killed_worker_leaves_no_orphan_and_its_replica_moves(busy: Town, kept: str) -> None:
    if kept != "keeper lives":
        keeper = busy.pid("keeper", "w1")
        kill(keeper)
        eventually(lambda: busy.pid("keeper", "w1") != keeper, 5.0, "another keeper")
    orphans = busy.replicas("w1")
    with Load(busy) as load:
        kill(busy.pid("worker", "w1"))
        wait_until(lambda: not any(map(alive, orphans)), ORPHANS, "its replica to be gone")
        busy.settled(["w2", "w2"], 10.0)
        busy.processes["w1"].wait()
        busy.work("w1")
        load.more()
    load.all_well()


def test_worker_and_keeper_killed_at_once_leave_no_orphan(busy: Town) -> None:
    orphans = busy.replicas("w1")
    with Load(busy) as load:
        kill(busy.pid("keeper", "w1"), busy.pid("worker", "w1"))
        wait_until(lambda: not any(map(alive, orphans)), ORPHANS, "its replica to be gone")
        busy.settled(["w2", "w2"])
        load.more()
    load.all_well()


def test_a_worker_that_is_stopped_for_long_loses_its_replica_and_ends_its_own_copy(busy: Town) -> None:
    (stale,) = busy.replicas("w1")
    with Load(busy) as load:
        with stopped(busy.pid("worker", "w1")):
            eventually(lambda: busy.places() == ["w2", "w2"], 15.0, "the replica to be placed elsewhere")
            load.more()
        eventually(lambda: set(busy.pids("worker")) == {"w1", "w2"}, 15.0, "the worker to be back")
        wait_until(lambda: not alive(stale), 15.0, "the stale copy to end")
        busy.settled(["w2", "w2"])
        load.more()
    load.all_well()


def test_a_worker_that_is_stopped_for_less_than_a_lease_loses_nothing(busy: Town) -> None:
    before = busy.pids("replica")
    with Load(busy) as load:
        with stopped(busy.pid("worker", "w1")):
            time.sleep(LEASE / 2)  # the length of the stop is what is tested
        load.more()
        busy.settled(["w1", "w2"])
    load.all_well()
    assert busy.pids("replica") == before
    assert "worker w1 is away" not in busy.said("head")


# ---- supervisor, gateway, launcher --------------------------------------------------------------


def test_a_supervisor_killed_three_times_adopts_the_same_replicas(busy: Town) -> None:
    before = busy.pids("replica")
    with Load(busy) as load:
        for _ in range(3):
            supervisor = busy.pid("supervisor")
            kill(supervisor)
            eventually(lambda: busy.pid("supervisor") != supervisor, 10.0, "another supervisor")  # noqa: B023 - used at once
            eventually(lambda: busy.status()["ready_replicas"] == 2, 5.0, "the adoption")
            busy.settled(["w1", "w2"])
            load.more()
    load.all_well()
    assert busy.pids("replica") == before


def test_a_replica_killed_while_the_supervisor_is_away_comes_back(busy: Town) -> None:
    supervisor = busy.pid("supervisor")
    with Load(busy) as load:
        kill(supervisor, *busy.replicas("w1"))
        eventually(lambda: busy.pid("supervisor") != supervisor, 10.0, "another supervisor")
        busy.settled(["w1", "w2"])
        load.more()
    load.all_well()


def test_worker_and_supervisor_killed_at_once(busy: Town) -> None:
    """The new supervisor knows what is wanted, and places it where there is still a worker."""
    supervisor, orphans = busy.pid("supervisor"), busy.replicas("w1")
    with Load(busy) as load:
        kill(supervisor, busy.pid("worker", "w1"))
        wait_until(lambda: not any(map(alive, orphans)), ORPHANS, "its replica to be gone")
        eventually(lambda: busy.pid("supervisor") != supervisor, 10.0, "another supervisor")
        busy.settled(["w2", "w2"])
        load.more()
    load.all_well()


def test_a_supervisor_that_is_stopped_for_five_seconds_moves_nothing(busy: Town) -> None:
    before = busy.pids("replica")
    with Load(busy) as load:
        with stopped(busy.pid("supervisor")):
            time.sleep(5.0)  # the length of the stop is what is tested
            load.more()
        eventually(lambda: set(busy.pids("worker")) == {"w1", "w2"}, 15.0, "the workers to be back")
        busy.settled(["w1", "w2"])
        load.more()
    load.all_well()
    assert busy.pids("replica") == before


def test_a_killed_gateway_comes_back_and_another_serves_meanwhile(busy: Town, second_gateway: str) -> None:
    before = busy.pids("replica")
    victim = next(process["pid"] for process in busy.word["processes"] if process["role"] == "gateway")
    with Load(busy, url=second_gateway) as load:
        kill(victim)
        busy.http.close()
        busy.http = busy.visitor()
        eventually(lambda: busy.complete() == 200, 20.0, "the head's gateway to be back")
        load.more()
    load.all_well()
    assert busy.pids("replica") == before
    eventually(lambda: sum(n for name, n in busy.metrics().items() if name.startswith("xi_requests_open")) == 0, 10.0, "no slot held")


def test_a_stopped_gateway_answers_late_but_well(busy: Town) -> None:
    victim = next(process["pid"] for process in busy.word["processes"] if process["role"] == "gateway")
    with Load(busy) as load:
        with stopped(victim):
            time.sleep(3.0)  # the length of the stop is what is tested
        load.more()
        busy.settled(["w1", "w2"])
    load.all_well()


def test_a_killed_launcher_takes_its_own_along_and_the_rest_serves_on(busy: Town, second_gateway: str) -> None:
    """The head is gone with supervisor and gateway; another gateway serves from what it knows, and a new head adopts what runs."""
    before = busy.pids("replica")
    own = [process["pid"] for process in busy.word["processes"]]
    with Load(busy, url=second_gateway) as load:
        busy.processes["head"].kill()
        busy.processes["head"].communicate()
        wait_until(lambda: not any(map(alive, own)), ORPHANS, "supervisor and gateway to be gone")
        load.more()
        port, cluster_port = (busy.word[name].rpartition(":")[2] for name in ("endpoint", "cluster_endpoint"))
        busy.start("head", "supervisor", "-p", port, "--cluster-port", cluster_port)
        busy.http.close()
        busy.http = busy.visitor()
        busy.settled(["w1", "w2"])
        load.more()
    load.all_well()
    assert busy.pids("replica") == before


# ---- sharded ------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[LocalCluster]:
    """Three workers; one model over two of them."""
    settings = {"XI_GRACE": "5", "XI_HANG_TIMEOUT": "2", "XI_LAUNCH_TIMEOUT": "30"}
    workers = ("w1", "w2", "w3")
    with LocalCluster(tmp_path, workers, plugins=["xi_core.testing.sharded_plugin"], env=settings) as made:
        for name in workers:
            (made.home(name) / WEIGHTS).mkdir()
        made.client.launch(MODEL, model_uid="m", n_worker=2, n_gpu=None)
        yield made


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_of_a_sharded_replica_takes_all_ranks_along(sharded: LocalCluster, number: int, how: signal.Signals) -> None:
    before = sharded.client.model("m")
    old, lost = pids(before), rank(before, number).worker
    sharded.processes[lost].send_signal(how)
    if how is signal.SIGKILL:
        wait_until(lambda: not alive(old[number]), ORPHANS, "the rank to go with its worker")
    status = sharded.wait_ready("m", unlike=old)
    assert lost not in {one.worker for one in status.replicas[0].ranks}
    assert not alive(old[1 - number]), "no half of it is left"
    answer = sharded.client.chat("m", [{"role": "user", "content": "Count!"}], temperature=0, max_tokens=5)
    assert answer.choices[0].message.content
    if how is signal.SIGSTOP:
        sharded.processes[lost].send_signal(signal.SIGCONT)
        wait_until(lambda: sorted(sharded.replicas("m")) == sorted(pids(status)), 15.0, "the stale rank to end")
    assert sharded.client.model("m").state == "READY"
