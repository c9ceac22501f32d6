"""Models that sleep and wake, by processes of all kinds; the engine is one over the stub server."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from xi_core.errors import Conflict, InvalidRequest, ModelAsleep, ModelNotFound, UnsupportedField, XiError
from xi_core.testing.cluster import LocalCluster
from xi_core.testing.sleeping_plugin import MODEL
from xi_core.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes by their number")
SETTINGS = {"XI_GRACE": "20", "XI_HANG_TIMEOUT": "1.5"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("sleeping"), plugins=["xi_core.testing.sleeping_plugin"], env=SETTINGS) as made:
        yield made


@pytest.fixture
def cluster(shared: LocalCluster) -> Iterator[LocalCluster]:
    yield shared
    for model in shared.client.models():
        shared.client.terminate(model.id)


def launched(cluster: LocalCluster, **fields: Any) -> None:
    cluster.client.launch(MODEL, model_uid="m", n_gpu=None, **{"sleep_mode": "on", **fields})


def ask(cluster: LocalCluster, **fields: Any) -> str:
    return cluster.client.chat("m", [{"role": "user", "content": "Count!"}], temperature=0, **fields).choices[0].message.content or ""


def levels(cluster: LocalCluster) -> list[int]:
    return [replica.asleep for replica in cluster.client.model("m").replicas]


@pytest.mark.parametrize("level", [1, 2])
def test_all_replicas_sleep_until_they_are_woken(cluster: LocalCluster, level: int) -> None:
    launched(cluster, replica=2)
    pids = cluster.replicas()
    cluster.client.sleep("m", level)
    assert levels(cluster) == [level, level]
    status = cluster.client.model("m")
    assert (status.state, status.ready_replicas, status.asleep_replicas) == ("READY", 0, 2)
    for _ in range(3):
        with pytest.raises(ModelAsleep, match="model 'm' is asleep; wake it with `xi wake m`"):
            ask(cluster)
    cluster.client.sleep("m", level)
    cluster.client.wake("m")
    assert ask(cluster).startswith("one two")
    assert levels(cluster) == [0, 0]
    cluster.client.wake("m")
    assert cluster.replicas() == pids, "nothing was restarted"


def test_a_sleeper_outlives_the_time_that_hung_replicas_have(cluster: LocalCluster) -> None:
    """Twice the hang timeout, with the health of its process reported all the time."""
    launched(cluster)
    pids = cluster.replicas()
    cluster.client.sleep("m")
    assert not threading.Event().wait(3.0)
    assert (cluster.replicas(), levels(cluster)) == (pids, [1])
    cluster.client.wake("m")
    assert ask(cluster)


def test_running_requests_end_first(cluster: LocalCluster) -> None:
    launched(cluster, pace=0.02)
    stream = cluster.client.chat("m", [{"role": "user", "content": "Count!"}], stream=True, temperature=0)
    first = next(stream)
    cluster.client.sleep("m")
    rest = "".join(delta.text for delta in stream)
    assert (first.text + rest).endswith("fifteen")
    with pytest.raises(ModelAsleep):
        ask(cluster)


def test_orders_that_can_not_be_obeyed_change_nothing(cluster: LocalCluster) -> None:
    client = cluster.client
    for order in (client.sleep, client.wake):
        with pytest.raises(ModelNotFound, match="no model 'other' is launched"):
            order("other")
    launched(cluster, sleep_mode="")
    with pytest.raises(UnsupportedField, match="model 'm' can't sleep on engine stub: launch it with --sleep-mode on"):
        client.sleep("m")
    with pytest.raises(InvalidRequest, match="level"):
        client.sleep("m", 3)
    assert levels(cluster) == [0]
    assert ask(cluster)


def test_a_server_that_refuses_leaves_its_model_awake(cluster: LocalCluster) -> None:
    launched(cluster, sleep_mode="busy")
    with pytest.raises(Conflict, match=r"asked for POST /sleep\?level=1, answered 400: .*it is busy"):
        cluster.client.sleep("m")
    assert levels(cluster) == [0]
    assert ask(cluster)


def test_another_level_needs_to_wake_first(cluster: LocalCluster) -> None:
    launched(cluster)
    cluster.client.sleep("m")
    with pytest.raises(Conflict, match="sleeps at level 1 already; wake it first: xi wake m"):
        cluster.client.sleep("m", 2)
    assert levels(cluster) == [1]


def test_an_engine_that_breaks_over_it_is_replaced_by_one_that_is_awake(cluster: LocalCluster) -> None:
    launched(cluster, sleep_mode="broken")
    pids = cluster.replicas()
    with pytest.raises(XiError, match=r"answered 500: .*no memory"):
        cluster.client.sleep("m")
    cluster.wait_ready("m", unlike=pids)
    assert levels(cluster) == [0]
    assert ask(cluster)


def test_a_replica_that_died_asleep_comes_back_awake(cluster: LocalCluster) -> None:
    launched(cluster)
    cluster.client.sleep("m")
    before = cluster.client.model("m").replicas[0].pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    cluster.wait_ready("m", unlike=[before])
    assert levels(cluster) == [0]
    assert ask(cluster)


def test_a_new_supervisor_and_a_new_gateway_know_who_sleeps(cluster: LocalCluster) -> None:
    launched(cluster)
    cluster.client.sleep("m")
    for name, arguments in (("supervisor", ("--settle", "3")), ("gateway", ())):  # both workers can report before anything is placed
        cluster.kill(name)
        cluster.start(name, *arguments)
    cluster.wait_workers()
    wait_until(lambda: [model.asleep_replicas for model in cluster.client.models()] == [1], 20.0, "the replica to be adopted asleep")

    def refused() -> bool:
        try:
            ask(cluster)
        except ModelAsleep:
            return True
        except XiError:
            return False
        raise AssertionError("it was served asleep")

    wait_until(refused, 10.0, "the gateway to know it")
    cluster.client.wake("m")
    assert ask(cluster)


def test_a_model_that_sleeps_can_be_terminated(cluster: LocalCluster) -> None:
    launched(cluster)
    cluster.client.sleep("m")
    cluster.client.terminate("m")
    assert not cluster.replicas()
