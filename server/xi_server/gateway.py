"""`Gateway`: everything of one gateway process besides HTTP, put together and kept ticking. Made by `__main__` and by tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

from xi_core.cluster.messages import ReplicaRoute
from xi_core.cluster.routing import Router
from xi_core.config import Settings
from xi_core.errors import PluginError
from xi_core.importing import import_path
from xi_core.plugins import PluginHub
from xi_core.transport.base import Transport
from xi_core.transport.schemes import by_scheme, load
from xi_core.transport.security import ClientSecurity
from xi_server.dispatch import Dispatcher
from xi_server.engine_metrics import observe_engines
from xi_server.metrics import Metrics, Samples
from xi_server.replica_link import PING_INTERVAL, ReplicaLink
from xi_server.replica_metrics import observe_replicas
from xi_server.supervisor_link import SupervisorClient
from xi_server.table import RoutingTable


class Gateway:
    """The routing table, the supervisor's link, the dispatcher and the metrics. Make it on the event loop that runs it."""

    def __init__(self, settings: Settings, hub: PluginHub, supervisor: str, name: str = "", security: ClientSecurity | None = None) -> None:
        """`supervisor` is the supervisor's endpoint; `name` and `security`, how it knows this gateway, where that is a member of a cluster.

        Raises `ConfigError` for an unknown router, `TransportError` for an endpoint.
        """
        self.settings = settings
        self._hub = hub
        self.stopping = False
        """Set when the process is being stopped: whoever waits for a launch ends its wait."""
        self.metrics = Metrics()
        self.table = RoutingTable(self._dial, _router_maker(hub, settings.router), self._count_loss)
        self.dispatcher = Dispatcher(
            self.table,
            self.metrics,
            request_timeout=settings.request_timeout,
            queue_size=settings.queue_size,
            max_body=settings.max_body,
        )
        transport, name = by_scheme(hub.transports, supervisor), name or f"gateway-{os.getpid()}"
        self.supervisor = SupervisorClient(transport, supervisor, self.table, name, security)
        self._transports: dict[str, Transport] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._observe()

    def start(self) -> None:
        """Begin to follow the supervisor and to ping replicas."""
        self.supervisor.start()
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def close(self) -> None:
        """Hang up on everybody."""
        self.stopping = True
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
        await self.supervisor.close()
        self.table.close()

    def unready(self) -> list[str]:
        """Why this gateway is not ready to serve all that should be served; empty when it is."""
        reasons = [] if self.supervisor.subscribed.is_set() else ["not connected to the supervisor"]
        for uid, model in sorted(self.table.models.items()):
            if (model.route.state == "READY" or model.route.replicas) and not model.usable():
                reasons.append(f"no replica of model '{uid}' answers")
        return reasons

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            now = loop.time()
            # A late tick means that this process stood still: the replicas' answers may lie unread, so none is judged by it.
            self.table.tick(on_time=now - due < PING_INTERVAL)
            self.dispatcher.tick(PING_INTERVAL)
            self.metrics.sweep(self.table.models, now)
            due = now + PING_INTERVAL
            await asyncio.sleep(PING_INTERVAL)

    def _dial(self, route: ReplicaRoute, on_change: Callable[[], None], on_loss: Callable[[], None]) -> ReplicaLink:
        transport = self._transports.get(route.transport)
        if transport is None:
            transport = self._transports[route.transport] = self._load_transport(route.transport)
        return ReplicaLink(route, transport, on_change, on_loss, self.supervisor.data_keys)

    def _load_transport(self, path: str) -> Transport:
        """The transport of this import path. Only what an installed plugin offers is imported, whatever a message names."""
        for info in self._hub.transports:
            if info.transport == path:
                return load(info)
        raise PluginError(f"no plugin of this gateway offers the transport '{path}'; install the same plugins in every process")

    def _count_loss(self, uid: str) -> None:
        self.metrics.losses.add(uid)

    def _observe(self) -> None:
        table, observe = self.table, self.metrics.observe
        observe("counter", "xi_tokens_total", "Tokens sent to clients, open answers included.", ("model",), self._tokens)
        observe(
            "gauge", "xi_requests_open", "Requests in work or waiting.", ("model",),
            lambda: (((uid,), model.open_requests) for uid, model in table.models.items()),
        )  # fmt: skip
        observe(
            "gauge", "xi_requests_waiting", "Open requests beyond the slots of the model's replicas.", ("model",),
            lambda: (((uid,), max(model.open_requests - model.slots, 0)) for uid, model in table.models.items()),
        )  # fmt: skip
        observe(
            "gauge", "xi_replicas_ready", "Replicas that may take requests now.", ("model",),
            lambda: (((uid,), len(model.usable())) for uid, model in table.models.items()),
        )  # fmt: skip
        observe(
            "gauge", "xi_supervisor_connected", "1 while the routing table follows the supervisor.", (),
            lambda: [((), int(self.supervisor.subscribed.is_set()))],
        )  # fmt: skip

        observe_replicas(self.metrics, table)
        observe_engines(self.metrics, table)

    def _tokens(self) -> Samples:
        totals = dict(self.metrics.tokens.values)
        for uid, tokens in self._open_tokens():
            totals[uid,] = totals.get((uid,), 0) + tokens
        return totals.items()

    def _open_tokens(self) -> Iterator[tuple[str, int]]:
        for exchange in self.dispatcher.active:
            if exchange.model is not None and exchange.stream is not None:
                yield exchange.model.route.uid, exchange.stream.tokens


def _router_maker(hub: PluginHub, name: str) -> Callable[[], Router]:
    """Makes the router of one model. Raises `ConfigError` for an unknown name, `PluginError` for a class that is no router."""
    info = hub.routers.get(name, param="XI_ROUTER")
    router = import_path(info.router)
    if not (isinstance(router, type) and issubclass(router, Router)):
        raise PluginError(f"router '{info.name}': {info.router} is not a subclass of xi_core.cluster.routing.Router")
    return router
