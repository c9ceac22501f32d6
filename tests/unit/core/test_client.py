"""The Python client against a scripted socket: what it sends, what it makes of answers, and how it leaves."""

import json
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from xi_core import client as module
from xi_core.api.control import LaunchSpec
from xi_core.client import Client
from xi_core.errors import (
    AuthenticationFailed,
    ChannelClosed,
    ConfigError,
    DeadlineExceeded,
    LaunchCancelled,
    LaunchFailed,
    ModelNotFound,
    Overloaded,
    ProtocolMismatch,
    RemoteError,
    ReplicaLost,
    Unavailable,
    UnknownModel,
)


class Wire:
    """Accepts connections one after the other; each gets the next of `answers` as raw bytes (the last one stays), then is closed.

    With `hold` it is kept open instead, until the client leaves, which sets `left`.
    """

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.answers: list[bytes] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.hold = False
        self.left = threading.Event()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def body(self, index: int = -1):
        return json.loads(self.requests[index][2])

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                connection.settimeout(20)
                self._serve(connection, stream)

    def _serve(self, connection, stream) -> None:
        line = stream.readline().decode().strip()
        headers = {}
        while field := stream.readline().strip():
            name, _, value = field.decode().partition(":")
            headers[name.lower()] = value.strip()
        self.requests.append((line, headers, stream.read(int(headers.get("content-length", 0)))))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        connection.sendall(answer)
        if self.hold:
            try:
                gone = stream.read(1) == b""
            except ConnectionError:
                gone = True
            if gone:
                self.left.set()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)


def http(body, status=200, kind="application/json", headers=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{headers}\r\n".encode() + data


def refusal(status, code, message="no", headers=""):
    return http({"error": {"message": message, "type": "t", "param": "p", "code": code}}, status, headers=headers)


def sse(*chunks, done=True):
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n" * done
    data = text.encode()
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(data), data)
        + b"0\r\n\r\n" * done
    )


def status(state, **fields):
    return http({"model_uid": "m", "spec": {"model_name": "m"}, "state": state, "created": 1, **fields})


MESSAGES = [{"role": "user", "content": "Hi"}]


# ---- launching -------------------------------------------------------------------------------------


def test_launch_sends_xinference_clients_names_and_waits(wire):
    wire.answers = [http({"model_uid": "m"}), status("PENDING"), status("LOADING"), status("READY", engine="llama.cpp")]
    states = []
    ready = Client(wire.url).launch(
        "m", model_engine="llama.cpp", env={"A": "1"}, n_gpu=None, context_length=512, on_progress=lambda s: states.append(s.state)
    )
    assert ready.engine == "llama.cpp"
    assert states == ["PENDING", "LOADING", "READY"]
    assert wire.requests[0][0] == "POST /v1/models?wait_ready=false HTTP/1.1"
    assert wire.body(0) == {"model_name": "m", "model_engine": "llama.cpp", "envs": {"A": "1"}, "n_gpu": None, "context_length": 512}


def test_launch_of_a_spec_without_waiting(wire):
    wire.answers = [http({"model_uid": "m"}), status("PENDING")]
    assert Client(wire.url).launch(LaunchSpec(model_name="m", options={"a-b": 1}), wait=False).state == "PENDING"
    assert wire.body(0) == {"model_name": "m", "a_b": 1}
    assert len(wire.requests) == 2


def test_an_option_cant_be_a_field_of_the_launch(wire):
    with pytest.raises(ConfigError, match="'replica' is a field of the launch"):
        Client(wire.url).start(LaunchSpec(model_name="m", options={"replica": 2}))
    assert not wire.requests


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (status("FAILED", error="out of memory"), LaunchFailed, "out of memory"),
        (status("FAILED", replicas=[{"replica_id": "m-0", "state": "FAILED", "error": "damaged"}]), LaunchFailed, "damaged"),
        (status("FAILED"), LaunchFailed, "model 'm' failed"),
        (status("CANCELLED"), LaunchCancelled, "terminated before it was ready"),
        (status("STOPPING"), LaunchCancelled, "terminated before it was ready"),
        (refusal(404, "model_not_found"), LaunchCancelled, "terminated before it was ready"),
    ],
)
def test_ends_of_a_launch(wire, answer, error, message):
    wire.answers = [http({"model_uid": "m"}), answer]
    with pytest.raises(error, match=message):
        Client(wire.url).launch("m")


def test_a_launch_survives_a_restart_of_the_gateway(wire):
    wire.answers = [http({"model_uid": "m"}), refusal(503, "unavailable"), b"", status("READY")]
    assert Client(wire.url).launch("m").state == "READY"


def test_a_server_that_stays_away_is_given_up(wire, monkeypatch):
    monkeypatch.setattr(module, "POLL_PATIENCE", 0.05)
    wire.answers = [http({"model_uid": "m"}), refusal(503, "unavailable", "starting")]
    with pytest.raises(Unavailable, match="starting"):
        Client(wire.url).launch("m")


def test_it_waits_until_the_gateway_serves_what_is_ready(wire):
    wire.answers = [
        http({"model_uid": "m"}), status("READY"), status("READY", endpoints=[]),
        status("READY", endpoints=["/v1/completions"]), http({"ready": False}, 503),
        status("READY", endpoints=["/v1/completions"]), http({"ready": True}),
    ]  # fmt: skip
    assert Client(wire.url).launch("m").state == "READY"
    assert [line.split()[1] for line, _, _ in wire.requests[2:]] == ["/v1/models/m", "/v1/models/m", "/ready", "/v1/models/m", "/ready"]


# ---- other control calls ---------------------------------------------------------------------------


def test_control_calls(wire):
    client = Client(wire.url + "/v1/", api_key="secret")
    wire.answers = [http({"object": "list", "data": [{"id": "m", "created": 1, "unknown": True}]})]
    assert [model.id for model in client.models()] == ["m"]
    wire.answers = [http([{"name": "e", "available": True, "reason": "1.0", "formats": [], "plugin": "p"}])]
    assert client.engines("a b")[0].name == "e"
    wire.answers = [http({"version": "1", "processes": [{"role": "gateway", "pid": 7}]})]
    assert client.cluster().processes[0].pid == 7
    wire.answers = [http(b"")]
    client.terminate("a/b")
    assert client.health() is True
    wire.answers = [http({}, 503)]
    assert client.health() is False
    assert [line for line, _, _ in wire.requests] == [
        f"{path} HTTP/1.1"
        for path in (
            "GET /v1/models",
            "GET /v1/engines?model=a+b",
            "GET /v1/cluster/info",
            "DELETE /v1/models/a%2Fb",
            "GET /health",
            "GET /health",
        )
    ]
    assert all(headers["authorization"] == "Bearer secret" for _, headers, _ in wire.requests)


def test_a_path_before_the_api(wire):
    wire.answers = [http({"data": []})]
    Client(wire.url + "/behind/a/proxy").models()
    assert wire.requests[0][0] == "GET /behind/a/proxy/v1/models HTTP/1.1"


# ---- generation ------------------------------------------------------------------------------------


def test_chat_and_complete(wire):
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    message = {"role": "assistant", "content": "Hello"}
    wire.answers = [
        http(
            {"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        )
    ]
    assert Client(wire.url).chat("m", MESSAGES, temperature=0).choices[0].message.content == "Hello"
    assert wire.body() == {"model": "m", "messages": MESSAGES, "stream": False, "temperature": 0}
    wire.answers = [
        http({"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "text": "Hello", "finish_reason": "length"}], "usage": usage})
    ]
    assert Client(wire.url).complete("m", [1, 2], max_tokens=1).choices[0].text == "Hello"
    assert wire.body() == {"model": "m", "prompt": [1, 2], "stream": False, "max_tokens": 1}


def test_streams(wire):
    call = {"index": 0, "function": {"name": "f", "arguments": ""}}
    wire.answers = [
        sse(
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "你"}, "finish_reason": None}]},
            {"choices": [{"index": 1, "delta": {"reasoning_content": "hm"}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None},
            {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
        )
    ]
    deltas = list(Client(wire.url).chat("m", MESSAGES, stream=True))
    assert [(d.index, d.text, d.reasoning, d.tool_calls, d.finish_reason) for d in deltas] == [
        (0, "你", "", [], None), (1, "", "hm", [], None), (0, "", "", [call], None), (0, "", "", [], "stop"), (0, "", "", [], None),
    ]  # fmt: skip
    assert deltas[-1].usage.total_tokens == 3
    wire.answers = [
        b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\nevent: x\ndata: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n'
    ]
    assert [delta.text for delta in Client(wire.url).complete("m", "p", stream=True)] == ["a"]


@pytest.mark.parametrize("how", ["close", "drop", "raise"])
def test_leaving_a_stream_closes_the_connection(wire, how):
    wire.hold = True
    wire.answers = [sse({"choices": [{"text": "a"}]}, done=False)]
    deltas = Client(wire.url).complete("m", "p", stream=True)
    assert next(deltas).text == "a"
    if how == "close":
        deltas.close()
    elif how == "drop":
        del deltas
    else:
        with pytest.raises(KeyboardInterrupt):
            deltas.throw(KeyboardInterrupt())
    assert wire.left.wait(10)


def test_an_interrupt_while_it_waits_closes_the_connection(wire, monkeypatch):
    wire.hold = True
    wire.answers = [b""]

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.HTTPConnection, "getresponse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Client(wire.url).chat("m", MESSAGES)
    assert wire.left.wait(10)


def test_an_error_in_the_stream_is_raised_by_its_class(wire):
    wire.answers = [
        sse({"choices": [{"text": "a"}]}, {"error": {"message": "gone", "type": "server_error", "param": None, "code": "replica_lost"}})
    ]
    deltas = Client(wire.url).complete("m", "p", stream=True)
    assert next(deltas).text == "a"
    with pytest.raises(ReplicaLost, match="gone"):
        next(deltas)


@pytest.mark.parametrize(
    "cut",
    [
        sse({"choices": [{"text": "a"}]}, done=False),
        b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {"choices": [{"text": "a"}]}\n\n',
    ],
)
def test_a_stream_that_ends_early_is_an_error(wire, cut):
    wire.answers = [cut]
    deltas = Client(wire.url).complete("m", "p", stream=True)
    assert next(deltas).text == "a"
    with pytest.raises(ChannelClosed, match="closed the connection"):
        next(deltas)


# ---- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status_code", "code", "error"),
    [
        (404, "model_not_found", ModelNotFound),
        (401, "invalid_api_key", AuthenticationFailed),
        (400, "unknown_model", UnknownModel),
        (418, "teapot", RemoteError),
    ],
)
def test_the_servers_errors_by_class(wire, status_code, code, error):
    wire.answers = [refusal(status_code, code, "the message")]
    with pytest.raises(error) as caught:
        Client(wire.url).models()
    assert type(caught.value) is error
    assert caught.value.message == "the message"
    assert caught.value.param == "p"
    assert caught.value.body().status == status_code


def test_retry_after(wire):
    wire.answers = [refusal(429, "overloaded", headers="Retry-After: 3\r\n")]
    with pytest.raises(Overloaded) as caught:
        Client(wire.url).chat("m", MESSAGES, stream=True)
    assert caught.value.retry_after == 3.0


@pytest.mark.parametrize(
    "answer",
    [
        http({"detail": "Not Found"}, 404),
        http(b"<html>", 502, "text/html"),
        http(b"", 302, headers="Location: /login\r\n"),
        http(b"<html>hello</html>", kind="text/html"),
        http({"data": 3}),
        b"SSH-2.0-OpenSSH_9\r\n",
    ],
)
def test_something_else_answers(wire, answer):
    wire.answers = [answer]
    with pytest.raises(ProtocolMismatch, match="is it another service"):
        Client(wire.url).models()


def test_an_answer_that_doesnt_stream(wire):
    wire.answers = [http({})]
    with pytest.raises(ProtocolMismatch, match="it doesn't stream"):
        Client(wire.url).chat("m", MESSAGES, stream=True)


def test_a_closed_connection(wire):
    wire.answers = [b""]
    with pytest.raises(ChannelClosed, match="closed the connection"):
        Client(wire.url).models()


def test_a_cut_body(wire):
    wire.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"]
    with pytest.raises(ChannelClosed, match="before its answer was complete"):
        Client(wire.url).models()


def test_silence(wire):
    wire.hold = True
    wire.answers = [b""]
    with pytest.raises(DeadlineExceeded, match="did not answer in time"):
        Client(wire.url, timeout=0.1).models()


def test_nobody_there():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(Unavailable, match="start one with `xi serve`") as caught:
            Client(url).health()
    assert url in caught.value.message


@pytest.mark.parametrize(
    "endpoint", ["", "localhost:9997", "ftp://h", "http://", "http://h:99999", "http://[::1", "http://h?x=1", "http://h#x", "http://hö"]
)
def test_endpoints_that_cant_be(endpoint):
    with pytest.raises(ConfigError, match=r"write it like http://127\.0\.0\.1:9997"):
        Client(endpoint)


@pytest.mark.parametrize("key", ["a\r\nX: 1", "ключ"])
def test_keys_that_cant_be(key):
    with pytest.raises(ConfigError, match="API key"):
        Client("http://h", key)


def test_fields_of_the_spec_that_the_body_carries():
    """A new field of `LaunchSpec` travels too; only `env` has another name on the wire, and `options` are laid beside the fields."""
    spec = LaunchSpec(
        model_name="m", model_uid="u", model_type="other", model_engine="e", model_format="f", size_in_billions="7", quantization="q",
        model_path="/p", replica=2, n_gpu=1, gpu_idx=[0], env={"A": "1"}, options={"o": 1},
    )  # fmt: skip
    body = module._launch_body(spec)
    assert set(body) == {field.name for field in msgspec.structs.fields(LaunchSpec)} - {"env", "options"} | {"envs", "o"}
