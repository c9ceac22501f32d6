"""What workers report of replicas, taken over by a supervisor that may have forgotten them. Pure: called by `lifecycle`."""

from __future__ import annotations

from xi_core.cluster.deadlines import LEASE
from xi_core.cluster.launches import LaunchEntry, Wanted
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.replicas import Action, Rank, Replica, rank_of
from xi_core.cluster.state import ClusterState


def took(state: ClusterState, now: float, launch: LaunchEntry, replica: Replica, record: ReplicaRecord) -> list[Action]:
    """Take over what a worker tells of a rank."""
    before = replica.state
    launch.take(replica, record, now + state.launch_timeout)
    if (before == "READY") != (replica.state == "READY"):
        state.ledger.changed(replica)
    state.touched.touch(launch)
    return state.moved(now, launch)


def adopt(state: ClusterState, now: float, member: Member, record: ReplicaRecord) -> list[Action]:
    """Take over a rank that a worker reports, unless it isn't wanted (any more), or another copy took its place."""
    plan, number = record.plan, rank_of(record)
    found, launch = state.by_life(plan.incarnation), state.launches.get(plan.uid)
    if found is None and state.ledger.is_over(plan.incarnation):
        return state.refuse(member.name, record)
    if found is None and record.status.state == "STOPPING":  # a former supervisor told it to end, and within which time
        if launch is not None:
            launch.avoid(plan.replica_id)
        return state.refuse(member.name, record, state.grace)
    if launch is None and (plan.uid, record.created) in state.over:
        return state.refuse(member.name, record, state.grace)
    if launch is None:
        launch = _launch_of(now + state.launch_timeout, record)
        state.enter(launch)
    if not launch.takes(record.spec):
        return state.refuse(member.name, record)
    replica = found[1] if found is not None else launch.vacancy(plan.replica_id) or _being_replaced(state, launch, member, record)
    if replica is None:
        return state.refuse(member.name, record)
    if found is None:
        if launch.end or replica.live or replica.leaving:
            return state.refuse(member.name, record)
        _take_life(max(now, state.settled_at - 2 * LEASE), replica, member.name, record)
        state.ledger.begin(launch, replica, plan)
    rank = replica.ranks[number] if number < len(replica.ranks) else Rank("", gone=True)
    if rank.gone or rank.worker != member.name:
        return state.refuse(member.name, record)
    if record.status.state == "FAILED":
        return state.ended(now, launch, replica, number, record.status.error)
    if replica.ending is not None:
        rank.lost_at, rank.away = None, False
        state.touched.touch(launch)
        return state.refuse(member.name, record)
    actions = took(state, now, launch, replica, record)
    if launch.wanted.was_ready is None and replica.state == "READY":
        launch.served()
    if found is None:
        actions += state.lose_absent(now, launch, replica, member)
    if launch.end or replica.leaving:  # the word to end may have been lost
        return state.refuse(member.name, record, state.grace if launch.was_ready else 0.0)
    return actions


def _being_replaced(state: ClusterState, launch: LaunchEntry, member: Member, record: ReplicaRecord) -> Replica | None:
    """A replica that serves on a drained worker, and had its place taken by its replacement, which reported first and isn't READY yet.

    It gets the place back, with the replacement as its heir: as it was before the supervisor ended.
    """
    heir = next((r for r in launch.replicas if r.live and r.wanted and r.state != "READY"), None)
    if member.name not in state.ledger.drains or heir is None or launch.end or record.status.state != "READY":
        return None
    replica = Replica(replica_id=record.plan.replica_id)
    launch.replicas[launch.replicas.index(heir)] = replica
    launch.replicas.append(heir)
    heir.replaces = replica.replica_id
    return replica


def _launch_of(deadline: float, record: ReplicaRecord) -> LaunchEntry:
    """A launch as a worker's record tells it, to a supervisor that has forgotten it."""
    plan, spec = record.plan, record.spec
    wanted = Wanted(
        uid=plan.uid,
        spec=spec,
        model=record.model,
        engine=plan.engine.name,
        n_gpu=len(plan.devices),
        created=record.created,
        memory=plan.memory,
        memory_share=plan.memory_share,
        exclusive=plan.exclusive,
    )
    return LaunchEntry(wanted=wanted, replicas=[Replica(replica_id=f"{plan.uid}-{n}") for n in range(spec.replica)], deadline=deadline)


def _take_life(lost_at: float, replica: Replica, worker: str, record: ReplicaRecord) -> None:
    """Make the life that a worker reports that of `replica`. Its other ranks are as those of workers that went away at `lost_at`, until
    these report: they have at least as long as the supervisor takes to settle."""
    plan = record.plan
    world = plan.rendezvous.world if plan.rendezvous is not None else ()
    replica.clear()
    replica.incarnation, replica.starts, replica.start_at = plan.incarnation, 1, None
    replica.restarts, replica.moves = record.status.restarts, record.status.moves
    replica.ranks = [Rank(a.worker, a.devices, lost_at=lost_at) for a in world] or [Rank(worker, tuple(plan.devices))]
    replica.last_workers = {number: rank.worker for number, rank in enumerate(replica.ranks)}
