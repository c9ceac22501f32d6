"""A worker that is drained stays so over the supervisor's lives and its own; real processes, and a store on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.errors import WorkerNotFound, XiError
from xi_core.testing.cluster import LocalCluster
from xi_core.testing.sleeping_plugin import MODEL
from xi_core.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path, plugins=["xi_core.testing.sleeping_plugin"], env={"XI_GRACE": "5"}) as made:
        yield made


def places(cluster: LocalCluster) -> list[str]:
    return sorted(replica.worker or "" for replica in cluster.client.model("m").replicas)


def states(cluster: LocalCluster) -> dict[str, str]:
    return {worker.name: worker.state for worker in cluster.client.workers()}


def shown(cluster: LocalCluster, *arguments: str) -> str:
    environment = {**os.environ, "XI_ENDPOINT": f"http://127.0.0.1:{cluster._port}", "NO_COLOR": "1"}
    xi = str(Path(sys.executable).with_name("xi"))
    return subprocess.run([xi, *arguments], env=environment, check=True, capture_output=True, text=True, timeout=60).stdout


def restart_supervisor(cluster: LocalCluster) -> None:
    """It places nothing for some seconds: whichever worker comes first, the others tell what they run before that is placed anew."""
    cluster.kill("supervisor")
    cluster.start("supervisor", "--settle", "3")


def has(cluster: LocalCluster, names: set[str]) -> bool:
    """Whether these workers, and no others, are known to a supervisor that answers."""
    try:
        return set(states(cluster)) == names
    except XiError:
        return False


def test_a_drained_worker_stays_drained_over_restarts_until_that_is_undone(cluster: LocalCluster) -> None:
    cluster.client.launch(MODEL, model_uid="m", n_gpu=None, replica=2, scheduler="spread")
    assert places(cluster) == ["w1", "w2"]
    shown(cluster, "drain", "w1")
    assert places(cluster) == ["w2", "w2"]
    restart_supervisor(cluster)
    cluster.wait_workers()
    assert states(cluster) == {"w1": "draining", "w2": "ready"}
    assert next(line for line in shown(cluster, "cluster").splitlines() if "w1" in line).split()[1] == "draining"
    assert "worker w1 is drained, since before this start; `xi drain w1 --undo`" in cluster.log("supervisor")
    cluster.wait_ready("m")
    cluster.client.scale("m", 4)
    cluster.wait_ready("m")
    assert places(cluster) == ["w2"] * 4, "nothing is placed on it"
    cluster.kill("w1")  # one that is started again is the same worker
    cluster.start("w1")
    wait_until(lambda: states(cluster)["w1"] == "draining", 30.0, "w1 to be back")
    cluster.client.drain("w1", undo=True)
    restart_supervisor(cluster)
    cluster.wait_workers()
    assert states(cluster) == {"w1": "ready", "w2": "ready"}
    cluster.wait_ready("m")
    cluster.client.scale("m", 6)
    cluster.wait_ready("m")
    assert places(cluster).count("w1") == 2


def test_a_drained_worker_that_has_not_come_back_is_shown_and_can_be_undone(cluster: LocalCluster) -> None:
    cluster.client.drain("w1")
    cluster.kill("w1")
    restart_supervisor(cluster)
    wait_until(lambda: has(cluster, {"w1", "w2"}), 30.0, "the drained worker to be known, and the other to be back")
    assert states(cluster)["w1"] == "away"
    cluster.client.drain("w1", undo=True)
    assert set(states(cluster)) == {"w2"}
    with pytest.raises(WorkerNotFound):
        cluster.client.drain("w1", undo=True)
    cluster.start("w1")
    wait_until(lambda: states(cluster).get("w1") == "ready", 30.0, "w1 to be back")
