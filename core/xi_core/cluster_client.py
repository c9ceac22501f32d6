"""The part of the client that watches over a cluster: its machines, and which engines and models there are.

`xi_core.client.Client` is this and what launches models and talks to them.
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from xi_core.api.control import (
    ClusterInfo,
    DrainOrder,
    EngineStatus,
    JoinTokenAnswer,
    JoinTokenOrder,
    MemberRole,
    RegisterAnswer,
    RegisterOrder,
    Registration,
    WorkerStatus,
)
from xi_core.api.members import KeyRotation, MemberRemoval, MemberStatus
from xi_core.disk_client import DiskClient, query_of


class ClusterClient(DiskClient):
    """The machines, and what they offer."""

    # ---- machines ---------------------------------------------------------------------------------

    def cluster(self) -> ClusterInfo:
        """The server's version and processes."""
        return self._call(ClusterInfo, "GET", "/v1/cluster/info")

    def workers(self) -> list[WorkerStatus]:
        """The machines of the cluster."""
        return self._call(list[WorkerStatus], "GET", "/v1/workers")

    def drain(self, worker: str, seconds: float = 600.0, *, undo: bool = False) -> None:
        """Move all replicas from a worker to others; returns at once. Raises `WorkerNotFound`."""
        self._call(msgspec.Raw, "POST", f"/v1/workers/{quote(worker, safe='')}/drain", DrainOrder(seconds=seconds, undo=undo))

    def join_token(self, role: MemberRole = "worker", ttl: float = 3600.0) -> JoinTokenAnswer:
        """A token with which one more worker or gateway may join, within `ttl` seconds. Raises `Forbidden`, `InvalidRequest`."""
        return self._call(JoinTokenAnswer, "POST", "/v1/cluster/join-tokens", JoinTokenOrder(role=role, ttl=ttl))

    def members(self) -> list[MemberStatus]:
        """The workers and gateways that may join without a token, whether they are here or not."""
        return self._call(list[MemberStatus], "GET", "/v1/cluster/members")

    def remove_member(self, name: str, role: MemberRole | None = None, *, force: bool = False) -> MemberRemoval:
        """Strike a worker or gateway off that list; it ends. Raises `NotFound`, `Conflict` for a worker with replicas unless `force`."""
        query = query_of(({"role": role} if role else {}) | ({"force": "true"} if force else {}))
        return self._call(MemberRemoval, "DELETE", f"/v1/cluster/members/{quote(name, safe='')}{query}")

    def rotate_gateway_keys(self) -> KeyRotation:
        """Replace the keys that gateways show to replicas. Answers the replicas that open to the older ones until they are started anew."""
        return self._call(KeyRotation, "POST", "/v1/cluster/gateway-keys")

    def stop_cluster(self) -> None:
        """Stop every worker with what it runs, and the servers."""
        self._call(msgspec.Raw, "POST", "/v1/cluster/stop")

    # ---- engines and models -----------------------------------------------------------------------

    def engines(self, model: str | None = None, **filters: str | None) -> list[EngineStatus]:
        """The engines, and whether they run on the server's workers; with `model`, also which of its specs each takes.

        `filters`: `model_engine`, `model_format`, `size_in_billions`, `quantization`, `model_type`.
        """
        given = {name: value for name, value in {"model": model, **filters}.items() if value}
        return self._call(list[EngineStatus], "GET", f"/v1/engines{query_of(given)}")

    def registrations(self, model_type: str | None = None, *, engine: str | None = None) -> list[Registration]:
        """The models that can be launched by name, of one type or all; with `engine`, those that it runs where it is installed."""
        of_type = f"/{quote(model_type, safe='')}" if model_type else ""
        return self._call(list[Registration], "GET", f"/v1/model_registrations{of_type}{query_of({'engine': engine} if engine else {})}")

    def registration(self, model_type: str, name: str) -> Registration:
        """One of them with all of its specs. Raises `NotFound`."""
        return self._call(Registration, "GET", f"/v1/model_registrations/{quote(model_type, safe='')}/{quote(name, safe='')}")

    def register(self, model_type: str, text: str, *, persist: bool = True) -> RegisterAnswer:
        """Register the model in `text`, a family file. Raises `InvalidRequest` (line and field named), `Conflict`."""
        path = f"/v1/model_registrations/{quote(model_type, safe='')}"
        return self._call(RegisterAnswer, "POST", path, RegisterOrder(model=text, persist=persist))

    def unregister(self, model_type: str, name: str) -> None:
        """Take a registered model out again. Raises `NotFound`, `Conflict` for a built-in one."""
        self._call(msgspec.Raw, "DELETE", f"/v1/model_registrations/{quote(model_type, safe='')}/{quote(name, safe='')}")
