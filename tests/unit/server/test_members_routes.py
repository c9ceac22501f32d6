"""`/v1/cluster/members` and `/v1/cluster/gateway-keys`: what is asked of the supervisor, and who may ask."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.api.members import MemberStatus
from xi_core.cluster import messages as m
from xi_core.errors import Conflict


@pytest.fixture
def told(stage: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the supervisor is asked."""
    commands: list[Any] = []

    async def call(command: Any, timeout: float = 30.0) -> Any:
        commands.append(command)
        match command:
            case m.ListMembers():
                return m.Members([MemberStatus(name="w1", role="worker", joined=1.5, linked=True)])
            case m.RotateGatewayKeys():
                return m.GatewayKeysRotated(["a-0"])
            case m.RemoveMember(force=False):
                raise Conflict("worker w1 runs a-0; empty it first", param="name")
        return m.MemberRemoved(role="worker", replicas=["a-0"])

    monkeypatch.setattr(stage.gateway.supervisor, "call", call)
    return commands


async def test_the_list(stage: Any, told: list[Any]) -> None:
    call = await stage.control("GET", "/v1/cluster/members")
    assert (call.status, call.json) == (200, [{"name": "w1", "role": "worker", "joined": 1.5, "linked": True}])


async def test_a_worker_that_runs_replicas_is_a_conflict_unless_forced(stage: Any, told: list[Any]) -> None:
    call = await stage.control("DELETE", "/v1/cluster/members/w1")
    assert (call.status, call.error["code"], call.error["param"]) == (409, "conflict", "name")
    call = await stage.control("DELETE", "/v1/cluster/members/w1", query=b"force=true&role=worker")
    assert (call.status, call.json) == (200, {"name": "w1", "role": "worker", "replicas": ["a-0"]})
    assert told == [m.RemoveMember(name="w1"), m.RemoveMember(name="w1", role="worker", force=True)]


@pytest.mark.parametrize("query", [b"role=king", b"force=perhaps"])
async def test_bad_parameters_are_refused(stage: Any, told: list[Any], query: bytes) -> None:
    assert (await stage.control("DELETE", "/v1/cluster/members/w1", query=query)).status == 400
    assert told == []


async def test_other_keys(stage: Any, told: list[Any]) -> None:
    call = await stage.control("POST", "/v1/cluster/gateway-keys")
    assert (call.status, call.json) == (200, {"replicas": ["a-0"]})


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/v1/cluster/members/w1"), ("POST", "/v1/cluster/gateway-keys")])
async def test_strangers_may_not(stage: Any, told: list[Any], kit: Any, method: str, path: str) -> None:
    async def from_elsewhere(scope: Any, receive: Any, send: Any) -> None:
        await stage.app({**scope, "client": ("10.0.0.9", 1)}, receive, send)

    call = await kit.Call(path=path, method=method).run(from_elsewhere)
    assert (call.status, call.error["code"]) == (403, "forbidden")
    assert told == []
