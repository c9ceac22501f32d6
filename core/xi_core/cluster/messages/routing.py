"""How a gateway gets the routing table: it subscribes, and the supervisor sends the table and each change of it."""

from __future__ import annotations

from msgspec import Struct, field

from xi_core.transport.security import KeyPair


class Subscribe(Struct, tag="subscribe"):
    """Send the routing table now and each change from now on, as `TableUpdate` notices."""

    gateway: str
    pid: int


class Subscribed(Struct):
    """The table follows. `keys` are those that gateways show to replicas on other machines."""

    keys: KeyPair | None = None
    older: list[KeyPair] = field(default_factory=list)
    """Those that replicas may still want to see which have run for longer."""


class GatewayKeys(Struct, tag="gateway_keys"):
    """Notice: as in `Subscribed`. It comes before the table names a replica that wants them."""

    keys: KeyPair
    older: list[KeyPair] = field(default_factory=list)


class ReplicaRoute(Struct, kw_only=True):
    """Where one ready replica listens, and which life of it."""

    replica_id: str
    incarnation: str
    endpoint: str
    transport: str
    slots: int
    key: str = ""
    """The public key of its listener; empty where it is local."""
    gateways: str = ""
    """The public key that it wants to see of gateways; empty: the present one."""
    workers: tuple[str, ...] = ()
    """Where its ranks are: who has lost it tries one elsewhere first."""


class ModelRoute(Struct, kw_only=True):
    """One launch in the routing table. `replicas` holds the ready ones only; `detail` says why there are none."""

    uid: str
    state: str
    detail: str = ""
    replicas: list[ReplicaRoute] = field(default_factory=list)
    context_length: int | None = None
    endpoints: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    """Names of its LoRA modules, by which requests may call it too."""


class TableUpdate(Struct, tag="table_update", kw_only=True):
    """Notice: the whole routing table at a version (`full`), or the models that changed and those that went."""

    epoch: str
    version: int
    full: bool
    models: list[ModelRoute]
    removed: list[str] = field(default_factory=list)


ANSWERS: dict[type[Struct], type[Struct]] = {
    Subscribe: Subscribed,
}
"""Commands, each with the type of its answer."""
