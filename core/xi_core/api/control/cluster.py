"""The cluster as a whole, as the control API tells of it: its processes and their health, who may join, stopping it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

MemberRole = Literal["worker", "gateway"]
"""As what a process joins a cluster."""


class JoinTokenOrder(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/cluster/join-tokens`."""

    role: MemberRole = "worker"
    """As what somebody may join with it."""
    ttl: Annotated[float, Meta(ge=1, le=30 * 24 * 3600)] = 3600.0
    """Seconds for which the token is good."""


class JoinTokenAnswer(Struct, kw_only=True):
    """Answer to it."""

    token: str
    """The token, for one use."""
    command: str
    """The whole command that uses it, for the machine that is to join."""


class ClusterInfo(Struct, kw_only=True):
    """Answer to `GET /v1/cluster/info`: the processes that serve."""

    version: str
    """The version of xi of this gateway."""
    processes: list[ProcessInfo]
    """Each of them."""
    cluster_endpoint: str | None = None
    """Where workers and gateways of other machines join; null for `xi serve`."""


class ProcessInfo(Struct, kw_only=True):
    """One process of the cluster."""

    role: str
    """supervisor, gateway, worker, keeper or replica."""
    pid: int
    """Its number on its machine."""
    name: str = ""
    """Which one of that role, where there are several."""


class StopAnswer(Struct, kw_only=True):
    """Answer to `POST /v1/cluster/stop`."""

    stopping: bool = True
    """Always true: everything is being stopped."""


class KeyNeed(Struct, kw_only=True):
    """Answer to `GET /v1/cluster/auth`."""

    auth: bool
    """Whether this server asks for an API key."""


class Health(Struct, kw_only=True):
    """Answer to `GET /health`."""

    status: Literal["ok"] = "ok"
    """Always this: who doesn't live doesn't answer."""
    version: str
    """The version of xi."""
    pid: int
    """The gateway's process."""


class Readiness(Struct, kw_only=True):
    """Answer to `GET /ready`."""

    ready: bool
    """Whether it is: the status is 200 then, else 503."""
    reasons: list[str]
    """Why it isn't."""
