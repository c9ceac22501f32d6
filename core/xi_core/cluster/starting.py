"""How a launch begins: it is entered, and its replicas are placed all at once, or only in thought. Pure: called by `lifecycle`."""

from __future__ import annotations

from xi_core.cluster import members as placing
from xi_core.cluster.launches import LaunchEntry, Wanted
from xi_core.cluster.placement import Placement, Rejection
from xi_core.cluster.replicas import Action, Replica
from xi_core.cluster.state import ClusterState
from xi_core.errors import NoPlacement


def enter(state: ClusterState, now: float, wanted: Wanted) -> LaunchEntry:
    """A launch begins, with replicas that wait to be started."""
    replicas = [Replica(replica_id=f"{wanted.uid}-{n}", start_at=now) for n in range(wanted.spec.replica)]
    launch = LaunchEntry(wanted=wanted, replicas=replicas, deadline=now + state.launch_timeout)
    state.enter(launch)
    return launch


def start_all(state: ClusterState, now: float, launch: LaunchEntry, replicas: list[Replica]) -> list[Action]:
    """Start all of these or none. Raises `NoPlacement`."""
    actions: list[Action] = []
    for replica in replicas:
        started = state.start(now, launch, replica)
        if isinstance(started, Rejection):
            for begun in replicas:
                state.ledger.end(begun)
                begun.clear()
            where = f"replica {len(actions) + 1} of {len(replicas)} of " if len(replicas) > 1 else ""
            away = "".join(
                f"; worker {m.name} is away, and may come back" for m in state.ledger.members.values() if not m.present and not m.leaving
            )
            raise NoPlacement(f"no place for {where}'{launch.uid}': {placing.explain(started)}{away}")
        actions.append(started)
    return actions


def explain(state: ClusterState, wanted: Wanted) -> list[Placement | Rejection]:
    """Where each replica of a launch would go now, and why not elsewhere. Nothing is reserved; it ends at the first rejection."""
    launch = LaunchEntry(wanted=wanted, replicas=[Replica(replica_id=f"{wanted.uid}-{n}") for n in range(wanted.spec.replica)], deadline=0)
    decisions: list[Placement | Rejection] = []
    try:
        for number, replica in enumerate(launch.replicas):
            decision = state.place(launch, replica, explain=True)
            decisions.append(decision)
            if isinstance(decision, Rejection):
                break
            replica.begin(f"explained-{number}", decision.assignments)
            state.ledger.begin(launch, replica)
    finally:
        for replica in launch.live:
            state.ledger.end(replica)
    return decisions
