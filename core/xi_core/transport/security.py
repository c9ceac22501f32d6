"""Keys of transports that leave the machine: who we are, who may connect, and whom we mean to reach.

The scheme is CurveZMQ (https://rfc.zeromq.org/spec/26/): each side has a CURVE25519 key pair, the dialling side knows the listener's public
key beforehand, and the listener judges the other's key before a single message passes. Local transports (`ipc`, `inproc`) ignore all this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct

from xi_core.errors import ConfigError

Z85 = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")
"""The alphabet in which keys are written (https://rfc.zeromq.org/spec/32/)."""
KEY_LENGTH = 40


class KeyPair(Struct, frozen=True):
    """A CURVE25519 key pair, each key in 40 characters of Z85. The secret half is left out where it is printed."""

    public: str
    secret: str

    @classmethod
    def new(cls) -> KeyPair:
        """Fresh keys. Raises `ConfigError` where this machine's ZeroMQ has no encryption."""
        import zmq  # only who makes keys needs it

        try:
            public, secret = zmq.curve_keypair()
        except zmq.ZMQError as error:
            raise ConfigError(f"this machine's ZeroMQ can't encrypt ({error}); install pyzmq from its wheels") from None
        return cls(public.decode(), secret.decode())

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


@dataclass(frozen=True)
class ServerSecurity:
    """Of a listener: its own keys, and the name of the peer that a public key belongs to; None refuses that peer at the handshake."""

    keys: KeyPair
    allows: Callable[[str], str | None]
    largest: int = 0
    """Bytes of the largest message that is taken, encrypted as it comes; who sends a larger one is disconnected. 0: all that the transport
    takes."""


@dataclass(frozen=True)
class ClientSecurity:
    """Of a channel: its own keys, and the public key that the listener must have."""

    keys: KeyPair
    server: str


def check_key(key: str, what: str) -> None:
    """Raises `ConfigError`, naming `what`, unless `key` can be a key."""
    if len(key) != KEY_LENGTH or not Z85.issuperset(key):
        raise ConfigError(f"{what} is no key: {KEY_LENGTH} characters of Z85 are expected")
