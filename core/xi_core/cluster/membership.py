"""A worker's or gateway's place in a cluster: its own keys, and the supervisors that let it in. Kept under `XI_HOME/cluster/`, and got by
showing a join token once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct, field

from xi_core.api.control import ClusterInfo, MemberRole
from xi_core.cluster import joining
from xi_core.cluster.joining import Join, JoinToken
from xi_core.endpoint import Endpoint
from xi_core.errors import ChannelClosed, ConfigError, DeadlineExceeded, Forbidden, Overloaded, Unavailable
from xi_core.transport.base import Transport
from xi_core.transport.rpc import dial
from xi_core.transport.security import ClientSecurity, KeyPair

log = logging.getLogger(__name__)

ASK_TIMEOUT = 5.0
RETRY_FIRST, RETRY_MOST = 0.25, 5.0
SHOWN = 3
"""Times that a token is shown where nobody answers, before a member that has joined that supervisor goes in by its key: the port for
joining may well be closed to machines that have joined."""
SAY = 5.0
"""Seconds between words about a supervisor that can't be reached."""
AWAY = (ChannelClosed, DeadlineExceeded, Overloaded, Unavailable)
"""Errors that another try may not meet."""


class _Kept(Struct):
    """The file."""

    keys: KeyPair
    supervisors: dict[str, str] = field(default_factory=dict)
    """Public keys by cluster endpoint."""


@dataclass(frozen=True)
class Membership:
    """Where the supervisor is, and how to prove to it who this is."""

    endpoint: str
    security: ClientSecurity


class Identity:
    """The keys of one worker or gateway of this XI_HOME, held by one process at a time."""

    def __init__(self, home: Path, role: MemberRole, name: str) -> None:
        """Read the file or make it. Raises `ConfigError` where it can't be, or where another process is this member now."""
        self.role, self.name = role, joining.check_name(name)
        folder = home / "cluster"
        self.path = folder / f"{role}-{name}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _locked(folder / f"{role}-{name}.lock", f"{role} {name}")
            try:
                self._kept = self._read() or self._write(_Kept(KeyPair.new()))
            except (OSError, msgspec.DecodeError):
                self.close()
                raise
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"the keys of this {role} in {self.path} can't be read or written: {error}") from None

    @property
    def keys(self) -> KeyPair:
        """Its key pair, the same for as long as the file lives."""
        return self._kept.keys

    def known(self, endpoint: str) -> str | None:
        """The public key of a supervisor that has let this member in."""
        return self._kept.supervisors.get(endpoint)

    def servers(self, near: str) -> dict[str, str]:
        """Of each supervisor that has let this member in, its public key and where it was; those on the host of `near` first."""
        host, found = near.rpartition(":")[0], dict[str, str]()
        for endpoint, server in sorted(self._kept.supervisors.items(), key=lambda one: one[0].rpartition(":")[0] != host):
            found.setdefault(server, endpoint)
        return found

    def remember(self, endpoint: str, server: str) -> None:
        """Keep the key of a supervisor. Raises `ConfigError` where it can't be written."""
        try:
            self._kept = self._write(_Kept(self.keys, {**self._kept.supervisors, endpoint: server}))
        except OSError as error:
            raise ConfigError(f"{self.path} can't be written: {error.strerror or error}") from None

    def close(self) -> None:
        """Let another process be this member."""
        os.close(self._lock)

    def _read(self) -> _Kept | None:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return None

    def _write(self, kept: _Kept) -> _Kept:
        """Replace the file at once, so that it is always whole; only its owner may read it."""
        fresh = self.path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        file = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as writing:
            writing.write(msgspec.json.encode(kept))
            writing.flush()
            os.fsync(file)
        fresh.replace(self.path)
        return kept


async def enter(identity: Identity, transport: Transport, endpoint: str, token_text: str, api_key: str = "") -> Membership:
    """Become a member of the cluster at `endpoint`, or find out that this is one already; tries for as long as nobody answers there.

    `endpoint`: `tcp://HOST:PORT`, or the URL of one of the cluster's gateways. Raises `ConfigError` (no token, a wrong endpoint),
    `Forbidden` (the token is refused), `Conflict` (the name is taken), `ProtocolMismatch`.
    """
    token = joining.read(token_text) if token_text else None
    wait, said_at, tried = RETRY_FIRST, 0.0, 0
    while True:
        tried += 1
        try:
            return await _entered(identity, transport, endpoint, token, api_key, enough=tried >= SHOWN)
        except AWAY as error:
            if time.monotonic() - said_at >= SAY:
                said_at = time.monotonic()
                log.warning("not joined yet, trying on: %s", error)
        await asyncio.sleep(wait)
        wait = min(2 * wait, RETRY_MOST)


async def _entered(
    identity: Identity, transport: Transport, endpoint: str, token: JoinToken | None, api_key: str, *, enough: bool
) -> Membership:
    """One try. `enough`: a token that nobody answers to is left out where it isn't needed."""
    if endpoint.startswith(("http://", "https://")):
        endpoint = token.endpoints[0] if token is not None else await _asked(endpoint, api_key)
    join_port = joining.join_port(endpoint)
    known = identity.known(endpoint)
    if token is not None:
        try:
            await _join(identity, transport, join_port, token)
        except Forbidden as refusal:
            if token.server not in identity.servers(endpoint):
                raise
            log.info("the token is of no use (%s), and not needed: this %s has joined before", refusal, identity.role)
        except AWAY as error:
            if not enough or known != token.server:
                raise
            log.info("the token can't be shown (%s), and isn't needed: this %s has joined before", error, identity.role)
        if known != token.server:
            identity.remember(endpoint, token.server)
        known = token.server
    if known is None:
        known = await _moved(identity, transport, endpoint, join_port)
    return Membership(endpoint, ClientSecurity(identity.keys, known))


async def _moved(identity: Identity, transport: Transport, endpoint: str, join_port: str) -> str:
    """The key of a supervisor that has let this member in, and is at another endpoint now: it shows that it has that key.

    Raises `ConfigError` where none has, and `Unavailable` where no such supervisor answers.
    """
    who = f"{identity.role}, {identity.name}"
    how = f"with --token, XI_JOIN_TOKEN or --token-file; `xi join-token --role {identity.role}` on the supervisor's machine makes one"
    servers = identity.servers(endpoint)
    if not servers:
        raise ConfigError(f"the supervisor at {endpoint} doesn't know this {who}, yet: give a join token {how}")
    why = ""
    for server, before in servers.items():
        link = dial(transport, join_port, joining.VOCABULARY, {}, lambda: None, ClientSecurity(identity.keys, server))
        try:
            await link.call(Join(secret=b"", name=identity.name, role=identity.role), timeout=ASK_TIMEOUT)
        except AWAY as error:
            why = error.message
            continue
        except Forbidden:  # no token was shown; but only who has the key can say so
            pass
        finally:
            await link.close()
        identity.remember(endpoint, server)
        log.info("the supervisor at %s is the one that was at %s, where this %s has joined it", endpoint, before, identity.role)
        return server
    raise Unavailable(
        f"this {who}, has joined the supervisor at {' and '.join(servers.values())}; the one at {endpoint} doesn't answer to that one's "
        f"key ({why}). If it is another one, stop this and give a join token of it {how}"
    )


async def _join(identity: Identity, transport: Transport, join_port: str, token: JoinToken) -> None:
    link = dial(transport, join_port, joining.VOCABULARY, {}, lambda: None, ClientSecurity(identity.keys, token.server))
    try:
        await link.call(Join(secret=token.secret, name=identity.name, role=identity.role), timeout=ASK_TIMEOUT)
    finally:
        await link.close()


async def _asked(url: str, api_key: str) -> str:
    """The cluster endpoint that a gateway tells."""
    server = Endpoint(url, api_key or None)
    loop = asyncio.get_running_loop()
    info = await loop.run_in_executor(None, lambda: server.call(ClusterInfo, "GET", "/v1/cluster/info", None, ASK_TIMEOUT))
    if not info.cluster_endpoint:
        raise ConfigError(f"the xi at {url} runs by itself and takes no other machines; start it as `xi supervisor`", param="endpoint")
    return info.cluster_endpoint


def token_of(environ: MutableMapping[str, str]) -> str:
    """The join token in the environment, which is taken out of it: no child process is to have it."""
    return environ.pop("XI_JOIN_TOKEN", "").strip()


def _locked(path: Path, who: str) -> int:
    """A descriptor that holds the lock. Raises `ConfigError` where another process has it."""
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(ImportError):  # Windows has no such locks
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise ConfigError(f"{who} of this XI_HOME runs already ({path.parent}); give this one another --name") from None
    return file
