"""The gateway as a process: over real sockets, with real clients, to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from xi_core.wire.frames import Data, End, Open

ZMQ = "xi_plugins.transports.zmq:ZmqTransport"
EVENT = b'data: {"choices":[]}\n\n'
DONE = b"data: [DONE]\n\n"

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="ipc endpoints need Unix sockets")


@dataclass
class Running:
    """A gateway process with a supervisor and a replica that run in the test."""

    process: asyncio.subprocess.Process
    port: int
    supervisor: Any
    replica: Any
    folder: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


def request(body: bytes, path: str = "/v1/chat/completions", method: str = "POST") -> bytes:
    return b"%s %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (method.encode(), path.encode(), len(body), body)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One HTTP answer, chunked or not."""
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        if headers.get("transfer-encoding") != "chunked":
            return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return int(lines[0].split()[1]), headers, body


@contextlib.asynccontextmanager
async def gateway_process(kit: Any, *arguments: str, **env: str) -> AsyncIterator[Running]:
    folder = tempfile.mkdtemp(prefix="xi-gw-")
    supervisor = kit.FakeSupervisor(f"ipc://{folder}/s.sock", ZMQ)
    replica = kit.FakeReplica(script=kit.answering(), transport=ZMQ, endpoint=f"ipc://{folder}/r.sock")
    supervisor.serve("m", replica)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xi_server", "--supervisor", supervisor.endpoint, "--port", "0", "--watch-stdin", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "XI_GRACE": "2", "XI_LOG_LEVEL": "info", **env},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = json.loads(await process.stdout.readline())
        assert (line["role"], line["pid"]) == ("gateway", process.pid)
        yield Running(process, int(line["detail"].rpartition(":")[2]), supervisor, replica, folder)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        await supervisor.close()
        await replica.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def running(kit: Any) -> AsyncIterator[Running]:
    async with gateway_process(kit) as one:
        yield one


async def begin_stream(running: Running, kit: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """A connection with a streaming request that the replica has and doesn't answer by itself, and the request's id there."""
    running.replica.script = None
    reader, writer = await running.connect()
    writer.write(request(kit.chat(stream=True)))
    await kit.until(lambda: running.replica.submitted)
    return reader, writer, running.replica.submitted[0].id


async def test_answers_over_a_kept_connection(running: Running, kit: Any) -> None:
    reader, writer = await running.connect()
    for _ in range(3):
        writer.write(request(kit.chat()))
        status, headers, body = await read_answer(reader)
        assert (status, body) == (200, b'{"ok":true}')
        assert "server" not in headers
    writer.write(request(b"{"))
    assert (await read_answer(reader))[0] == 400
    writer.write(request(b"", "/health", "GET"))
    assert (await read_answer(reader))[0] == 200
    writer.close()


async def test_head_is_a_get_without_a_body(running: Running) -> None:
    """Probes of load balancers and monitors ask so."""
    async with asyncio.timeout(10):
        for path in ("/health", "/v1/models"):
            reader, writer = await running.connect()
            writer.write(b"HEAD %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % path.encode())
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"content-length: " in answer
            assert answer.endswith(b"\r\n\r\n")
            writer.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("piece", [7, 4096])
async def test_an_upgrade_is_declined_and_the_request_served(running: Running, kit: Any, piece: int, chunked: bool) -> None:
    """Java's client asks for h2c with every request to an http:// address; the body and the connection were lost."""
    body = kit.chat()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
    if chunked:
        sent = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        sent = head + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    websocket = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    reader, writer = await running.connect()
    both = 2 * sent + websocket + sent + request(body)  # pipelined: what follows is neither lost nor taken for the body
    for start in range(0, len(both), piece):
        writer.write(both[start : start + piece])
        await asyncio.sleep(0)
    answers = [await read_answer(reader) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200] * 5
    assert [text for place, (_, _, text) in enumerate(answers) if place != 2] == [b'{"ok":true}'] * 4
    assert [one.body for one in running.replica.submitted] == [body] * 4
    writer.close()


async def test_stream_arrives_whole_and_in_order(running: Running, kit: Any) -> None:
    one = running.replica
    reader, writer, i = await begin_stream(running, kit)
    events = [b"data: %d\n\n" % n for n in range(500)]
    one.send(Open(i, 200, kit.SSE), Data(i, events[0], 1))
    for event in events[1:]:
        one.send(Data(i, event, 1))
        if event.endswith(b"00\n\n"):
            await asyncio.sleep(0)
    one.send(Data(i, DONE), End(i, "stop"))
    status, headers, body = await read_answer(reader)
    assert (status, headers["content-type"]) == (200, kit.SSE)
    assert body == b"".join(events) + DONE
    writer.write(request(kit.chat(), "/health", "GET"))
    assert (await read_answer(reader))[0] == 200
    writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_closed_connection_aborts(running: Running, kit: Any, stream: bool) -> None:
    one = running.replica
    one.script = None
    _, writer = await running.connect()
    writer.write(request(kit.chat(stream=stream)))
    await kit.until(lambda: one.submitted)
    writer.close()
    await kit.until(lambda: one.aborted == [one.submitted[0].id], 1.0)


async def test_client_that_does_not_read_is_cut_off_alone(running: Running, kit: Any) -> None:
    one = running.replica
    one.script = None
    client = socket.create_connection(("127.0.0.1", running.port))
    client.sendall(request(kit.chat(stream=True)))
    await kit.until(lambda: one.submitted)
    i = one.submitted[0].id
    one.send(Open(i, 200, kit.SSE))
    filler = b"data: " + 65536 * b"x" + b"\n\n"
    async with asyncio.timeout(20):
        while not one.aborted:
            one.send(Data(i, filler, 1))
            await asyncio.sleep(0.01)
    assert one.aborted == [i]
    one.script = kit.answering()
    reader, writer = await running.connect()
    writer.write(request(kit.chat()))
    assert (await read_answer(reader))[0] == 200
    writer.close()
    client.settimeout(5)
    with contextlib.suppress(ConnectionError):
        while await asyncio.to_thread(client.recv, 1 << 20):
            pass  # what the kernel still held; then the end
    client.close()


async def test_slow_reader_within_the_bounds_gets_every_byte(running: Running, kit: Any) -> None:
    one = running.replica
    reader, writer, i = await begin_stream(running, kit)
    one.send(Open(i, 200, kit.SSE))
    events = [b"data: %06d %s\n\n" % (n, 4096 * b"x") for n in range(200)]
    for event in events:
        one.send(Data(i, event, 1))
    pings = one.pings
    await kit.until(lambda: one.pings > pings + 1)  # by then the gateway holds what the kernel doesn't
    one.send(Data(i, DONE), End(i))
    assert (await read_answer(reader))[2] == b"".join(events) + DONE
    writer.close()


async def test_terms_end_drains_open_requests_and_exits_clean(running: Running, kit: Any) -> None:
    one = running.replica
    reader, writer, i = await begin_stream(running, kit)
    one.send(Open(i, 200, kit.SSE), Data(i, EVENT, 1))
    running.process.send_signal(signal.SIGTERM)
    await kit.until(lambda: not accepts(running.port))
    one.send(Data(i, DONE), End(i))
    assert (await read_answer(reader))[2] == EVENT + DONE
    async with asyncio.timeout(5):
        assert await running.process.wait() == 0
    writer.close()


async def test_what_does_not_end_in_the_time_of_grace_ends_in_words(running: Running, kit: Any) -> None:
    one = running.replica
    streaming, first, i = await begin_stream(running, kit)
    one.send(Open(i, 200, kit.SSE), Data(i, EVENT, 1))
    waiting, second = await running.connect()
    second.write(request(kit.chat()))
    await kit.until(lambda: len(one.submitted) == 2)
    running.process.send_signal(signal.SIGINT)
    status, _, body = await read_answer(waiting)
    assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
    last = (await read_answer(streaming))[2].removeprefix(EVENT)
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "unavailable"
    async with asyncio.timeout(5):
        assert await running.process.wait() == 0
    assert running.process.stderr is not None
    assert b"Traceback" not in await running.process.stderr.read()
    first.close()
    second.close()


async def test_end_of_stdin_ends_the_process_at_once(running: Running, kit: Any) -> None:
    _, writer, _ = await begin_stream(running, kit)
    assert running.process.stdin is not None
    running.process.stdin.close()
    async with asyncio.timeout(2):
        await running.process.wait()
    writer.close()


async def test_listening_socket_is_taken_over(kit: Any) -> None:
    folder = tempfile.mkdtemp(prefix="xi-gw-")
    supervisor = kit.FakeSupervisor(f"ipc://{folder}/s.sock", ZMQ)
    listening = socket.create_server(("127.0.0.1", 0))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xi_server", "--supervisor", supervisor.endpoint, "--fd", str(listening.fileno()),
        pass_fds=(listening.fileno(),), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = json.loads(await process.stdout.readline())
        assert line["detail"] == f"http://127.0.0.1:{listening.getsockname()[1]}"
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(request(b"", "/ready", "GET"))
        assert (await read_answer(reader))[0] == 200
        writer.close()
    finally:
        process.kill()
        await process.communicate()
        await supervisor.close()
        listening.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"XI_ROUTER": "nonsense"}, "unknown router 'nonsense'"),
        ({"XI_GRACE": "soon"}, "XI_GRACE"),
        ({"XI_ALLOW_ORIGINS": "null"}, "XI_ALLOW_ORIGINS (--allow-origin): 'null' is no origin"),
        ({"XI_ALLOW_ORIGINS": "*", "XI_API_KEY": ""}, "set one with XI_API_KEY"),
    ],
)
async def test_wrong_settings_end_it_in_words(env: dict[str, str], words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xi_server", "--supervisor", "tcp://127.0.0.1:1", "--port", "0",
        stderr=asyncio.subprocess.PIPE, env={**os.environ, **env},
    )  # fmt: skip
    async with asyncio.timeout(30):
        _, stderr = await process.communicate()
    assert process.returncode == 78
    assert words in stderr.decode()
    assert "Traceback" not in stderr.decode()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "some.name"])
async def test_off_loopback_it_wants_a_key(host: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xi_server", "--supervisor", "tcp://127.0.0.1:1", "--host", host, stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "XI_API_KEY"},
    )  # fmt: skip
    async with asyncio.timeout(30):
        _, stderr = await process.communicate()
    assert process.returncode == 78
    assert "XI_API_KEY" in stderr.decode()


async def test_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "xi_server", "--supervisor", "tcp://127.0.0.1:1", "--port", str(port), stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(30):
            _, stderr = await process.communicate()
    assert process.returncode == 1
    assert str(port) in stderr.decode()
    assert "Traceback" not in stderr.decode()


async def test_xinference_client_is_content(running: Running, kit: Any) -> None:
    """Launch, list, get, chat, terminate, with Xinference's own client."""
    client_module = pytest.importorskip("xinference_client.client.restful.restful_client")
    supervisor, loop = running.supervisor, asyncio.get_running_loop()

    async def become_ready(spec: Any) -> None:
        loop.call_soon(supervisor.serve, spec.model_uid or spec.model_name, running.replica)

    supervisor.on_launch = become_ready

    def use() -> None:
        client = client_module.Client(running.url)
        try:
            uid = client.launch_model(
                "xi-tiny", model_engine="llama.cpp", model_uid="u", model_size_in_billions=0.5, replica=1, n_gpu=None, gpu_idx=0,
                envs={"A": "b"}, n_ctx=64,
            )  # fmt: skip
            assert uid == "u"
            assert client.launch_model("xi-tiny", wait_ready=False) == "xi-tiny"
            assert client.list_models()["u"]["model_type"] == "LLM"
            model = client.get_model("u")
            assert type(model).__name__ == "RESTfulChatModelHandle"
            assert model.chat([{"role": "user", "content": "Hi"}]) == {"ok": True}
            model.close()
            with pytest.raises(RuntimeError, match="request_limits is not supported yet"):
                client.launch_model("xi-tiny", request_limits=2)
            client.terminate_model("u")
            with pytest.raises(RuntimeError, match="no model 'u'"):
                client.get_model("u")
        finally:
            client.close()

    async with asyncio.timeout(30):
        await asyncio.to_thread(use)
    spec = supervisor.launched[0]
    assert (spec.size_in_billions, spec.n_gpu, spec.gpu_idx, spec.env, spec.options) == ("0.5", None, [0], {"A": "b"}, {"n_ctx": 64})


async def test_openais_client_is_content(kit: Any) -> None:
    openai = pytest.importorskip("openai")

    def stream(replica: Any, submit: Any) -> None:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                 "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}  # fmt: skip
        event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        replica.send(Open(submit.id, 200, kit.SSE), *(Data(submit.id, event, 1) for _ in range(3)), Data(submit.id, DONE), End(submit.id))

    async with gateway_process(kit, XI_API_KEY="sk-key") as running:
        running.replica.script = stream

        def use() -> None:
            messages = [{"role": "user", "content": "Hi"}]
            with openai.OpenAI(base_url=f"{running.url}/v1", api_key="sk-key", max_retries=0) as client:
                chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True))
                assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "aaa"
                assert [model.id for model in client.models.list()] == ["m"]
                assert client.models.retrieve("m").owned_by == "xi"
                with pytest.raises(openai.NotFoundError) as caught:
                    client.chat.completions.create(model="other", messages=messages)
                assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
            with (
                openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0) as client,
                pytest.raises(openai.AuthenticationError),
            ):
                client.models.list()

        async with asyncio.timeout(30):
            await asyncio.to_thread(use)


def accepts(port: int) -> bool:
    """Whether anybody listens there still."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
