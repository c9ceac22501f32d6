"""Listening at any free port of a range, and what is said where that can't be."""

from __future__ import annotations

import socket

import pytest

from xi_core.errors import TransportError
from xi_core.transport.base import Listener, Transport
from xi_core.transport.port_range import TRIES, listen


class Refusing(Transport):
    """Can listen nowhere, and remembers where it was to."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def listen(self, endpoint: str, on_message: object, security: object = None) -> Listener:
        self.asked.append(endpoint)
        raise TransportError(f"can't listen at {endpoint}: no")

    def connect(self, *_: object, **__: object) -> None:  # type: ignore[override]
        raise NotImplementedError


def test_an_address_of_another_machine_is_the_reason_and_not_the_ports() -> None:
    transport = Refusing()
    with pytest.raises(TransportError, match=r"203\.0\.113\.9 is no address of this machine.*--host") as raised:
        listen(transport, "tcp://203.0.113.9:20000-29999", lambda *_: None)
    assert "XI_PORT_RANGE" not in raised.value.message
    assert len(transport.asked) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_ports_that_others_have_are_the_reason(host: str) -> None:
    if host == "[::1]" and not socket.has_ipv6:
        pytest.skip("no IPv6")
    transport = Refusing()
    with pytest.raises(TransportError, match=r"no port of tcp.* could be had.*widen XI_PORT_RANGE"):
        listen(transport, f"tcp://{host}:20000-29999", lambda *_: None)
    assert len(transport.asked) == TRIES
