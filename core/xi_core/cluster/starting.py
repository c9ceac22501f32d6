"""How a launch begins: it is entered, and its replicas are placed all at once, or only in thought. Pure: called by `lifecycle`."""

from __future__ import annotations

import ipaddress

from xi_core.cluster import members as placing
from xi_core.cluster.launches import LaunchEntry, Wanted, named
from xi_core.cluster.placement import Placement, Rejection
from xi_core.cluster.replicas import Action, Replica
from xi_core.cluster.state import ClusterState
from xi_core.errors import InvalidRequest, NoPlacement, WorkerNotFound


def enter(state: ClusterState, now: float, wanted: Wanted) -> LaunchEntry:
    """A launch begins, with replicas that wait to be started."""
    replicas = [Replica(replica_id=f"{wanted.uid}-{n}", start_at=now) for n in range(wanted.spec.replica)]
    launch = LaunchEntry(wanted=wanted, replicas=replicas, deadline=now + state.launch_timeout)
    state.enter(launch)
    return launch


def check_workers(state: ClusterState, wanted: Wanted) -> None:
    """Raises `WorkerNotFound` for a worker that a launch names and nobody knows, with those that are known; `InvalidRequest` for no name.

    One that may join and isn't here is known by its name alone, so that an address may be its.
    """
    members, spec = state.ledger.members, wanted.spec
    absent = {*state.ledger.drains, *state.ledger.expected} - members.keys()
    known = members.keys() | absent | {member.address for member in members.values()}
    fields = [("worker_ip", spec.worker_ip)]
    fields += [(f"replica_config[{number}].worker", own.worker) for number, own in enumerate(spec.replica_config or ())]
    for field, names in fields:
        if names and not named(names):
            raise InvalidRequest(f"{field}: '{names}' names no worker", param=field)
        for name in named(names) or ():
            if name not in known and not (absent and _is_address(name)):
                listed = [f"{m.name} ({m.address})" if m.address else m.name for m in members.values()]
                workers = ", ".join(sorted([*listed, *absent])) or "none"
                raise WorkerNotFound(f"{field}: there is no worker '{name}'; workers: {workers}", param=field)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


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
            raise NoPlacement(f"no place for {where}'{launch.uid}': {placing.explain(started)}")
        actions.append(started)
    return actions


def explain(state: ClusterState, wanted: Wanted) -> list[Placement | Rejection]:
    """Where each replica of a launch would go now, and why not elsewhere. Nothing is reserved; it ends at the first rejection.

    Raises `WorkerNotFound`.
    """
    check_workers(state, wanted)
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
