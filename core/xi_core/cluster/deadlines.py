"""What time alone brings about: launches that took too long or are to be forgotten, workers that stay away, drains that end.

Pure: called by `lifecycle`.
"""

from __future__ import annotations

from functools import partial

from xi_core.cluster.launches import LaunchEntry
from xi_core.cluster.placement import Rejection
from xi_core.cluster.replicas import Action, Ending, Replica
from xi_core.cluster.state import ClusterState

LEASE = 1.25
"""Seconds for which a worker's word holds after its link went down. That is noticed within 2 s; with two leases a replica moves in 5."""
KEPT = 600.0
"""Seconds for which an ended launch is remembered: for its reason to be read, and for a worker that comes back with replicas of it. Of one
that was stopped only its name is."""


def wake_of(state: ClusterState, uid: str) -> float | None:
    """When this launch has something to do next."""
    launch = state.launches.get(uid)
    if launch is None:
        return None
    if launch.end and not launch.live:
        return launch.ended_at + _kept(launch)
    times = [launch.deadline] if launch.deadline is not None and not launch.end else []
    for replica in launch.replicas:
        if replica.lost_at is not None:
            times.append(replica.lost_at + 2 * LEASE)
        if replica.move_by is not None and not replica.leaving and not launch.end:
            times.append(replica.move_by)
        if not launch.end and not replica.live and replica.start_at is not None:
            times.append(max(replica.start_at, state.settled_at))
    return min(times, default=None)


def tick(state: ClusterState, now: float) -> list[Action]:
    """Time has passed: what is due now."""
    actions: list[Action] = []
    due = state.touched.due(now, partial(wake_of, state), state.launches)
    for launch in due:
        if launch.end:
            _forget(state, now, launch)
        elif launch.deadline is not None and now >= launch.deadline:
            if launch.serves or launch.waits:
                actions += state.begin_rest_anew(now, launch)
            else:
                actions += state.fail(now, launch, f"not ready within its time; {launch.hindrance()}")
    replicas = [(launch, replica) for launch in due for replica in launch.replicas]
    for _, replica in replicas:  # of all, before a place is looked for: the room that they had in their launch's pool is for others now
        if _stays_away(replica, now):
            replica.call_away()
    for launch, replica in replicas:
        if _stays_away(replica, now):
            actions += _expire(state, now, launch, replica)
        if replica.move_by is not None and now >= replica.move_by and replica.live and not replica.leaving and not launch.end:
            actions += state.overdue(now, launch, replica)
    return actions + state.start_due(now)


def _kept(launch: LaunchEntry) -> float:
    """Seconds from its end for which all of it is kept, while nothing of it runs."""
    return 0.0 if launch.end == "STOPPED" else KEPT


def _forget(state: ClusterState, now: float, launch: LaunchEntry) -> None:
    """Forget a launch whose time has come."""
    if launch.live or now < launch.ended_at + _kept(launch):
        return
    if launch.end == "STOPPED":
        state.over.add(now, launch, now - KEPT)
    state.forget(launch)


def _stays_away(replica: Replica, now: float) -> bool:
    """Whether a worker of it has been away for two leases, anew or again."""
    return replica.lost_at is not None and now >= replica.lost_at + 2 * LEASE


def _expire(state: ClusterState, now: float, launch: LaunchEntry, replica: Replica) -> list[Action]:
    """A worker of it stayed away. Move it if there is a place elsewhere; if not, it may well go on serving, and is asked for again."""
    lost = [rank for rank in replica.ranks if rank.lost_at is not None and not rank.gone]
    where = ", ".join(dict.fromkeys(rank.worker for rank in lost))
    if launch.end or replica.leaving or not isinstance(state.place(launch, replica), Rejection):
        return state.lose(now, launch, replica, lost, Ending(f"worker {where} is away", fault=False))
    for rank in lost:
        rank.lost_at, rank.stage = now, f"worker {rank.worker} is away"
    replica.stage = f"worker {where} is away"
    launch.look(now + state.launch_timeout)
    return []
