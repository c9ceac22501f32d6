"""Members that are struck off the list while requests run: they end, their replicas move, and nobody else notices."""

from __future__ import annotations

import time

from town import UID, Load, Town, eventually


def remove(town: Town, name: str, **query: str) -> tuple[int, dict[str, object]]:
    answer = town.http.delete(f"/v1/cluster/members/{name}", params=query)
    return answer.status_code, answer.json()


def test_a_worker_that_is_removed_by_force_ends_and_its_replica_moves(busy: Town) -> None:
    with Load(busy) as load:
        status, body = remove(busy, "w1")
        assert status == 409, body
        assert "xi drain w1" in str(body)
        status, body = remove(busy, "w1", force="true")
        assert (status, body["role"]) == (200, "worker"), body
        assert busy.processes["w1"].wait(20.0) != 0
        busy.settled(["w2", "w2"])
        assert not busy.replicas("w1")
        load.more()
    load.all_well()
    assert "was removed from the cluster" in busy.said("w1")
    assert "Traceback" not in busy.said("w1")
    assert [one["name"] for one in busy.http.get("/v1/cluster/members").json()] == ["w2"]
    assert {worker["name"] for worker in busy.http.get("/v1/workers").json()} == {"w2"}
    again = busy.start("w1", "worker", "-e", busy.word["cluster_endpoint"], "--name", "w1")
    assert again.wait(20.0) != 0, "its key is worth nothing any more"
    busy.start("w1", "worker", "-e", busy.word["cluster_endpoint"], "--name", "w1", "--token", busy.token())
    eventually(lambda: set(busy.pids("worker")) == {"w1", "w2"}, 30.0, "it to be in with a new token")


def test_a_drained_worker_is_removed_without_force(busy: Town) -> None:
    with Load(busy) as load:
        busy.http.post("/v1/workers/w1/drain", json={"seconds": 30.0}).raise_for_status()
        busy.settled(["w2", "w2"])
        assert remove(busy, "w1")[0] == 200
        assert busy.processes["w1"].wait(20.0) != 0
        load.more()
    load.all_well()


def test_a_gateway_that_is_removed_ends_and_new_keys_are_taken_up(busy: Town) -> None:
    """The replicas that ran before open to the old keys, those that are started then to the new ones; gateways have both."""
    url = busy.start("g1", "gateway", "-e", busy.word["cluster_endpoint"], "--name", "g1", "-p", "0", "--token", busy.token("gateway"))
    eventually(lambda: "g1" in busy.pids("gateway"), 30.0, "the gateway")
    before = busy.pids("replica")
    with Load(busy) as load:
        status, body = remove(busy, "g1")
        assert (status, body["role"], len(body["replicas"])) == (200, "gateway", 2), body  # type: ignore[arg-type]
        assert url.wait(20.0) != 0
        assert "was removed from the cluster" in busy.said("g1")
        load.more()
        assert busy.pids("replica") == before
        for name, other in (("w1", "w2"), ("w2", "w1")):  # which starts every replica anew
            busy.http.post(f"/v1/workers/{name}/drain", json={"seconds": 30.0}).raise_for_status()
            busy.settled([other, other])
            busy.http.post(f"/v1/workers/{name}/drain", json={"undo": True}).raise_for_status()
            load.more()
        assert not set(before.values()) & set(busy.pids("replica").values())
    load.all_well()
    rotated = busy.http.post("/v1/cluster/gateway-keys").raise_for_status().json()["replicas"]
    assert len(rotated) == 2
    began = time.monotonic()
    eventually(lambda: busy.complete() == 200, 10.0, f"{UID} to answer")
    assert time.monotonic() - began < 5.0, "nothing is interrupted"
