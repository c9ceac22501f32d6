"""`POST /v1/cluster/join-tokens`: who may ask, and for what."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.cluster.messages import Cluster, JoinTokenMade, NewJoinToken


@pytest.fixture
def asked(stage: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the supervisor is asked."""
    commands: list[Any] = []

    async def call(command: Any, timeout: float = 30.0) -> Any:
        commands.append(command)
        return JoinTokenMade("xi1.t", "xi worker …") if isinstance(command, NewJoinToken) else Cluster([], "tcp://10.0.0.5:9998")

    monkeypatch.setattr(stage.gateway.supervisor, "call", call)
    return commands


async def test_a_token_for_a_worker_is_the_default(stage: Any, asked: list[Any]) -> None:
    call = await stage.control("POST", "/v1/cluster/join-tokens")
    assert (call.status, call.json) == (200, {"token": "xi1.t", "command": "xi worker …"})
    assert asked == [NewJoinToken(role="worker", ttl=3600.0)]


async def test_role_and_time_are_passed_on(stage: Any, asked: list[Any]) -> None:
    assert (await stage.control("POST", "/v1/cluster/join-tokens", {"role": "gateway", "ttl": 60})).status == 200
    assert asked == [NewJoinToken(role="gateway", ttl=60.0)]


@pytest.mark.parametrize(
    ("body", "param"),
    [({"role": "king"}, "role"), ({"ttl": 0}, "ttl"), ({"ttl": 1e9}, "ttl"), ({"ttl": "1h"}, "ttl"), ({"name": "x"}, "name")],
)
async def test_bad_fields_are_named(stage: Any, asked: list[Any], body: Any, param: str) -> None:
    call = await stage.control("POST", "/v1/cluster/join-tokens", body)
    assert (call.status, call.error["param"]) == (400, param)
    assert asked == []


async def test_without_a_key_only_this_machine_may_ask(stage: Any, asked: list[Any], kit: Any) -> None:
    async def from_afar(scope: Any, receive: Any, send: Any) -> None:
        await stage.app({**scope, "client": ("10.0.0.9", 1)}, receive, send)

    call = await kit.Call(path="/v1/cluster/join-tokens", method="POST", body=b"{}").run(from_afar)
    assert call.status == 403
    assert "set XI_API_KEY" in call.error["message"]
    assert asked == []


async def test_info_tells_where_to_join(stage: Any, asked: list[Any]) -> None:
    assert (await stage.control("GET", "/v1/cluster/info")).json["cluster_endpoint"] == "tcp://10.0.0.5:9998"
