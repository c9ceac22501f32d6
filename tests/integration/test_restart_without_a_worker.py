"""The supervisor is killed while a worker is away for which there is no substitute: what serves elsewhere serves on. Real processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.errors import XiError
from xi_core.testing.cluster import LocalCluster
from xi_core.testing.sleeping_plugin import MODEL
from xi_core.testing.waiting import wait_until

TIMEOUT = 8.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """Each of the two workers has room for one replica."""
    env = {"XI_FAKE_DEVICES": "1x1GiB", "XI_ALLOW_MULTI_REPLICA_PER_GPU": "0", "XI_LAUNCH_TIMEOUT": f"{TIMEOUT:g}"}
    with LocalCluster(tmp_path, plugins=["xi_core.testing.sleeping_plugin"], env=env) as made:
        yield made


def counted(cluster: LocalCluster) -> tuple[str, int, set[str]]:
    """The launch's state, how many of its replicas are said to serve, and what is said of the others."""
    try:
        status = cluster.client.model("m")
    except XiError:
        return "", 0, set()
    return status.state, status.ready_replicas, {replica.stage for replica in status.replicas if replica.state != "READY"}


def serving(cluster: LocalCluster) -> list[int | None]:
    """The processes of those that are said to."""
    return [replica.pid for replica in cluster.client.model("m").replicas if replica.state == "READY"]


def test_the_replica_that_is_left_serves_on_and_the_other_is_not_counted(cluster: LocalCluster) -> None:
    cluster.client.launch(MODEL, model_uid="m", n_gpu=1, replica=2)
    cluster.kill("w1")
    wait_until(lambda: counted(cluster) == ("PENDING", 1, {"worker w1 is away"}), 10.0, "one to be missed")
    assert cluster.client.launch(MODEL, model_uid="m", n_gpu=1, replica=2).state == "PENDING", "it is not waited for again"
    (left,) = serving(cluster)
    cluster.kill("supervisor")
    cluster.start("supervisor", "--settle", "3")
    wait_until(lambda: counted(cluster)[:2] == ("PENDING", 1), 10.0, "the other to be adopted")
    time.sleep(1.2 * TIMEOUT)  # the new supervisor's deadline for the launch
    assert (counted(cluster)[:2], serving(cluster)) == (("PENDING", 1), [left])
    assert cluster.client.chat("m", [{"role": "user", "content": "Count!"}], max_tokens=2).usage is not None
    cluster.start("w1")
    cluster.wait_ready("m")
    assert left in serving(cluster)
