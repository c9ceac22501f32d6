"""The small HTTP client of child servers: answers in any split, and answers that are none."""

import asyncio
import json

import pytest

from xi_core.engine.child_http import LARGEST_HEAD, BadAnswer, EventReader, Place, ResponseReader, ask, encode

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = b'data: {"a": 1}\n\n: a comment\n\ndata: {"b":\ndata: 2}\n\ndata: [DONE]\n\n'
CHUNKED = HEAD + b'10;x=y\r\ndata: {"a": 1}\n\n\r\n' + f"{len(EVENTS) - 16:X}\r\n".encode() + EVENTS[16:] + b"\r\n0\r\n\r\n"
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nhello"
OPEN_END = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello"


def pieces(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 1000])
def test_chunked_answer_in_any_split(size):
    reader, events, found = ResponseReader(), EventReader(), []
    for piece in pieces(CHUNKED, size):
        assert not reader.complete
        found += events.feed(reader.feed(piece))
    assert reader.status == 200
    assert reader.headers["content-type"].startswith("text/event-stream")
    assert reader.complete
    assert found == [b'{"a": 1}', b'{"b":\n2}', b"[DONE]"]


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_sized_answer(size):
    reader = ResponseReader()
    assert b"".join(reader.feed(piece) for piece in pieces(SIZED, size)) == b"hello"
    assert (reader.status, reader.complete) == (404, True)


def test_answer_that_ends_with_its_connection():
    reader = ResponseReader()
    assert reader.feed(OPEN_END) == b"hello"
    assert not reader.complete
    reader.end()
    assert reader.complete


def test_interim_answer_is_left_out():
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED) == b"hello"
    assert reader.status == 404


def test_events_with_carriage_returns_in_any_split():
    data = EVENTS.replace(b"\n", b"\r\n")
    for size in (1, 2, 5, 1000):
        reader = EventReader()
        assert [event for piece in pieces(data, size) for event in reader.feed(piece)] == [b'{"a": 1}', b'{"b":\n2}', b"[DONE]"]


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"x" * (LARGEST_HEAD + 5),
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        HEAD + b"-5\r\nhello\r\n",
        HEAD + b"0x5\r\nhello\r\n",
        HEAD + b"ffffffff\r\n",
        HEAD + b"z" * 300,
    ],
)
def test_what_is_no_answer_is_refused(data):
    with pytest.raises(BadAnswer):
        ResponseReader().feed(data)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", SIZED[:-1], CHUNKED[:-3]])
def test_answer_that_is_cut_off(data):
    reader = ResponseReader()
    reader.feed(data)
    with pytest.raises(BadAnswer):
        reader.end()


async def served(answer, events, tmp_path):
    """Ask a server on a Unix socket that answers with the bytes `answer`; the reply and what was asked."""
    asked = b""

    async def serve(reader, writer):
        nonlocal asked
        asked = await reader.readuntil(b"}")
        writer.write(answer)
        await writer.drain()
        writer.close()

    path = str(tmp_path / "s.sock")
    server = await asyncio.start_unix_server(serve, path)
    try:
        reply = await asyncio.wait_for(ask(Place(socket=path), encode("POST", "/v1/x", "secret", b"{}"), events.append), 5)
    finally:
        server.close()
        await server.wait_closed()
    return reply, asked


async def test_ask_streams_events(tmp_path):
    events = []
    reply, asked = await served(CHUNKED, events, tmp_path)
    assert [json.loads(event) for event in events] == [{"a": 1}, {"b": 2}]
    assert (reply.status, reply.body) == (200, b"")
    assert b"Authorization: Bearer secret\r\n" in asked
    assert b"Content-Length: 2\r\n" in asked


async def test_ask_gives_the_body_of_a_refusal(tmp_path):
    reply, _ = await served(SIZED, [], tmp_path)
    assert (reply.status, reply.body) == (404, b"hello")


async def test_ask_says_that_an_answer_was_cut_off(tmp_path):
    with pytest.raises(BadAnswer, match="closed"):
        await served(CHUNKED[:-40], [], tmp_path)


async def test_nobody_listens(tmp_path):
    with pytest.raises(OSError):
        await ask(Place(socket=str(tmp_path / "none.sock")), encode("GET", "/", "k"), print)
