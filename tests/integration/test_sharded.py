"""Replicas that are sharded over two workers of this machine, all of it real processes; the engine is the tiny one of the tests."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xi_core.api.control import LaunchSpec, ModelStatus
from xi_core.errors import LaunchError, LaunchFailed
from xi_core.testing.cluster import LocalCluster, alive, pids, rank
from xi_core.testing.fakes import TEXT
from xi_core.testing.sharded_plugin import HOLD, MODEL, SLOWLY, WEIGHTS
from xi_core.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PLUGIN = "xi_core.testing.sharded_plugin"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    settings = {"XI_GRACE": "20", "XI_HANG_TIMEOUT": "1.5", "XI_LAUNCH_TIMEOUT": "30"}
    with LocalCluster(tmp_path_factory.mktemp("cluster"), plugins=[PLUGIN], env=settings) as made:
        for name in made.workers:
            (made.home(name) / WEIGHTS).mkdir()
        yield made


@pytest.fixture
def cluster(shared: LocalCluster) -> Iterator[LocalCluster]:
    """After each test: no launch, no process of a replica, no port."""
    yield shared
    for name in shared.workers:
        if shared.processes[name].poll() is not None:
            shared.start(name)
    shared.wait_workers()
    for model in shared.client.models():
        shared.client.terminate(model.id)
    assert not shared.replicas()
    assert not shared.ports_held()


def launched(cluster: LocalCluster, **fields: Any) -> ModelStatus:
    return cluster.client.launch(MODEL, model_uid="m", n_worker=2, n_gpu=None, **fields)


def text(cluster: LocalCluster, **fields: Any) -> str:
    answer = cluster.client.chat("m", [{"role": "user", "content": "Count!"}], **fields)
    return answer.choices[0].message.content or ""


def test_ready_with_both_ranks_and_answers(cluster: LocalCluster) -> None:
    status = launched(cluster)
    (replica,) = status.replicas
    assert [(r.rank, r.state) for r in replica.ranks] == [(0, "READY"), (1, "READY")]
    assert {r.worker for r in replica.ranks} == {"w1", "w2"}
    assert len(set(pids(status))) == 2
    assert text(cluster, temperature=0, max_tokens=20) == TEXT[:20]
    assert text(cluster, seed=5, max_tokens=20) == text(cluster, seed=5, max_tokens=20)
    for each in replica.ranks:
        name = "m-0.log" if each.rank == 0 else f"m-0.rank{each.rank}.log"
        log = (cluster.home(each.worker) / "logs" / name).read_text()
        assert log.startswith(f"rank {each.rank} of 2, link loopback\n"), log


def test_many_at_once_with_and_without_a_seed(cluster: LocalCluster) -> None:
    before = pids(launched(cluster, options={"pace": 0.002}))
    answers: list[str] = []

    def ask(seed: int | None) -> None:
        answers.append(text(cluster, max_tokens=30, temperature=1, **({} if seed is None else {"seed": seed})))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, None, 2, None, 1, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 6
    assert pids(cluster.client.model("m")) == before, "no rank has found a difference"


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_rank_takes_the_whole_replica_along_which_is_started_again(cluster: LocalCluster, number: int) -> None:
    before = launched(cluster)
    victim = rank(before, number)
    assert victim.pid
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: cluster.client.model("m").replicas[0].error is not None, 10.0, "the replica to have ended")
    assert str(cluster.client.model("m").replicas[0].error).startswith(f"rank {number} on {victim.worker}: m-0 was killed by SIGKILL")
    after = cluster.wait_ready("m", unlike=pids(before))
    assert not any(alive(pid) for pid in pids(before))
    assert after.replicas[0].restarts == 1
    assert sorted(cluster.replicas("m")) == sorted(pids(after))
    assert text(cluster, temperature=0, max_tokens=10) == TEXT[:10]


@pytest.mark.parametrize("number", [0, 1])
def test_a_stopped_rank_is_a_hung_replica(cluster: LocalCluster, number: int) -> None:
    before = launched(cluster)
    victim = rank(before, number)
    assert victim.pid
    os.kill(victim.pid, signal.SIGSTOP)
    cluster.wait_ready("m", unlike=pids(before))
    assert not any(alive(pid) for pid in pids(before))


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_hangs_in_a_step_is_found_by_the_requests_that_wait(cluster: LocalCluster, number: int) -> None:
    before = launched(cluster, options={"fault": "hang", "fault_rank": number, "fault_after": 5})
    with pytest.raises(Exception, match=r".") as caught:
        text(cluster, max_tokens=50)
    assert getattr(caught.value, "code", "") in ("replica_lost", "engine_error"), caught.value
    wait_until(lambda: not any(alive(pid) for pid in pids(before)), 10.0)
    cluster.wait_ready("m", unlike=pids(before))


def test_a_rank_that_computes_otherwise_ends_the_replica(cluster: LocalCluster) -> None:
    before = launched(cluster, options={"fault": "differ", "fault_after": 5})
    with pytest.raises(Exception, match=r".") as caught:
        text(cluster, max_tokens=50)
    assert getattr(caught.value, "code", "") in ("replica_lost", "engine_error"), caught.value
    after = cluster.wait_ready("m", unlike=pids(before))
    assert after.replicas[0].restarts >= 1
    log = cluster.home(rank(before, 1).worker) / "logs" / "m-0.rank1.log.1"
    assert "computed different tokens" in log.read_text()


def test_what_is_missing_on_one_worker_fails_the_launch_by_name(cluster: LocalCluster) -> None:
    weights = cluster.home("w2") / WEIGHTS
    weights.rmdir()
    try:
        with pytest.raises(LaunchError, match=r"rank \d on w2: weights is missing in this worker's home"):
            launched(cluster)
        cluster.wait_ended("m")
        assert not cluster.ports_held()
        cluster.client.terminate("m")
    finally:
        weights.mkdir()
    launched(cluster)


def test_a_rank_that_dies_at_its_start_is_tried_again_and_then_named(cluster: LocalCluster) -> None:
    with pytest.raises(LaunchFailed, match=r"ended 4 times within 60 s; the last time: rank 1 on w\d: .*ended with status 7") as caught:
        launched(cluster, options={"fault": "die"})
    assert "rank out of luck" in caught.value.message
    cluster.wait_ended("m")


def test_a_port_that_was_taken_meanwhile_is_no_reason_to_give_up(cluster: LocalCluster) -> None:
    status = launched(cluster, options={"fault": "taken", "fault_rank": 0})
    assert status.replicas[0].restarts == 1
    log = cluster.home(rank(status, 0).worker) / "logs" / "m-0.log.1"
    assert "rank 0 can't listen at 127.0.0.1:" in log.read_text()
    (cluster.home(rank(status, 0).worker) / WEIGHTS / "m-0").unlink()


@pytest.mark.parametrize("number", [0, 1])
def test_the_end_of_a_worker_with_all_below_it(cluster: LocalCluster, number: int) -> None:
    before = launched(cluster)
    lost, other = rank(before, number), rank(before, 1 - number)
    assert lost.pid
    assert other.pid
    cluster.kill(lost.worker)
    wait_until(lambda: not alive(lost.pid or 0), 5.0, "the keeper to end what the worker ran")
    cluster.start(lost.worker)
    after = cluster.wait_ready("m", unlike=pids(before))
    assert not alive(other.pid)
    assert after.replicas[0].error is None


def test_another_supervisor_adopts_both_ranks(cluster: LocalCluster) -> None:
    before = pids(launched(cluster))
    cluster.kill("supervisor")
    cluster.start("supervisor", "--settle", "3")
    cluster.wait_workers()
    after = cluster.wait_ready("m")
    assert pids(after) == before
    assert [r.state for r in after.replicas[0].ranks] == ["READY", "READY"]
    assert text(cluster, temperature=0, max_tokens=10) == TEXT[:10]
    os.kill(before[1], signal.SIGKILL)
    cluster.wait_ready("m", unlike=before)


@pytest.fixture
def held(cluster: LocalCluster) -> Iterator[Path]:
    """A launch of which w2 is still preparing its rank, while w1 waits."""
    hold = cluster.home("w2") / HOLD
    hold.touch()
    try:
        cluster.client.start(LaunchSpec(model_name=MODEL, model_uid="m", n_worker=2, n_gpu=None))
        wait_until(lambda: {r.stage for r in cluster.client.model("m").replicas[0].ranks} == {"waiting for the other ranks", "held"}, 10.0)
        assert cluster.ports_held()
        yield hold
    finally:
        hold.unlink(missing_ok=True)


def test_terminated_while_it_is_prepared(cluster: LocalCluster, held: Path) -> None:
    cluster.client.terminate("m")
    assert cluster.client.model("m").state == "CANCELLED"
    wait_until(lambda: not cluster.ports_held(), 5.0, "the ports to be free")
    assert not cluster.replicas("m")


def test_a_worker_that_dies_while_it_prepares_gives_nothing_to_wait_for(cluster: LocalCluster, held: Path) -> None:
    cluster.kill("w2")
    held.unlink()
    cluster.start("w2")
    ready = cluster.wait_ready("m")
    assert [r.state for r in ready.replicas[0].ranks] == ["READY", "READY"]
    assert len(cluster.replicas("m")) == 2


def test_a_keeper_that_dies_while_it_prepares_ends_nothing(cluster: LocalCluster, held: Path) -> None:
    """Its worker registers again, on the same link."""

    def keepers() -> dict[str, int]:
        return {p.name: p.pid for p in cluster.client.cluster().processes if p.role == "keeper"}

    before = keepers()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not set(before.values()) & set(keepers().values()), 10.0, "the keepers to be replaced")
    held.unlink()
    (replica,) = cluster.wait_ready("m").replicas
    assert (replica.moves, replica.restarts, replica.error) == (0, 0, None)


def test_a_supervisor_that_dies_while_it_prepares_leaves_no_rank_waiting(cluster: LocalCluster, held: Path) -> None:
    cluster.kill("supervisor")
    wait_until(lambda: not cluster.ports_held(), 10.0, "the ports to be free")
    held.unlink()
    cluster.start("supervisor")
    cluster.wait_workers()
    if not any(model.id == "m" for model in cluster.client.models()):  # it may remember
        launched(cluster)
    cluster.wait_ready("m")


@pytest.mark.parametrize("fault", ["slow", "deaf"])
@pytest.mark.parametrize("number", [0, 1])
def test_terminated_while_it_loads(cluster: LocalCluster, fault: str, number: int) -> None:
    spec = LaunchSpec(model_name=MODEL, model_uid="m", n_worker=2, n_gpu=None, options={"fault": fault, "fault_rank": number})
    cluster.client.start(spec)
    wait_until(lambda: len(cluster.replicas("m")) == 2, 10.0, "both ranks to start")
    cluster.client.terminate("m")
    assert not cluster.replicas("m")
    assert not cluster.ports_held()
    assert cluster.client.model("m").state == "CANCELLED"


def test_terminated_while_it_answers(cluster: LocalCluster) -> None:
    """The answer is finished: rank 1 goes on until rank 0 has done its work."""
    launched(cluster, options={"pace": 0.02})
    deltas = cluster.client.chat("m", [{"role": "user", "content": "Count!"}], stream=True, temperature=0, max_tokens=40)
    said = next(iter(deltas)).text
    ending = threading.Thread(target=cluster.client.terminate, args=("m",))
    ending.start()
    said += "".join(delta.text for delta in deltas)
    ending.join(20)
    assert said == TEXT[:40]
    assert not cluster.replicas("m")


SHORT = 3.0
"""Seconds of a launch timeout that is soon over."""


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("hasty"), plugins=[PLUGIN], env={"XI_LAUNCH_TIMEOUT": f"{SHORT:g}"}) as made:
        for name in made.workers:
            (made.home(name) / WEIGHTS).mkdir()
        yield made


def test_a_rank_may_download_for_longer_than_the_launch_timeout(hasty: LocalCluster) -> None:
    began, hold = time.monotonic(), hasty.home("w2") / HOLD
    hold.write_text(SLOWLY)
    hasty.client.start(LaunchSpec(model_name=MODEL, model_uid="m", n_worker=2, n_gpu=None))
    wait_until(lambda: time.monotonic() > began + 2 * SHORT, 3 * SHORT, "a download of twice the launch timeout, which is what is tested")
    assert hasty.client.model("m").state == "PREPARING"
    hold.unlink()
    hasty.wait_ready("m")
    hasty.client.terminate("m")


def test_a_rank_whose_download_stalls_ends_the_launch_by_its_deadline(hasty: LocalCluster) -> None:
    hold = hasty.home("w1") / HOLD
    hold.write_text(SLOWLY)
    try:
        hasty.client.start(LaunchSpec(model_name=MODEL, model_uid="m", n_worker=2, n_gpu=None))
        wait_until(lambda: "held" in {r.stage for r in hasty.client.model("m").replicas[0].ranks}, 10.0)
        hold.write_text("")
        assert "not ready within its time" in str(hasty.wait_ended("m", 4 * SHORT).error)
        wait_until(lambda: not hasty.ports_held(), 5.0, "the ports to be free")
    finally:
        hold.unlink()
    hasty.client.terminate("m")
