"""ZMTP as bytes: what is sent, what is understood, what is refused, and that it does not matter how the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xi_core.errors import TransportError
from xi_plugins.transports.zmtp_frames import (
    COMMAND,
    GREETING,
    LONG,
    MAX_COMMAND,
    MAX_MESSAGE,
    MORE,
    READY,
    FrameReader,
    Handshake,
    check_greeting,
    check_ready,
    command_frame,
    error_reason,
    message_frame,
    only_message,
    pong,
    read_command,
)

ROUTER_READY = command_frame(b"READY", b"\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0")


def long_frame(flags: int, size: int) -> bytes:
    return bytes((flags | LONG,)) + size.to_bytes(8, "big")


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def test_what_we_send_first() -> None:
    assert len(GREETING) == 64
    assert GREETING[:1] + GREETING[9:10] == b"\xff\x7f"
    assert GREETING[10:16] == b"\x03\x01NULL"
    assert READY == b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"


@pytest.mark.parametrize(
    ("size", "header"), [(0, b"\0\0"), (1, b"\0\1"), (255, b"\0\xff"), (256, b"\2\0\0\0\0\0\0\1\0"), (70_000, b"\2\0\0\0\0\0\1\x11\x70")]
)
def test_frames_of_messages(size: int, header: bytes) -> None:
    message = b"x" * size
    frame = message_frame(message)
    assert frame == header + message
    assert only_message(frame) == message
    assert only_message(frame + b"\0") is None
    assert only_message(frame[:-1]) is None
    assert list(FrameReader().feed(frame)) == [(LONG if size > 255 else 0, message)]


@pytest.mark.parametrize("data", [b"", b"\0", b"\1\0", b"\4\0", b"\2\0\0", b"\6\0\0\0\0\0\0\0\1x", b"\0\2x"])
def test_other_than_one_message(data: bytes) -> None:
    assert only_message(data) is None


@given(
    st.lists(st.tuples(st.sampled_from([0, MORE, COMMAND]), st.one_of(st.binary(max_size=300), st.binary(min_size=250, max_size=260)))),
    st.lists(st.integers(0)),
)
def test_frames_come_whole_however_they_are_cut(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    wire = b"".join((long_frame(flags, len(body)) if len(body) > 255 else bytes((flags, len(body)))) + body for flags, body in frames)
    reader = FrameReader()
    read = [frame for chunk in chunks(wire, cuts) for frame in reader.feed(chunk)]
    assert [(flags & ~LONG, body) for flags, body in read] == frames
    assert not reader.held


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_any_bytes_are_read_or_refused(parts: list[bytes]) -> None:
    reader = FrameReader()
    total = sum(len(part) for part in parts)
    try:
        taken = sum(len(body) for part in parts for _, body in reader.feed(part))
    except TransportError:
        return
    assert taken + len(reader.held) <= total


@pytest.mark.parametrize(
    "wire",
    [
        b"\x08\0", b"\xff\0", bytes((COMMAND | MORE, 0)), long_frame(0, MAX_MESSAGE + 1), long_frame(MORE, 1 << 63),
        long_frame(COMMAND, MAX_COMMAND + 1),
    ],
)  # fmt: skip
def test_bad_frames_are_refused_after_the_good_ones_and_before_their_end(wire: bytes) -> None:
    reader = FrameReader()
    frames = reader.feed(b"\0\1a" + wire)
    assert next(frames) == (0, b"a")
    with pytest.raises(TransportError, match="it sent a frame"):
        next(frames)


def test_the_largest_frames_are_waited_for() -> None:
    reader = FrameReader()
    assert not list(reader.feed(long_frame(0, MAX_MESSAGE)))
    assert not list(reader.feed(b"x"))
    assert len(reader.held) == 10


@given(st.binary(max_size=600), st.lists(st.integers(0), max_size=8))
def test_the_handshake_however_it_is_cut(rest: bytes, cuts: list[int]) -> None:
    shaking = Handshake()
    wire, sent, after = GREETING + ROUTER_READY + rest, b"", b""
    for chunk in chunks(wire, cuts):
        if shaking.done:
            after += chunk
        else:
            sent += shaking.feed(chunk)
    assert shaking.done
    assert sent == READY
    assert shaking.rest + after == rest


@pytest.mark.parametrize(
    ("greeting", "what"),
    [
        (b"H", "does not speak ZMTP"),
        (b"\xff" + bytes(9), "does not speak ZMTP"),
        (GREETING[:10] + b"\0", "older"),
        (GREETING[:10] + b"\x01", "older"),
        (GREETING[:12] + b"CURVE".ljust(20, b"\0"), "mechanism"),
        (GREETING[:12] + b"NULLX".ljust(20, b"\0"), "mechanism"),
    ],
)
def test_greetings_that_are_refused_at_once(greeting: bytes, what: str) -> None:
    with pytest.raises(TransportError, match=what):
        Handshake().feed(greeting)


@pytest.mark.parametrize("version", [b"\3\0", b"\3\1", b"\3\2", b"\4\0"])
def test_versions_that_are_understood(version: bytes) -> None:
    shaking = Handshake()
    assert shaking.feed(GREETING[:10] + version + GREETING[12:]) == READY
    assert not shaking.done


@pytest.mark.parametrize("size", range(65))
def test_no_part_of_a_good_greeting_is_refused(size: int) -> None:
    check_greeting(GREETING[:size])


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (command_frame(b"READY", b"\x0bSocket-Type\0\0\0\x06DEALER"), "ROUTER"),
        (command_frame(b"READY"), "ROUTER"),
        (command_frame(b"READY", b"\x0bSocket-Type\0\0\0\x07ROUTER"), "can't be read"),
        (command_frame(b"READY", b"\x0bSock"), "can't be read"),
        (command_frame(b"ERROR", b"\x03no\n"), r"refuses the connection: 'no\\n'"),
        (command_frame(b"PING", b"\0\0"), "something else"),
        (message_frame(b"READY"), "something else"),
        (b"\0", "something else"),
        (b"\x04\0", "without a name"),
        (b"\x04\1\0", "without a name"),
        (b"\x04\2\5R", "without a name"),
    ],
)
def test_handshakes_that_are_refused(frame: bytes, what: str) -> None:
    shaking = Handshake()
    shaking.feed(GREETING)
    with pytest.raises(TransportError, match=what):
        shaking.feed(frame)


def test_names_of_properties_in_any_case() -> None:
    check_ready(COMMAND, b"\5READY" + b"\x0bSOCKET-TYPE\0\0\0\x06ROUTER" + b"\1X\0\0\0\1y")


def test_a_ping_is_answered_with_its_context() -> None:
    name, data = read_command(command_frame(b"PING", b"\0\x05abc")[2:])
    assert name == b"PING"
    assert pong(data) == b"\x04\x08\x04PONGabc"
    for bad in (b"", b"\0", b"\0\0" + bytes(17)):
        with pytest.raises(TransportError, match="PING"):
            pong(bad)


def test_a_reason_is_fit_to_be_printed() -> None:
    assert error_reason(b"\x04a\x1b\xff\n") == r"'a\x1b\ufffd\n'"
    assert error_reason(b"") == "''"
