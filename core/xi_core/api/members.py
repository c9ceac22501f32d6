"""Who may join a cluster, as the control API tells it."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from xi_core.api.control import MemberRole


class MemberStatus(Struct, kw_only=True):
    """One line of the list of those who may join: of the answer to `GET /v1/cluster/members`."""

    name: str
    """What it joined as."""
    role: MemberRole
    """As what it joined."""
    joined: float
    """When its key came on the list, in seconds since 1970."""
    linked: bool
    """Whether it is connected to the supervisor now."""


class MemberRemoval(Struct, kw_only=True):
    """Answer to `DELETE /v1/cluster/members/{name}`."""

    name: str
    """Who was removed."""
    role: MemberRole
    """As what it had joined."""
    replicas: list[str] = msgspec.field(default_factory=list)
    """Of a worker: what it ran, which is placed elsewhere. Of a gateway: what opens to the key that it knows until it is started anew."""


class KeyRotation(Struct, kw_only=True):
    """Answer to `POST /v1/cluster/gateway-keys`."""

    replicas: list[str] = msgspec.field(default_factory=list)
    """Those that run since before: they open to the older key until they are started anew."""
