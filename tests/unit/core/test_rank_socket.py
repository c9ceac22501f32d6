"""Rank 0's messages over TCP: who is let in, and what is told of those who don't come or leave."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from xi_core.engine.rank_socket import SocketLink
from xi_core.errors import EngineError
from xi_core.testing.harness import plan_for
from xi_core.testing.server import free_port
from xi_core.wire.plan import LaunchPlan, RankAddress, Rendezvous

HOST = "127.0.0.1"


def plans(count: int, port: int, incarnation: str = "test") -> list[LaunchPlan]:
    world = tuple(RankAddress(rank=n, worker=f"w{n}", host=HOST, ports=(1, port)) for n in range(count))
    found = []
    for number in range(count):
        plan = plan_for("x:Y", "", "fake")
        plan.rendezvous, plan.incarnation = Rendezvous(rank=number, world=world), incarnation
        found.append(plan)
    return found


def together(calls: list[Callable[[], SocketLink]]) -> list[SocketLink]:
    links: dict[int, SocketLink] = {}
    threads = [threading.Thread(target=lambda n=n, call=call: links.__setitem__(n, call())) for n, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return [links[number] for number in range(len(calls))]


def ring(count: int, port: int) -> list[SocketLink]:
    return together([partial(SocketLink, plan, 1, 5.0) for plan in plans(count, port)])


def test_every_message_comes_to_all_in_order() -> None:
    head, *others = ring(3, free_port())
    messages = [b"", b"one", bytes(range(256)) * 5000]
    heard: list[list[bytes]] = [[] for _ in others]

    def listen(number: int) -> None:
        heard[number] = [others[number].broadcast(b"") for _ in messages]

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(len(others))]
    for thread in threads:
        thread.start()
    for message in messages:
        assert head.broadcast(message) == message
    for thread in threads:
        thread.join(10)
    assert heard == [messages, messages]
    for link in (head, *others):
        link.close()


def test_a_rank_that_leaves_is_noticed_on_either_side() -> None:
    head, other = ring(2, free_port())
    head.close()
    with pytest.raises(ConnectionError, match="closed the connection"):
        other.broadcast(b"")
    other.close()
    head, other = ring(2, free_port())
    other.close()
    with pytest.raises(OSError, match=r"."):
        talk(head)
    head.close()


def talk(link: SocketLink) -> None:
    """Until the other end's absence is felt, which the first message may not."""
    for _ in range(100):
        link.broadcast(b"x" * 100_000)


def test_strangers_and_another_life_are_turned_away() -> None:
    port = free_port()
    first, second = plans(2, port)
    stale = plans(2, port, incarnation="before")[1]
    links: list[SocketLink] = []
    leading = threading.Thread(target=lambda: links.append(SocketLink(first, 1, 10.0)))
    leading.start()
    old = SocketLink(stale, 1, 5.0)
    with pytest.raises(OSError, match=r"."):
        old.broadcast(b"")
    old.close()
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", struct.pack(">I", 2**31), struct.pack(">I", 5) + b"hello"):
        with socket.create_connection((HOST, port)) as stranger, contextlib.suppress(OSError):  # turned away with a reset, or gently
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b""
    other = SocketLink(second, 1, 5.0)
    leading.join(10)
    (head,) = links
    head.broadcast(b"for you only")
    assert other.broadcast(b"") == b"for you only"
    head.close()
    other.close()


def test_those_who_don_t_come_are_named() -> None:
    port = free_port()
    first, second, _ = plans(3, port)
    failures: list[EngineError] = []

    def lead() -> None:
        try:
            SocketLink(first, 1, 0.5)
        except EngineError as error:
            failures.append(error)

    leading = threading.Thread(target=lead)
    leading.start()
    here = SocketLink(second, 1, 5.0)
    leading.join(10)
    assert [error.message for error in failures] == [f"rank 0 waits at {HOST}:{port}, and rank 2 did not come"]
    here.close()


@pytest.mark.parametrize("said", [b"", struct.pack(">I", 10)])
def test_strangers_that_say_nothing_cost_no_more_than_the_patience(said: bytes) -> None:
    port = free_port()
    failures: list[EngineError] = []
    took: list[float] = []

    def lead() -> None:
        began = time.monotonic()
        try:
            SocketLink(plans(2, port)[0], 1, 1.0)
        except EngineError as error:
            failures.append(error)
        took.append(time.monotonic() - began)

    with contextlib.ExitStack() as strangers:
        leading = threading.Thread(target=lead)
        leading.start()
        for _ in range(2):
            strangers.enter_context(connected(port)).sendall(said)
        leading.join(20)
    assert [error.message for error in failures] == [f"rank 0 waits at {HOST}:{port}, and rank 1 did not come"]
    assert took[0] < 3.0


def connected(port: int) -> socket.socket:
    """To rank 0, as soon as it listens."""
    for _ in range(200):
        try:
            return socket.create_connection((HOST, port))
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise AssertionError("rank 0 does not listen")


def test_a_rank_0_that_doesn_t_listen_is_named() -> None:
    port = free_port()
    with pytest.raises(EngineError, match=f"rank 0 does not listen at {HOST}:{port}"):
        SocketLink(plans(2, port)[1], 1, 0.1)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"rank 0 can't listen at {HOST}:{port}"):
            SocketLink(plans(2, port)[0], 1, 1.0)


def test_a_replica_of_one_rank_has_no_link() -> None:
    with pytest.raises(EngineError, match="one rank only"):
        SocketLink(plan_for("x:Y", "", "fake"), 0, 1.0)
