"""The wire below the client: what breaks, refuses, keeps silent or isn't xi, and that leaving closes the connection."""

import socket

import pytest

from xi_core import endpoint
from xi_core.client import Client
from xi_core.errors import (
    AuthenticationFailed,
    ChannelClosed,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    ProtocolMismatch,
    RemoteError,
    Unavailable,
    UnknownModel,
)

MESSAGES = [{"role": "user", "content": "Hi"}]


# ---- breaking off ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "drop", "raise"])
def test_leaving_a_stream_closes_the_connection(wire, how):
    wire.hold = True
    wire.answers = [wire.sse({"choices": [{"text": "a"}]}, done=False)]
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

    monkeypatch.setattr(endpoint.HTTPConnection, "getresponse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Client(wire.url).chat("m", MESSAGES)
    assert wire.left.wait(10)


@pytest.mark.parametrize(
    "cut",
    [
        lambda wire: wire.sse({"choices": [{"text": "a"}]}, done=False),
        lambda _: b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {"choices": [{"text": "a"}]}\n\n',
    ],
)
def test_a_stream_that_ends_early_is_an_error(wire, cut):
    wire.answers = [cut(wire)]
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
    wire.answers = [wire.refusal(status_code, code, "the message")]
    with pytest.raises(error) as caught:
        Client(wire.url).models()
    assert type(caught.value) is error
    assert caught.value.message == "the message"
    assert caught.value.param == "p"
    assert caught.value.body().status == status_code


def test_a_refusal_that_comes_while_the_body_is_sent(wire):
    """The server closes what it doesn't read to the end; its reason counts, not the broken pipe."""
    wire.early = True
    wire.answers = [wire.refusal(413, "payload_too_large", "the request body is over the limit")]
    with pytest.raises(PayloadTooLarge, match="over the limit"):
        Client(wire.url).chat("m", [{"role": "user", "content": "x" * (32 << 20)}])


def test_a_connection_that_breaks_while_the_body_is_sent(wire):
    wire.early = True
    wire.answers = [b""]
    with pytest.raises(ChannelClosed, match="closed the connection"):
        Client(wire.url).chat("m", [{"role": "user", "content": "x" * (32 << 20)}])


def test_retry_after(wire):
    wire.answers = [wire.refusal(429, "overloaded", headers="Retry-After: 3\r\n")]
    with pytest.raises(Overloaded) as caught:
        Client(wire.url).chat("m", MESSAGES, stream=True)
    assert caught.value.retry_after == 3.0


@pytest.mark.parametrize(
    "answer",
    [
        lambda wire: wire.http({"detail": "Not Found"}, 404),
        lambda wire: wire.http(b"<html>", 500, "text/html"),
        lambda wire: wire.http(b"", 302, headers="Location: /login\r\n"),
        lambda wire: wire.http(b"<html>hello</html>", kind="text/html"),
        lambda wire: wire.http({"data": 3}),
        lambda _: b"SSH-2.0-OpenSSH_9\r\n",
    ],
)
def test_something_else_answers(wire, answer):
    wire.answers = [answer(wire)]
    with pytest.raises(ProtocolMismatch, match="is it another service"):
        Client(wire.url).models()


@pytest.mark.parametrize("code", [502, 503])
def test_a_proxy_before_an_xi_that_is_away_is_as_no_server(wire, code):
    wire.answers = [wire.http(b"<html>", code, "text/html")]
    with pytest.raises(Unavailable, match=f"{wire.url} answers {code} and not as xi does: a proxy before an xi that is away") as caught:
        Client(wire.url).models()
    assert type(caught.value) is Unavailable
    assert caught.value.retry_after is None


def test_a_proxy_says_when_to_come_back(wire):
    wire.answers = [wire.http(b"<html>", 503, "text/html", headers="Retry-After: 7\r\n")]
    with pytest.raises(Unavailable) as caught:
        Client(wire.url).models()
    assert caught.value.retry_after == 7.0


def test_a_proxy_that_waits_no_longer_is_no_server_that_is_away(wire):
    """A batch goes on after it: the other requests may be shorter."""
    wire.answers = [wire.http(b"<html>", 504, "text/html")]
    with pytest.raises(DeadlineExceeded, match="a proxy before xi, it seems, waited no longer"):
        Client(wire.url).models()


def test_an_answer_that_doesnt_stream(wire):
    wire.answers = [wire.http({})]
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


# ---- addresses and keys ---------------------------------------------------------------------------


def test_a_path_before_the_api(wire):
    wire.answers = [wire.http({"data": []})]
    Client(wire.url + "/behind/a/proxy").models()
    assert wire.requests[0][0] == "GET /behind/a/proxy/v1/models HTTP/1.1"


@pytest.mark.parametrize(
    "url", ["", "localhost:9997", "ftp://h", "http://", "http://h:99999", "http://[::1", "http://h?x=1", "http://h#x", "http://hö"]
)
def test_endpoints_that_cant_be(url):
    with pytest.raises(ConfigError, match=r"write it like http://127\.0\.0\.1:9997"):
        Client(url)


@pytest.mark.parametrize("key", ["a\r\nX: 1", "ключ"])
def test_keys_that_cant_be(key):
    with pytest.raises(ConfigError, match="API key"):
        Client("http://h", key)


def test_text_that_no_json_can_carry_is_refused_before_anything_is_sent(wire):
    for stream in (False, True):
        with pytest.raises(InvalidRequest, match="the text is not UTF-8"):
            Client(wire.url).complete("m", "caf\udce9", stream=stream)
    assert not wire.requests


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("send", "field", "value"),
    [
        (lambda client: client.chat("m", MESSAGES, temperature=NAN), "temperature", "nan"),
        (lambda client: client.chat("m", MESSAGES, stream=True, top_p=INFINITY), "top_p", "inf"),
        (lambda client: client.complete("m", "p", logit_bias={"5": -INFINITY}), "logit_bias.5", "-inf"),
        (lambda client: client.complete("m", "p", extra=(None, {"a": [0.5, NAN]})), "extra[1].a[1]", "nan"),
        (lambda client: client.launch("m", gpu_memory_utilization=NAN), "gpu_memory_utilization", "nan"),
        (lambda client: client.launch("m", rope={"factor": [1, INFINITY]}), "rope.factor[1]", "inf"),
        (lambda client: client.drain("w1", NAN), "seconds", "nan"),
    ],
)
def test_numbers_that_no_json_can_carry_are_refused_by_name(wire, send, field, value):
    """As JSON they would be null, which says nothing of the field: the server would take its default."""
    with pytest.raises(InvalidRequest) as refused:
        send(Client(wire.url))
    assert refused.value.param == field
    assert refused.value.message == f"{field}: {value} is no finite number, and JSON has no other; give one, or leave the field out"
    assert not wire.requests


def test_null_and_texts_that_say_so_are_sent(wire):
    wire.answers = [wire.refusal(404, "model_not_found")]
    for fields in ({"seed": None}, {"stop": ["null", "nan"]}, {"temperature": 0.5, "user": "null"}):
        with pytest.raises(ModelNotFound):
            Client(wire.url).complete("m", "p", **fields)
        assert wire.body() == {"model": "m", "prompt": "p", "stream": False, **fields}
