"""uvicorn, driven from here: signals, readiness, clients that stand still, and a shutdown that ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn

from xi_core.errors import XiError
from xi_core.replica.lifeline import watch_stdin
from xi_server import connection
from xi_server.asgi import App
from xi_server.gateway import Gateway

log = logging.getLogger(__name__)

FIRST_TABLE = 5.0
"""Longest wait for the supervisor before the gateway says that it is ready."""
ORPHAN_EXIT = 1.0
"""Seconds after the launcher's death in which the process must be gone."""


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handling, which would end the process by the signal after a good shutdown."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.stopping = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """uvicorn's own looks ten times a second whether it should exit. This one is told, and wakes for the Date header only."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Runs a gateway and its application on a listening socket. `announce` is called once, when requests can be served."""

    def __init__(self, gateway: Gateway, app: App, listening: socket.socket, announce: Callable[[str], None]) -> None:
        self._gateway = gateway
        self._listening = listening
        self._announce = announce
        self._loop = asyncio.get_running_loop()
        self._ended_by: XiError | None = None
        config = uvicorn.Config(
            app, http=connection.Connection, ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=connection.KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(gateway.settings.grace)),
        )  # fmt: skip
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._server = _Server(config)

    async def run(self) -> None:
        """Serve until `stop`. Raises the supervisor's error if it has removed this gateway from the cluster."""
        self._catch_signals()
        self._gateway.supervisor.on_removed = self._removed
        self._gateway.supervisor.on_stop = self._told_to_stop
        self._gateway.start()
        beside = [self._loop.create_task(self._announce_ready()), self._loop.create_task(self._watch_clients())]
        try:
            await self._server.serve([self._listening])
        finally:
            for task in beside:
                task.cancel()
            await self._gateway.close()
        if self._ended_by is not None:
            raise self._ended_by

    def stop(self) -> None:
        """Take no new connections, let open requests finish for the time of grace, then end. Called again: end now."""
        if self._server.should_exit:
            self._server.force_exit = True
        self._gateway.stopping = True
        self._server.should_exit = True
        self._server.stopping.set()

    def _removed(self, error: XiError) -> None:
        log.error("%s; this gateway ends", error)
        self._ended_by = error
        self.stop()

    def _told_to_stop(self) -> None:
        if not self._gateway.stopping:  # the supervisor may say it again, to a link that is new: that is no second wish
            log.info("the cluster is being stopped, and this gateway with it")
            self.stop()

    def orphaned(self) -> None:
        """The launcher is dead: end now, whatever is open."""
        log.warning("the launcher is gone; stopping")
        self._server.force_exit = True
        self.stop()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs on."""
        return self._loop

    async def _announce_ready(self) -> None:
        await self._server.listening.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TABLE):
                await self._gateway.supervisor.subscribed.wait()
        host, port = self._listening.getsockname()[:2]
        self._announce(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def _watch_clients(self) -> None:
        """Cut off those that stand still. Also while this server ends, which waits for all connections."""
        stall, metrics = self._gateway.dispatcher.backlog.stall, self._gateway.metrics
        while True:
            await asyncio.sleep(connection.LOOK)
            for client in list(self._server.server_state.connections):
                if isinstance(client, connection.Connection) and (why := client.look(stall)) and not client.drop(why):
                    log.warning("a client is cut off: %s", why)
                    metrics.slow_clients.add("")
                    client.cut_off()

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._loop.add_signal_handler(number, self.stop)
            except NotImplementedError:  # Windows' loop has none
                signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(self.stop))


def stop_at_end_of_stdin(server: HttpServer) -> None:
    """End the process when the launcher dies, even if the loop is stuck."""

    def launcher_is_gone() -> None:  # called in the watching thread
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped already
            server.loop.call_soon_threadsafe(server.orphaned)
        time.sleep(ORPHAN_EXIT)
        os._exit(1)

    watch_stdin(launcher_is_gone)
