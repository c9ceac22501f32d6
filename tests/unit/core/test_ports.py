"""Ports that are kept for ranks."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from xi_core import local_ports
from xi_core.cluster.ports import BLOCK, PortBlock, PortRange, interface_of
from xi_core.errors import ConfigError, LaunchFailed

HOST = "127.0.0.1"
FIRST = 19000


def taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


@pytest.mark.parametrize(
    "text", ["", "20000", "a-b", "29999-20000", "20000-20006", "80-90", "1024-70000", "20000-29999-3", "-1-5", "20000 - 20100"]
)
def test_a_range_that_can_t_be_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"XI_PORT_RANGE=.*FIRST-LAST"):
        PortRange.parse(text)


def test_a_range() -> None:
    found = PortRange.parse(" 19000-19007 ")
    assert (found.first, found.last) == (19000, 19007)


def test_a_range_that_the_system_gives_out_itself_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "range"
    monkeypatch.setattr(local_ports, "_EPHEMERAL", file)
    PortRange.parse("19000-19100")
    file.write_text("32768\t60999\n")
    PortRange.parse("19000-19100")
    assert caplog.text == ""
    PortRange.parse("30000-33000")
    assert "overlaps the ports that this system gives to outgoing connections (32768-60999)" in caplog.text


def test_a_block_is_consecutive_held_and_given_back() -> None:
    block = PortRange(FIRST, FIRST + 10 * BLOCK).take(HOST)
    try:
        assert block.ports == tuple(range(block.ports[0], block.ports[0] + BLOCK))
        assert (block.ports[0] - FIRST) % BLOCK == 0
        assert all(taken(port) for port in block.ports)
    finally:
        block.release()
    assert not any(taken(port) for port in block.ports)
    block.release()


def test_blocks_don_t_overlap_and_run_out() -> None:
    kept = PortRange(FIRST, FIRST + 3 * BLOCK - 1)
    blocks = [kept.take(HOST) for _ in range(3)]
    try:
        assert len({port for block in blocks for port in block.ports}) == 3 * BLOCK
        with pytest.raises(LaunchFailed, match=f"no block of {BLOCK} free ports.*from {FIRST} to .*XI_PORT_RANGE"):
            kept.take(HOST)
        blocks[0].release()
        blocks[0] = kept.take(HOST)
    finally:
        for block in blocks:
            block.release()


def test_a_block_with_a_port_of_somebody_else_is_left_alone() -> None:
    with socket.create_server((HOST, FIRST + 3)):
        assert PortBlock.bind(HOST, FIRST) is None
        assert not taken(FIRST), "what was bound before is free again"
        block = PortRange(FIRST, FIRST + 2 * BLOCK - 1).take(HOST)
        block.release()
    assert block.ports[0] == FIRST + BLOCK


def test_an_address_that_is_not_this_machine_s_is_said() -> None:
    with pytest.raises(LaunchFailed, match=r"192\.0\.2\.1 is no address of this machine.* --host"):
        PortRange(FIRST, FIRST + BLOCK).take("192.0.2.1")


@pytest.mark.skipif(not Path("/sys/class/net/lo").exists(), reason="Linux's loopback")
def test_the_interface_of_an_address() -> None:
    assert interface_of(HOST) == "lo"
    assert interface_of("192.0.2.1") == ""
    assert interface_of("::1") == ""
