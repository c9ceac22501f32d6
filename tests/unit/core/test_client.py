"""The client's API against a scripted socket: what it sends, what it makes of answers, and how it waits."""

import msgspec
import pytest

from xi_core import client as module
from xi_core.api.control import LaunchSpec, ReplicaConfig, launches
from xi_core.client import Client
from xi_core.errors import ConfigError, LaunchCancelled, LaunchFailed, ProtocolMismatch, ReplicaLost, Unavailable


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)


MESSAGES = [{"role": "user", "content": "Hi"}]


# ---- launching -------------------------------------------------------------------------------------


def test_launch_sends_xinference_clients_names_and_waits(wire):
    wire.answers = [wire.http({"model_uid": "m"}), wire.status("PENDING"), wire.status("LOADING"), wire.status("READY", engine="llama.cpp")]
    states = []
    ready = Client(wire.url).launch(
        "m", model_engine="llama.cpp", env={"A": "1"}, n_gpu=None, context_length=512, on_progress=lambda s: states.append(s.state)
    )
    assert ready.engine == "llama.cpp"
    assert states == ["PENDING", "LOADING", "READY"]
    assert wire.requests[0][0] == "POST /v1/models?wait_ready=false HTTP/1.1"
    assert wire.body(0) == {"model_name": "m", "model_engine": "llama.cpp", "envs": {"A": "1"}, "n_gpu": None, "context_length": 512}


def test_launch_of_a_spec_without_waiting(wire):
    wire.answers = [wire.http({"model_uid": "m"}), wire.status("PENDING")]
    assert Client(wire.url).launch(LaunchSpec(model_name="m", options={"a-b": 1}), wait=False).state == "PENDING"
    assert wire.body(0) == {"model_name": "m", "a_b": 1}
    assert len(wire.requests) == 2


def test_who_has_begun_a_launch(wire):
    wire.answers = [wire.http({"model_uid": "m"}), wire.http({"model_uid": "m", "existed": True})]
    spec = LaunchSpec(model_name="m")
    assert [Client(wire.url).begin(spec).existed for _ in range(2)] == [False, True]


def test_an_option_cant_be_a_field_of_the_launch(wire):
    with pytest.raises(ConfigError, match="'replica' is a field of the launch"):
        Client(wire.url).start(LaunchSpec(model_name="m", options={"replica": 2}))
    assert not wire.requests


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda wire: wire.status("FAILED", error="out of memory"), LaunchFailed, "out of memory"),
        (
            lambda wire: wire.status("FAILED", replicas=[{"replica_id": "m-0", "state": "FAILED", "error": "damaged"}]),
            LaunchFailed,
            "damaged",
        ),
        (lambda wire: wire.status("FAILED"), LaunchFailed, "model 'm' failed"),
        (lambda wire: wire.status("CANCELLED"), LaunchCancelled, "terminated before it was ready"),
        (lambda wire: wire.status("STOPPING"), LaunchCancelled, "terminated before it was ready"),
        (lambda wire: wire.refusal(404, "model_not_found"), LaunchCancelled, "terminated before it was ready"),
    ],
)
def test_ends_of_a_launch(wire, answer, error, message):
    wire.answers = [wire.http({"model_uid": "m"}), answer(wire)]
    with pytest.raises(error, match=message):
        Client(wire.url).launch("m")


def test_a_launch_survives_a_restart_of_the_gateway(wire):
    wire.answers = [wire.http({"model_uid": "m"}), wire.refusal(503, "unavailable"), b"", wire.status("READY")]
    assert Client(wire.url).launch("m").state == "READY"


def test_a_server_that_stays_away_is_given_up(wire, monkeypatch):
    monkeypatch.setattr(module, "POLL_PATIENCE", 0.05)
    wire.answers = [wire.http({"model_uid": "m"}), wire.refusal(503, "unavailable", "starting")]
    with pytest.raises(Unavailable, match="starting"):
        Client(wire.url).launch("m")


def test_it_waits_until_the_gateway_serves_what_is_ready(wire):
    wire.answers = [
        wire.http({"model_uid": "m"}), wire.status("READY"), wire.status("READY", endpoints=[]),
        wire.status("READY", endpoints=["/v1/completions"]), wire.http({"ready": False}, 503),
        wire.status("READY", endpoints=["/v1/completions"]), wire.http({"ready": True}),
    ]  # fmt: skip
    assert Client(wire.url).launch("m").state == "READY"
    assert [line.split()[1] for line, _, _ in wire.requests[2:]] == ["/v1/models/m", "/v1/models/m", "/ready", "/v1/models/m", "/ready"]


AWAY = {"replicas": [{"replica_id": "m-0", "state": "PENDING", "stage": "worker w1 is away"}, {"replica_id": "m-1", "state": "READY"}]}


def test_what_is_stuck_while_a_part_of_it_serves_is_not_waited_for(wire):
    wire.answers = [
        wire.http({"model_uid": "m"}), wire.status("LOADING", ready_replicas=1), wire.status("PENDING", stuck=True, ready_replicas=1, **AWAY),
        wire.status("PENDING", endpoints=["/v1/completions"]), wire.http({"ready": True}),
    ]  # fmt: skip
    status = Client(wire.url).launch("m")
    assert (status.state, status.hindrance()) == ("PENDING", "m-0: worker w1 is away")


def test_what_is_stuck_and_does_not_serve_has_a_moment(wire, monkeypatch):
    """A server that has just started may not know its workers yet."""
    stuck = wire.status("PENDING", stuck=True, replicas=AWAY["replicas"][:1])
    wire.answers = [stuck, stuck, wire.status("LOADING"), wire.status("READY")]
    assert Client(wire.url).wait_ready("m").state == "READY"
    monkeypatch.setattr(launches, "STUCK", 0.05)
    wire.answers = [stuck]
    with pytest.raises(Unavailable, match=r"^none of the replicas of model 'm' serves: worker w1 is away$"):
        Client(wire.url).wait_ready("m")


# ---- other control calls ---------------------------------------------------------------------------


def test_control_calls(wire):
    client = Client(wire.url + "/v1/", api_key="secret")
    wire.answers = [wire.http({"object": "list", "data": [{"id": "m", "created": 1, "unknown": True}]})]
    assert [model.id for model in client.models()] == ["m"]
    wire.answers = [wire.http([{"name": "e", "available": True, "reason": "1.0", "formats": [], "plugin": "p"}])]
    assert client.engines("a b")[0].name == "e"
    wire.answers = [wire.http({"version": "1", "processes": [{"role": "gateway", "pid": 7}]})]
    assert client.cluster().processes[0].pid == 7
    wire.answers = [wire.http(b"")]
    client.terminate("a/b")
    assert client.health() is True
    wire.answers = [wire.http({}, 503)]
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


# ---- generation ------------------------------------------------------------------------------------


def test_chat_and_complete(wire):
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    message = {"role": "assistant", "content": "Hello"}
    wire.answers = [
        wire.http(
            {"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        )
    ]
    assert Client(wire.url).chat("m", MESSAGES, temperature=0).choices[0].message.content == "Hello"
    assert wire.body() == {"model": "m", "messages": MESSAGES, "stream": False, "temperature": 0}
    wire.answers = [
        wire.http(
            {"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "text": "Hello", "finish_reason": "length"}], "usage": usage}
        )
    ]
    assert Client(wire.url).complete("m", [1, 2], max_tokens=1).choices[0].text == "Hello"
    assert wire.body() == {"model": "m", "prompt": [1, 2], "stream": False, "max_tokens": 1}


def test_streams(wire):
    call = {"index": 0, "function": {"name": "f", "arguments": ""}}
    wire.answers = [
        wire.sse(
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


def test_an_error_in_the_stream_is_raised_by_its_class(wire):
    wire.answers = [
        wire.sse(
            {"choices": [{"text": "a"}]}, {"error": {"message": "gone", "type": "server_error", "param": None, "code": "replica_lost"}}
        )
    ]
    deltas = Client(wire.url).complete("m", "p", stream=True)
    assert next(deltas).text == "a"
    with pytest.raises(ReplicaLost, match="gone"):
        next(deltas)


def test_fields_of_the_spec_that_the_body_carries():
    """A new field of `LaunchSpec` travels too; only `env` has another name on the wire, and `options` are laid beside the fields."""
    spec = LaunchSpec(
        model_name="m", model_uid="u", model_type="other", model_engine="e", model_format="f", size_in_billions="7", quantization="q",
        model_path="/p", replica=2, n_gpu=1, gpu_idx=[0], enable_thinking=True, tool_parser="t", reasoning_parser="r",
        lora_modules={"a": "/a"}, env={"A": "1"}, options={"o": 1}, n_worker=2, gpu_pool=4, worker_ip="w", scheduler="s",
        replica_config=[ReplicaConfig(worker="w")], source="s", trust_remote_code=True,
        enable_virtual_env=True, virtual_env_packages=["p"], virtual_env_find_links=["/d"],
    )  # fmt: skip
    body = module._launch_body(spec)
    assert set(body) == {field.name for field in msgspec.structs.fields(LaunchSpec)} - {"env", "options"} | {"envs", "o"}


LOG = {"replica_id": "m-0", "rank": 0, "worker": "w1", "text": "one\n", "start": 0, "next": 4}


def test_logs(wire):
    client = Client(wire.url)
    wire.answers = [wire.http(LOG), wire.http(LOG), wire.http({**LOG, "previous": True})]
    assert client.log("m").text == "one\n"
    assert client.log("m", replica=1, rank=2, start=7).next == 4
    assert client.log("m", previous=True).previous
    assert [line.split()[1] for line, _, _ in wire.requests] == [
        "/v1/models/m/logs?rank=0&start=-65536",
        "/v1/models/m/logs?rank=2&start=7&replica=1",
        "/v1/models/m/logs?rank=0&start=-65536&previous=true",
    ]


def test_an_older_worker_that_shows_the_present_log_instead_is_found_out(wire):
    wire.answers = [wire.http(LOG)]
    with pytest.raises(ProtocolMismatch, match="an older xi, which shows no earlier logs"):
        Client(wire.url).log("m", previous=True)
