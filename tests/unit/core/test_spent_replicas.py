"""The pure core where a replica ends again and again while another serves: nobody waits for it, and it is tried on."""

from __future__ import annotations

from typing import Any

from device_clusters import cluster, member, ready, starts, stops, wanted

from xi_core.cluster.launches import LaunchEntry
from xi_core.cluster.lifecycle import LEASE, RESTARTS, Lifecycle
from xi_core.cluster.replicas import Start

WHY = "the device is broken"


def two_that_serve(*workers: str) -> tuple[Lifecycle, list[Start], LaunchEntry]:
    """A launch of two replicas that has been READY."""
    core = cluster(*(member(name) for name in workers or ("w1", "w2")))
    lives = starts(core.accept(0.0, wanted(replica=2)))
    ready(core, *lives, now=1.0)
    return core, lives, core.known("m")


def next_life(core: Lifecycle, now: float) -> tuple[float, Start]:
    """When the clock begins another life, and which."""
    while not (begun := starts(core.tick(now))):
        now = max(now + 0.01, core.next_wake() or now)
    return now, begun[0]


def spend(core: Lifecycle, life: Start, now: float = 2.0) -> float:
    """It ends as often as it is started again at once. Answers when it ended for the last time."""
    for left in range(RESTARTS, -1, -1):
        core.replica_gone(now, life.incarnation, WHY)
        if left:
            now, life = next_life(core, now)
    return now


def told(launch: LaunchEntry) -> dict[str, Any]:
    status = launch.status()
    return {"state": status.state, "stuck": status.stuck, "ready": status.ready_replicas, "why": status.hindrance()}


def test_what_still_has_restarts_is_waited_for() -> None:
    core, lives, launch = two_that_serve()
    life, now = lives[1], 2.0
    for _ in range(RESTARTS):
        core.replica_gone(now, life.incarnation, WHY)
        assert not launch.status().stuck
        now, life = next_life(core, now)
        assert not launch.status().stuck


def test_what_ended_again_and_again_is_stuck_and_says_why() -> None:
    core, lives, launch = two_that_serve()
    spend(core, lives[1])
    assert told(launch) == {
        "state": "PENDING", "stuck": True, "ready": 1, "why": "m-1: ends again and again, tried every 60 s: the device is broken",
    }  # fmt: skip
    assert launch.status().is_settled(0.0), "a part of it serves"


def test_it_is_stuck_too_while_it_is_tried_again_and_no_longer_when_it_serves() -> None:
    core, lives, launch = two_that_serve()
    now, life = next_life(core, spend(core, lives[1]))
    assert (told(launch)["stuck"], told(launch)["why"]) == (True, "m-1: placed: the device is broken")
    ready(core, life, now=now)
    assert told(launch) == {"state": "READY", "stuck": False, "ready": 2, "why": ""}
    core.replica_gone(now + 1000.0, life.incarnation, WHY)
    assert not launch.status().stuck, "it has its restarts again"


def test_what_served_since_and_is_moved_is_on_its_way() -> None:
    core, lives, launch = two_that_serve("w1", "w2", "w3")
    now, life = next_life(core, spend(core, lives[1]))
    ready(core, life, now=now)
    assert starts(core.worker_removed(now + 1.0, life.assignments[0].worker))
    assert not launch.status().stuck


def test_one_that_is_moved_has_its_restarts_again() -> None:
    core, lives, launch = two_that_serve("w1", "w2", "w3")
    now, life = next_life(core, spend(core, lives[1]))
    assert launch.status().stuck
    assert starts(core.worker_removed(now + 1.0, life.assignments[0].worker))
    assert not launch.status().stuck, "another worker's devices need not be broken"


def test_another_that_is_being_started_is_waited_for() -> None:
    core, lives, launch = two_that_serve()
    now = spend(core, lives[1])
    (third,) = starts(core.scale(now, "m", 3))
    assert not launch.status().stuck
    ready(core, third, now=now)
    assert (told(launch)["stuck"], told(launch)["ready"]) == (True, 2)


def test_it_is_stuck_beside_one_whose_worker_is_away() -> None:
    core, lives, launch = two_that_serve()
    now = spend(core, lives[1])
    core.worker_left(now, lives[0].assignments[0].worker)
    core.worker_removed(now, "w2" if lives[0].assignments[0].worker == "w1" else "w1")
    core.tick(now + 2 * LEASE + 0.01)
    assert (launch.end, told(launch)["stuck"], told(launch)["ready"]) == ("", True, 0)


def test_a_first_launch_fails_though_a_part_of_it_can_be_had() -> None:
    core = cluster(member("w1"), member("w2"))
    lives = starts(core.accept(0.0, wanted(replica=2)))
    ready(core, lives[0], now=1.0)
    life, now = lives[1], 2.0
    for _ in range(RESTARTS):
        core.replica_gone(now, life.incarnation, WHY)
        now, life = next_life(core, now)
    assert stops(core.replica_gone(now, life.incarnation, WHY)) == ["m-0"]
    assert (launch := core.known("m")).end == "FAILED"
    assert not launch.status().stuck
