"""Who is let into a cluster over TCP: the cluster port, with an allow-list, and the join port beside it. Part of the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable

from xi_core.api.control import MemberRole
from xi_core.cluster import addresses, joining
from xi_core.cluster.joining import Join, Joined, JoinToken
from xi_core.cluster.messages import Leaving, Register, ReplicaGone, ReplicaUpdate, WorkerBeat
from xi_core.cluster.store import Entry, Kept, Store
from xi_core.cluster.threads import in_thread
from xi_core.errors import ConfigError, Conflict, Forbidden, InvalidRequest, Overloaded
from xi_core.transport.base import Transport
from xi_core.transport.rpc import Calls, Link, LinkServer, Vocabulary
from xi_core.transport.security import KeyPair, ServerSecurity

log = logging.getLogger(__name__)

OF_WORKERS = (Register, WorkerBeat, ReplicaUpdate, ReplicaGone, Leaving)
"""What workers say; gateways say all the rest."""
GATEWAYS = "gateways"
"""Name of the gateways' keys in the store."""
SHORTEST_TTL, LONGEST_TTL = 1.0, 30 * 24 * 3600.0
"""Seconds for which a token may be good."""
MOST_STRANGERS = 128
"""Connections to the join port at once. The oldest makes room for one more, for who honestly joins is through at once."""


class Admission:
    """The two listening sockets, the keys and the tokens."""

    def __init__(
        self,
        store: Store,
        transport: Transport,
        *,
        host: str,
        port: int,
        vocabulary: Vocabulary,
        accept: Callable[[Link], Calls],
        closed: Callable[[Link], None],
        connected: Callable[[Entry], bool],
    ) -> None:
        """Listen at `port` and the next one; 0: any two neighbours. `connected`: whether this member is here now. Raises `ConfigError`."""
        self._store, self._connected, self._accept = store, connected, accept
        self._keys = store.keys("supervisor")
        self.gateway_keys: KeyPair = store.keys(GATEWAYS)
        """What gateways show to replicas."""
        self.older_keys: list[KeyPair] = store.older_keys(GATEWAYS)
        """What they showed before, which replicas may still want to see."""
        self._links: set[Link] = set()
        """Those of members, through the cluster port."""
        self._strangers: dict[Link, None] = {}
        """Those to the join port, the oldest first."""
        self._closed = closed
        address = addresses.resolved(host)
        port = addresses.neighbours(address, port)
        members, anybody = ServerSecurity(self._keys, self._name), ServerSecurity(self._keys, lambda key: key, joining.LARGEST)
        self._server = LinkServer(transport, addresses.endpoint(address, port), vocabulary, self._admit, self._left, members)
        with contextlib.ExitStack() as undo:
            undo.callback(self._server.abort)
            desk = addresses.endpoint(address, port + 1)
            self._desk = LinkServer(transport, desk, joining.VOCABULARY, self._meet, self._parted, anybody)
            undo.pop_all()
        self.endpoint = addresses.endpoint(addresses.reachable(host), port)
        """Where other machines dial."""

    def abort(self) -> None:
        """Stop listening at once; for a supervisor that could not start."""
        self._desk.abort()
        self._server.abort()

    async def close(self) -> None:
        """Stop listening."""
        await self._desk.close()
        await self._server.close()

    def entry(self, link: Link) -> Entry | None:
        """Who is at the other end; None for a link that came another way than through the cluster port."""
        return self._store.entry(link.peer_key) if link.peer_key else None

    def require_name(self, link: Link, name: str) -> None:
        """Raises `Forbidden` where the key of the link is another's."""
        entry = self.entry(link)
        if entry is None and link.peer_key:
            raise Forbidden("the key of this connection is on no list")
        if entry is not None and entry.name != name:
            raise Forbidden(f"this connection's key belongs to {entry.role} {entry.name}, not to {name}")

    def new_token(self, role: MemberRole, ttl: float) -> str:
        """A token for one more member, good for `ttl` seconds. Raises `InvalidRequest`."""
        if not SHORTEST_TTL <= ttl <= LONGEST_TTL:
            raise InvalidRequest(f"ttl: a join token is good for {SHORTEST_TTL:g} to {LONGEST_TTL:g} seconds, not {ttl:g}", param="ttl")
        token = JoinToken([self.endpoint], self._keys.public, joining.new_secret(), time.time() + ttl, role)
        self._store.add_token(token.secret, role, token.expires)
        return token.text()

    async def members(self) -> list[tuple[Kept, bool]]:
        """The list, each with whether it is here now."""
        return [(kept, self._connected(kept.entry)) for kept in await in_thread(self._store.members)]

    async def strike(self, entry: Entry) -> None:
        """Take a member off the list and cut its connections."""
        key = await in_thread(lambda: self._store.strike(entry))
        for link in [one for one in self._links if one.peer_key == key]:
            link.refuse(_struck(entry))

    async def rotate(self, used: Iterable[str]) -> None:
        """Have other keys for gateways. Of the older ones those are kept whose public keys are `used`."""
        self.gateway_keys = await in_thread(lambda: self._store.replace_keys(GATEWAYS, used))
        self.older_keys = await in_thread(lambda: self._store.older_keys(GATEWAYS))

    def command(self, token: str, role: MemberRole) -> str:
        """The whole command that uses a token, as it can be pasted on the other machine."""
        return f"xi {role} -e {self.endpoint} --token {token}"

    def _admit(self, link: Link) -> Calls:
        """What a member may ask for: a worker what workers do, a gateway what gateways do."""
        entry, struck = self.entry(link), self._store.struck(link.peer_key)
        if entry is None:
            raise _struck(struck) if struck is not None else Forbidden("the key of this connection is on no list")
        calls = self._accept(link)
        self._links.add(link)
        return {command: call for command, call in calls.items() if (command in OF_WORKERS) == (entry.role == "worker")}

    def _left(self, link: Link) -> None:
        self._links.discard(link)
        self._closed(link)

    def _name(self, key: str) -> str | None:
        """Who is let in: members, and those that were, to be told that they are none."""
        entry = self._store.entry(key) or self._store.struck(key)
        return f"{entry.role} {entry.name}" if entry is not None else None

    def _meet(self, link: Link) -> Calls:
        """Whoever comes may ask to join, one question at a time."""
        asking = asyncio.Lock()

        async def join(command: Join) -> Joined:
            if asking.locked():
                raise Overloaded("another question of this connection is being answered; wait for that")
            async with asking:
                return await self._join(link, command)

        if len(self._strangers) >= MOST_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.refuse(Overloaded("too many join at once; try again in a moment", retry_after=1.0))
        self._strangers[link] = None
        return {Join: join}

    def _parted(self, link: Link) -> None:
        self._strangers.pop(link, None)

    async def _join(self, link: Link, command: Join) -> Joined:
        try:
            name = joining.check_name(command.name)
        except ConfigError as error:
            raise InvalidRequest(error.message, param="name") from None
        key = link.peer_key
        await in_thread(lambda: self._store.check_token(command.secret, command.role, key))
        before = self._store.key_of(command.role, name)
        if before not in (None, link.peer_key) and self._connected(Entry(command.role, name)):
            raise Conflict(
                f"another {command.role} is named {name} and is connected; give this one a name of its own with --name", param="name"
            )
        await in_thread(lambda: self._store.redeem(command.secret, command.role, name, key))
        log.info("%s %s may join%s", command.role, name, ", with another key than before" if before not in (None, link.peer_key) else "")
        return Joined()


def _struck(entry: Entry) -> Forbidden:
    return Forbidden(
        f"{entry.role} {entry.name} was removed from the cluster (`xi cluster remove`); with a new join token it may come again"
    )
