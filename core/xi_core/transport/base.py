"""Transport, Channel and Listener: whole messages, both ways, between one listener and many channels. No parsing, no threads.

Every callback runs on the event loop that `connect` or `listen` was called on. A message arrives whole or not at all, in order.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable

from msgspec import Struct

from xi_core.errors import TransportError
from xi_core.transport.security import ClientSecurity, ServerSecurity

Peer = bytes
"""A listener's name for one connection; a new connection of the same process has a new one."""
NO_PULSE = sys.maxsize
"""More beats than anybody waits for: nothing is known of the other process's life but what it says itself."""


class Channel(ABC):
    """The dialling side of a connection."""

    error: TransportError | None = None
    """Why it was lost, where the transport knows more than that it was; `ChannelRefused` where the listener doesn't let this side in."""

    @abstractmethod
    def send(self, message: bytes) -> None:
        """Queue a message, without waiting. Raises `ChannelFull` when the other side doesn't read, and `ChannelClosed` when it is gone:
        `on_lost` comes as soon as what it had sent before has been handed over."""

    def missed_beats(self) -> int:
        """Ask the process at the other end for a sign of life that it gives also while its Python is busy, if only it runs.

        Answers how many of the signs that were asked for before are missing in a row; `NO_PULSE` where the transport has no such signs.
        To be called at regular times, from the first of which on they are asked for.
        """
        return NO_PULSE

    @abstractmethod
    async def close(self, grace: float = 1.0) -> None:
        """Send what is queued, for `grace` seconds at most, then close. Idempotent; `on_lost` is not called."""

    @abstractmethod
    def abort(self) -> None:
        """Close now and drop what is queued. Idempotent; `on_lost` is not called."""


class Listener(ABC):
    """The accepting side."""

    endpoint: str
    """The address that others dial: with the real port where `listen` was given port 0."""

    @abstractmethod
    def send(self, peer: Peer, message: bytes) -> None:
        """Queue a message to one peer, without waiting. Raises `ChannelFull` or `ChannelClosed`."""

    def key_of(self, peer: Peer) -> str:
        """The public key with which a peer that has sent a message connected; empty where there is no security."""
        return ""

    @abstractmethod
    async def close(self, grace: float = 1.0) -> None:
        """Send what is queued, for `grace` seconds at most, then close. Idempotent."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once, dropping what is queued. Idempotent."""


class Transport(ABC):
    """A way to carry messages, by the scheme of its endpoints (`ipc`, `tcp`, `inproc`).

    `security` is for endpoints that other machines can reach: there it must be given, else `ConfigError` is raised. Local ones ignore it.
    """

    @abstractmethod
    def listen(self, endpoint: str, on_message: Callable[[Peer, bytes], None], security: ServerSecurity | None = None) -> Listener:
        """Accept connections at `endpoint`. Raises `TransportError` if it is taken."""

    @abstractmethod
    def connect(
        self,
        endpoint: str,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[], None],
        security: ClientSecurity | None = None,
    ) -> Channel:
        """Dial `endpoint` and return at once; `on_lost` is called once, when the connection ends, is refused or isn't made in time."""

    def finish(self, seconds: float) -> None:  # noqa: B027 - a transport that sends before it closes need not
        """Wait until closed channels and listeners have sent what was queued, or their grace is over; `seconds` at most.

        For a process that has closed all of them, and ends without Python's own clean-up.
        """


class TransportInfo(Struct, kw_only=True):
    """Descriptor of a transport: its name, `module:Class` and the schemes that it carries."""

    name: str
    transport: str
    schemes: tuple[str, ...]
    description: str = ""
