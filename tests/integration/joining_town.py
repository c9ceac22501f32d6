"""A real supervisor in this process with its cluster port and its join port, and who wants to join."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from xi_core.api.control import MemberRole
from xi_core.cluster import messages as m
from xi_core.cluster.admission import Admission
from xi_core.cluster.membership import Identity, Membership, enter
from xi_core.cluster.store import Store
from xi_core.cluster.supervisor import VOCABULARY, Supervisor
from xi_core.cluster.worker import Worker
from xi_core.config import Settings
from xi_core.errors import XiError
from xi_core.plugins import PluginHub
from xi_core.transport import rpc
from xi_core.transport.rpc import Link, dial
from xi_core.transport.schemes import by_scheme
from xi_core.transport.security import ClientSecurity, KeyPair
from xi_core.wire import PROTOCOL

SOON = 8.0


class Town:
    """A supervisor on TCP with its store, and who wants to join."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = PluginHub.load()
        self.transport = by_scheme(self.hub.transports, "tcp://x:0")
        self.store = Store(folder / "s")
        self.identities: list[Identity] = []
        self.links: list[Link] = []
        self.workers: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
        self.supervise()

    def supervise(self, port: int = 0) -> None:
        settings = Settings(home=str(self.folder / "s"), grace=0.5)
        local = f"ipc://{self.folder}/s.sock"
        self.supervisor = Supervisor(self.hub, settings, local, 0.0, store=self.store, cluster=("127.0.0.1", port))
        assert self.supervisor.admission is not None
        self.admission: Admission = self.supervisor.admission
        self.endpoint = self.admission.endpoint

    def token(self, role: MemberRole = "worker", ttl: float = 60.0) -> str:
        return self.admission.new_token(role, ttl)

    def identity(self, name: str = "w1", role: MemberRole = "worker", home: str = "") -> Identity:
        found = Identity(self.folder / (home or name), role, name)
        self.identities.append(found)
        return found

    async def enter(self, identity: Identity, token: str = "", endpoint: str = "") -> Membership:
        return await asyncio.wait_for(enter(identity, self.transport, endpoint or self.endpoint, token), SOON)

    def link(self, keys: KeyPair, endpoint: str = "", vocabulary: rpc.Vocabulary = VOCABULARY) -> Link:
        server = self.store.keys("supervisor").public
        link = dial(self.transport, endpoint or self.endpoint, vocabulary, {}, lambda: None, ClientSecurity(keys, server))
        self.links.append(link)
        return link

    def work(self, name: str, found: Membership) -> tuple[Worker, asyncio.Task[None]]:
        settings = Settings(home=str(self.folder / name), grace=0.5)
        worker = Worker(self.hub, settings, name=name, runtime=self.folder, supervisor=found.endpoint, security=found.security)
        stop = asyncio.Event()
        serving = asyncio.create_task(worker.serve(stop))
        self.workers.append((stop, serving))
        return worker, serving

    async def close(self) -> None:
        for stop, serving in self.workers:
            stop.set()
            await asyncio.wait([serving])
        for link in self.links:
            await link.close()
        for identity in self.identities:
            identity.close()
        await self.supervisor.close()
        self.store.close()


async def refusal(link: Link, command: Any) -> XiError:
    with pytest.raises(XiError) as raised:
        await asyncio.wait_for(link.call(command), SOON)
    return raised.value


def registration(name: str) -> m.Register:
    return m.Register(
        worker=name, incarnation="x", pid=1, keeper_pid=2, version="0", protocol=PROTOCOL, devices=[], engines={}, plugins={"families": "9"}
    )
