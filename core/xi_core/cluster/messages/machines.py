"""The cluster's machines and processes, who is in, who may join, what is to be emptied or stopped: gateway → supervisor."""

from __future__ import annotations

from msgspec import Struct, field

from xi_core.api.control import MemberRole, ProcessInfo, WorkerStatus
from xi_core.api.members import MemberStatus
from xi_core.cluster.messages.answers import Done


class ListWorkers(Struct, tag="list_workers"):
    """The workers, with their devices and what they run."""


class Workers(Struct):
    """Workers."""

    workers: list[WorkerStatus]


class Drain(Struct, tag="drain", kw_only=True):
    """Move all replicas from a worker to others within so many seconds; with `undo`, let it take replicas again."""

    worker: str
    seconds: float
    undo: bool = False


class GetCluster(Struct, tag="get_cluster"):
    """The processes of the cluster."""


class Cluster(Struct):
    """Processes, and where other machines join (empty where they can't)."""

    processes: list[ProcessInfo]
    endpoint: str = ""


class NewJoinToken(Struct, tag="new_join_token", kw_only=True):
    """A token with which one more worker or gateway may join, within `ttl` seconds."""

    role: MemberRole = "worker"
    ttl: float = 3600.0


class JoinTokenMade(Struct):
    """A join token, to be passed on in secret, and the whole command that uses it."""

    token: str
    command: str


class ListMembers(Struct, tag="list_members"):
    """Who may join: the list of keys, without the keys."""


class Members(Struct):
    """Members."""

    members: list[MemberStatus]


class RemoveMember(Struct, tag="remove_member", kw_only=True):
    """Strike a member off the list and cut its connections. A worker that runs replicas needs `force`; they are placed elsewhere then."""

    name: str
    role: MemberRole | None = None
    """None: the only one that has a member of this name."""
    force: bool = False


class MemberRemoved(Struct, kw_only=True):
    """Who it was. `replicas`: those that it ran, or, of a gateway, those that still open to the key that it knows."""

    role: MemberRole
    replicas: list[str] = field(default_factory=list)


class RotateGatewayKeys(Struct, tag="rotate_gateway_keys"):
    """Have replicas that are started from now on open to another key of the gateways."""


class GatewayKeysRotated(Struct):
    """`replicas` run since before, and open to an older key."""

    replicas: list[str]


class StopCluster(Struct, tag="stop_cluster"):
    """Stop every worker with what it runs, then the servers."""


ANSWERS: dict[type[Struct], type[Struct]] = {
    ListWorkers: Workers,
    Drain: Done,
    GetCluster: Cluster,
    NewJoinToken: JoinTokenMade,
    ListMembers: Members,
    RemoveMember: MemberRemoved,
    RotateGatewayKeys: GatewayKeysRotated,
    StopCluster: Done,
}
"""Commands, each with the type of its answer."""
