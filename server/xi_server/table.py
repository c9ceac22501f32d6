"""The routing table in a gateway: which models there are and which replicas serve them, kept from the supervisor's `TableUpdate` notices.

While the supervisor is away the last table stands. A new supervisor may not know all replicas yet: what it doesn't mention is kept for
`ADOPTION` seconds as long as the replica itself answers, unless it is removed by name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence

from xi_core.cluster.messages import ModelRoute, ReplicaRoute, TableUpdate
from xi_core.cluster.routing import ReplicaView, Router, RouteRequest
from xi_core.errors import ModelNotFound, Unavailable, XiError
from xi_core.wire.sleep import asleep
from xi_server.expected import Expected
from xi_server.replica_link import ReplicaLink

log = logging.getLogger(__name__)

ADOPTION = 10.0
"""Seconds in which a new supervisor may learn of replicas that run already."""
RETRY_AFTER = {"PENDING": 2.0, "PREPARING": 5.0, "STARTING": 2.0, "LOADING": 2.0}
"""`Retry-After` of a model that isn't ready yet, by its state."""

Dial = Callable[[ReplicaRoute, Callable[[], None], Callable[[], None]], ReplicaLink]
"""Makes the link of a replica, given its route, `on_change` and `on_loss`."""


class ServedModel:
    """One launch in the table, with the links to its replicas and its router."""

    def __init__(self, route: ModelRoute, router: Router) -> None:
        self.route = route
        self.told: ModelRoute | None = route
        """What the present supervisor says of it, though `route` is kept as long as what it hasn't adopted serves; None: nothing yet."""
        self.router = router
        self.links: dict[str, ReplicaLink] = {}
        self.expected = Expected()
        self.open_requests = 0
        self._usable: list[ReplicaView] | None = None

    @property
    def slots(self) -> int:
        """Requests that its usable replicas run at once."""
        return sum(view.slots for view in self.usable())

    @property
    def asleep(self) -> bool:
        """Whether none of its replicas serves because those that live sleep."""
        return not self.usable() and any(link.alive and link.load.asleep for link in self.links.values())

    def usable(self) -> list[ReplicaView]:
        """Views of the replicas that may take requests now; those that are late or fail much only where there is no other."""
        if self._usable is None:
            self._usable = self._views(())
        return self._usable

    def refresh(self) -> None:
        """A link was added, removed, lost or found again."""
        self._usable = None

    def choose(self, request: RouteRequest, tried: Sequence[ReplicaRoute]) -> ReplicaLink:
        """The link of the replica that the router chooses, none of `tried`, and on none of their workers if there is another: where a
        whole worker dies or is drained, its other replicas go too. Raises `Unavailable`."""
        views = self._views(tried) if tried else self.usable()
        if not views:
            raise self._unavailable()
        chosen = self.router.choose(request, views)
        link = self.links.get(chosen)
        if link is None or not link.fit:
            log.error("router %s chose '%s', which is none of the usable replicas; taking the first", type(self.router).__name__, chosen)
            return self.links[views[0].replica_id]
        return link

    @property
    def stalled(self) -> bool:
        """Whether one of its replicas may soon go on that shows no life now."""
        return any(link.stalled for link in self.links.values())

    def has_other(self, tried: Sequence[ReplicaRoute]) -> bool:
        """Whether a replica besides those tried could take a request."""
        return bool(self._views(tried))

    def may_take(self, tried: Sequence[ReplicaRoute]) -> bool:
        """Whether a replica besides those tried could take a request, now or once it shows life again."""
        names = {route.replica_id for route in tried}
        return self.has_other(tried) or any(link.stalled and name not in names for name, link in self.links.items())

    def _views(self, tried: Sequence[ReplicaRoute]) -> list[ReplicaView]:
        names = {route.replica_id for route in tried}
        workers = {worker for route in tried for worker in route.workers}
        fit = [link for link in self.links.values() if link.fit and link.route.replica_id not in names]
        usable = [link for link in fit if link.usable]
        elsewhere = [link for link in usable if workers.isdisjoint(link.route.workers)] if workers else []
        return [link.view for link in elsewhere or usable or fit]

    def _unavailable(self) -> Unavailable:
        route = self.route
        if self.asleep:
            return asleep(route.uid)
        detail = f": {route.detail}" if route.detail else ""
        if route.state != "READY" and not route.replicas:
            return Unavailable(
                f"model '{route.uid}' is {route.state}{detail}", param="model", retry_after=RETRY_AFTER.get(route.state, 5.0)
            )
        alive = any(link.alive for link in self.links.values())
        why = "its replicas are draining or stuck" if alive else "none of its replicas answers"
        return Unavailable(f"model '{route.uid}' can't be served now: {why}{detail}; try again in a moment", param="model", retry_after=1.0)


class RoutingTable:
    """All launches by uid."""

    def __init__(self, dial: Dial, make_router: Callable[[], Router], on_loss: Callable[[str], None]) -> None:
        self.models: dict[str, ServedModel] = {}
        self.owners: dict[str, str] = {}
        """The uid of the launch that serves each LoRA module, by the module's name."""
        self.version = -1
        self.epoch = ""
        self._dial = dial
        self._make_router = make_router
        self._on_loss = on_loss
        self._loop = asyncio.get_running_loop()
        self._adopting_until = 0.0
        self._unmentioned: set[str] = set()
        """Replicas that the present supervisor has not spoken of yet."""
        self._retired: list[ReplicaLink] = []
        """Links of replicas that left the table while requests were open on them: those may finish."""
        self._waiting: asyncio.Future[None] | None = None

    def find(self, name: str) -> ServedModel:
        """The model of this uid, or with a LoRA module of this name. Raises `ModelNotFound`, naming those that are ready."""
        found = self.models.get(name)
        if found is None:
            found = self.models.get(self.owners.get(name, ""))
        if found is None:
            raise ModelNotFound(f"model '{name[:200]}' does not exist; ready: {self.names_ready()}", param="model")
        return found

    def names_ready(self) -> str:
        """The names of models that can be asked, for messages."""
        ready = sorted(name for uid, model in self.models.items() if model.usable() for name in (uid, *model.route.adapters))
        return ", ".join(f"'{uid}'" for uid in ready) or "none; launch one with `xi launch`"

    def links(self) -> Iterator[ReplicaLink]:
        """All links."""
        for model in self.models.values():
            yield from model.links.values()

    def apply(self, update: TableUpdate) -> bool:
        """Take an update. False means that one is missing: subscribe again."""
        if not update.full and (update.epoch != self.epoch or update.version > self.version + 1):
            return False
        if not update.full and update.version <= self.version:
            return True  # a heartbeat, or an update that a snapshot has overtaken
        if update.full and update.epoch != self.epoch:
            if self.epoch:
                self._adopting_until = self._loop.time() + ADOPTION
                self._unmentioned = {link.route.replica_id for link in self.links()}
                for model in self.models.values():
                    model.told = None
            self.epoch = update.epoch
        self.version = update.version
        for route in update.models:
            self._set(route)
        gone = set(update.removed)
        if update.full:
            gone |= set(self.models) - {route.uid for route in update.models}
            gone = {uid for uid in gone if uid in update.removed or not self._kept(self.models[uid])}
        for uid in gone:
            self._remove(uid)
        self.owners = {name: uid for uid, model in self.models.items() for name in model.route.adapters}
        self._tell()
        return True

    def tick(self, on_time: bool) -> None:
        """Called each ping interval: life signs of all replicas, the end of the adoption time."""
        for link in list(self.links()):
            link.tick(on_time)
        for link in self._retired:
            link.tick(on_time)
        self._retired = [link for link in self._retired if _finishing(link)]
        if self._unmentioned:
            self._forget_unmentioned()

    async def change(self, timeout: float) -> None:
        """Wait until anything in the table changes, `timeout` seconds at most."""
        if self._waiting is None or self._waiting.done():
            self._waiting = self._loop.create_future()
        await asyncio.wait([self._waiting], timeout=timeout)

    def close(self) -> None:
        """Take all links down."""
        for uid in list(self.models):
            self._remove(uid)
        for link in self._retired:
            link.close()
        self._retired.clear()

    def _set(self, route: ModelRoute) -> None:
        model = self.models.get(route.uid)
        if model is None:
            model = self.models[route.uid] = ServedModel(route, self._make_router())
        model.told = route
        wanted = {replica.replica_id: replica for replica in route.replicas}
        self._unmentioned -= wanted.keys()
        kept = [rid for rid in model.links if rid not in wanted and self._kept_replica(model.links[rid])]
        if kept and route.state != "READY":
            route = ModelRoute(
                uid=route.uid, state=model.route.state, detail=route.detail, replicas=route.replicas,
                context_length=model.route.context_length, endpoints=model.route.endpoints, adapters=model.route.adapters,
            )  # fmt: skip
        model.route = route
        for replica_id, link in list(model.links.items()):
            replica = wanted.get(replica_id)
            if replica_id not in kept and (replica is None or _moved(link.route, replica)):
                self._take_out(model, replica_id)
        for replica_id, replica in wanted.items():
            if replica_id not in model.links:
                self._add(model, replica)
        model.refresh()

    def _add(self, model: ServedModel, replica: ReplicaRoute) -> None:
        try:
            model.links[replica.replica_id] = self._dial(replica, self._changed_in(model), self._lost_in(model))
        except XiError as error:
            log.error("replica %s of model '%s' can't be used by this gateway: %s", replica.replica_id, model.route.uid, error)

    def _remove(self, uid: str) -> None:
        model = self.models.pop(uid, None)
        for link in model.links.values() if model is not None else ():
            self._unmentioned.discard(link.route.replica_id)
            self._retire(link)

    def _take_out(self, model: ServedModel, replica_id: str) -> None:
        self._retire(model.links.pop(replica_id))
        model.router.on_gone(replica_id)

    def _retire(self, link: ReplicaLink) -> None:
        """Take no new requests to it; let the open ones finish, as its worker does too."""
        if _finishing(link):
            self._retired.append(link)

    def _kept(self, model: ServedModel) -> bool:
        return any(self._kept_replica(link) for link in model.links.values())

    def _kept_replica(self, link: ReplicaLink) -> bool:
        return link.alive and link.route.replica_id in self._unmentioned and self._loop.time() < self._adopting_until

    def _forget_unmentioned(self) -> None:
        """Drop replicas that died, or that the new supervisor has not adopted in time."""
        for uid, model in list(self.models.items()):
            for replica_id, link in list(model.links.items()):
                if replica_id in self._unmentioned and not self._kept_replica(link):
                    self._unmentioned.discard(replica_id)
                    self._take_out(model, replica_id)
                    model.refresh()
            if not model.links:
                if model.told is None:
                    self._remove(uid)
                else:
                    model.route = model.told
        self._tell()

    def _changed_in(self, model: ServedModel) -> Callable[[], None]:
        def changed() -> None:
            model.refresh()
            self._tell()

        return changed

    def _lost_in(self, model: ServedModel) -> Callable[[], None]:
        return lambda: self._on_loss(model.route.uid)

    def _tell(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def _finishing(link: ReplicaLink) -> bool:
    """Whether a retired link still has open requests; closes it if not."""
    if link.open_streams:  # none once it is lost
        return True
    link.close()
    return False


def _moved(before: ReplicaRoute, now: ReplicaRoute) -> bool:
    """Whether it is another life of the replica, or lives elsewhere."""
    return (before.incarnation, before.endpoint, before.transport, before.key) != (now.incarnation, now.endpoint, now.transport, now.key)
