"""Where a child's server listens: its folder, and its port, which is chosen long before it is bound."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core import local_ports
from xi_core.engine import child_address
from xi_core.engine.child_address import Address


@pytest.fixture
def given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says which ports the system gives to outgoing connections."""
    file = tmp_path / "range"
    monkeypatch.setattr(local_ports, "_EPHEMERAL", file)
    return file


@contextlib.contextmanager
def made() -> Iterator[Address]:
    address = Address.make("inproc://x", unix_socket=False)
    try:
        yield address
    finally:
        address.remove()


@pytest.mark.parametrize(("told", "taken"), [("32768\t60999\n", range(32768, 61000)), ("11000 65535", range(11000, 65536))])
def test_the_port_is_none_that_an_outgoing_connection_may_get_meanwhile(given_out: Path, told: str, taken: range) -> None:
    given_out.write_text(told)
    for _ in range(20):
        with made() as address:
            assert address.port in child_address.PORTS
            assert address.port not in taken


@pytest.mark.parametrize("told", ["1024 65535", "10000 20000"])
def test_any_free_port_is_taken_where_the_system_gives_out_all(given_out: Path, told: str) -> None:
    given_out.write_text(told)
    with made() as address, socket.create_server(("127.0.0.1", address.port)) as server:
        assert server.getsockname()[1] == address.port


def test_ports_that_others_hold_are_left_alone(given_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        monkeypatch.setattr(child_address, "PORTS", range(port, port + 1))
        with made() as address:
            assert address.port not in (0, port)


def test_without_the_systems_word_the_port_is_one_of_ours(given_out: Path) -> None:
    with made() as address:
        assert address.port in child_address.PORTS


def test_address_lies_beside_the_replica(tmp_path: Path) -> None:
    short = Address.make(f"ipc://{tmp_path}/r.sock", unix_socket=True)
    assert (os.path.dirname(short.folder) == str(tmp_path)) == (len(str(tmp_path)) < 76)
    assert short.socket is not None
    assert len(short.socket) < 104
    path = short.write("a.yaml", "x: 1")
    assert os.stat(path).st_mode & 0o777 == 0o600
    short.remove()
    short.remove()
    assert not os.path.exists(short.folder)


def test_path_that_is_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    address = Address.make("inproc://x", unix_socket=True)
    assert address.socket is None
    assert address.port > 0
    address.remove()
