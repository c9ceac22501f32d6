"""Who may join a cluster, as what and under which name: tokens and keys."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
import time

import pytest
from joining_town import SOON, Town, refusal

from xi_core.api.control import MemberRole
from xi_core.cluster import joining, membership
from xi_core.cluster import messages as m
from xi_core.cluster.joining import JoinToken
from xi_core.cluster.membership import enter
from xi_core.errors import ChannelClosed, ChannelRefused, ConfigError, Conflict, Forbidden, InvalidRequest, ProtocolMismatch
from xi_core.testing.waiting import until
from xi_core.transport import rpc
from xi_core.transport.security import KeyPair


async def test_a_token_lets_in_once_and_the_key_ever_after(town: Town) -> None:
    first = town.identity()
    found = await town.enter(first, town.token())
    assert found == await town.enter(first), "no token is needed any more"
    worker, _ = town.work("w1", found)
    await asyncio.wait_for(worker.registered.wait(), SOON)
    assert stat.S_IMODE(town.store.path.stat().st_mode) == 0o600


async def test_without_a_token_nobody_is_let_in(town: Town) -> None:
    with pytest.raises(ConfigError, match=r"doesn't know this worker, w1, yet: give a join token.*--token.*XI_JOIN_TOKEN.*--token-file"):
        await town.enter(town.identity())
    error = await refusal(town.link(KeyPair.new()), m.ListModels())
    assert isinstance(error, ChannelRefused)


async def test_a_used_token(town: Town) -> None:
    token = town.token()
    first = town.identity()
    await town.enter(first, token)
    await town.enter(first, token)  # the same command once more: its answer may have been lost, or it stands in a service file
    with pytest.raises(Forbidden, match="this join token has been used already; make another"):
        await town.enter(town.identity("w2"), token)
    assert town.store.entries("worker") == ["w1"]


async def test_an_expired_token(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    token = town.token(ttl=1.0)
    later = time.time() + 2
    monkeypatch.setattr("xi_core.cluster.store.time.time", lambda: later)
    with pytest.raises(Forbidden, match="this join token has expired; make another"):
        await town.enter(town.identity(), token)
    assert town.store.entries("worker") == []


async def test_the_workers_clock_does_not_matter(town: Town) -> None:
    token = joining.read(town.token())
    wrong_clock = JoinToken(token.endpoints, token.server, token.secret, 1.0, token.role)
    await town.enter(town.identity(), wrong_clock.text())


async def test_a_member_with_an_old_token_is_let_in_by_its_key(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    first, old = town.identity(), town.token()
    await town.enter(first, town.token())
    later = time.time() + 1e6
    monkeypatch.setattr("xi_core.cluster.store.time.time", lambda: later)
    await town.enter(first, old)


@pytest.mark.parametrize(("made_for", "used_as"), [("gateway", "worker"), ("worker", "gateway")])
async def test_a_token_for_another_role(town: Town, made_for: MemberRole, used_as: MemberRole) -> None:
    with pytest.raises(Forbidden, match=f"is for a {made_for}, not for a {used_as}; make one with `xi join-token --role {used_as}`"):
        await town.enter(town.identity(role=used_as), town.token(made_for))


async def test_a_member_with_its_old_token_comes_back_where_the_port_for_joining_is_closed_now(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = town.token()
    first = town.identity()
    found = await town.enter(first, token)
    tried = []

    async def closed(*_: object) -> None:
        tried.append(1)
        raise ChannelClosed("nobody answers there")

    monkeypatch.setattr(membership, "_join", closed)
    monkeypatch.setattr(membership, "RETRY_FIRST", 0.01)
    assert await town.enter(first, token) == found
    assert len(tried) == membership.SHOWN, "it may have been struck off, and the token be new"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(enter(town.identity("w2"), town.transport, town.endpoint, token), 0.3)


async def test_a_token_that_nobody_made(town: Town) -> None:
    token = JoinToken([town.endpoint], town.store.keys("supervisor").public, b"guess", 2e9, "worker")
    with pytest.raises(Forbidden, match="not known to the supervisor"):
        await town.enter(town.identity(), token.text())


async def test_a_token_of_another_supervisor_is_said_at_once(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    token = JoinToken([town.endpoint], KeyPair.new().public, b"guess", 2e9, "worker")
    with caplog.at_level(logging.WARNING):
        entering = asyncio.create_task(enter(town.identity(), town.transport, town.endpoint, token.text()))
        await until(lambda: "its key may be another than the one expected" in caplog.text)
        entering.cancel()


async def test_a_supervisor_that_comes_late(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    token, port = town.token(), int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    entering = asyncio.create_task(town.enter(town.identity(), token))
    with caplog.at_level(logging.WARNING):
        await until(lambda: "not joined yet, trying on" in caplog.text)
    town.supervise(port)
    await entering
    assert town.store.entries("worker") == ["w1"]


async def test_a_name_that_is_taken(town: Town) -> None:
    worker, _ = town.work("w1", await town.enter(town.identity(), town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    token = town.token()
    with pytest.raises(Conflict, match="another worker is named w1 and is connected; give this one a name of its own with --name"):
        await town.enter(town.identity(home="other"), token)
    await town.enter(town.identity("w2"), token)  # which is not used up


async def test_a_machine_that_was_set_up_anew_takes_its_old_name(town: Town) -> None:
    first = town.identity()
    await town.enter(first, town.token())
    again = town.identity(home="other")
    await town.enter(again, town.token())
    assert town.store.entries("worker") == ["w1"]
    error = await refusal(town.link(first.keys), m.Leaving("w1"))
    assert isinstance(error, ChannelRefused)


async def test_another_version_of_the_protocol_is_told_at_joining(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "PROTOCOL", rpc.PROTOCOL - 1)
    with pytest.raises(ProtocolMismatch, match="run the same version of xi in every process"):
        await town.enter(town.identity(), town.token())


@pytest.mark.parametrize("ttl", [0.0, -1.0, 0.5, 1e9, float("inf"), float("nan")])
async def test_tokens_live_for_a_reasonable_time(town: Town, ttl: float) -> None:
    with pytest.raises(InvalidRequest) as raised:
        town.token(ttl=ttl)
    assert raised.value.param == "ttl"


async def test_a_bad_endpoint_or_token_ends_at_once(town: Town) -> None:
    for endpoint in ("10.0.0.5", "ipc:///x", "tcp://x"):
        with pytest.raises(ConfigError, match="write tcp://HOST:PORT"):
            await town.enter(town.identity(home=endpoint.replace("/", "")), "", endpoint)
    with pytest.raises(ConfigError, match="can't be read"):
        await town.enter(town.identity("w9"), "xi1.nonsense")


async def test_a_member_finds_its_supervisor_at_another_endpoint_by_its_key(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    first, before = town.identity(), town.endpoint
    await town.enter(first, town.token())
    first.remember("tcp://192.0.2.1:9998", KeyPair.new().public)  # it has been in another cluster as well
    await town.supervisor.close()
    town.supervise()
    assert town.endpoint != before
    with caplog.at_level(logging.INFO):
        found = await town.enter(first)
    assert (found.endpoint, found.security.server) == (town.endpoint, town.store.keys("supervisor").public)
    assert f"the supervisor at {town.endpoint} is the one that was at {before}" in caplog.text
    assert first.known(town.endpoint) == found.security.server
    worker, _ = town.work("w1", found)
    await asyncio.wait_for(worker.registered.wait(), SOON)


async def test_a_member_of_another_cluster_is_told_so(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    first = town.identity()
    first.remember("tcp://192.0.2.1:9998", KeyPair.new().public)
    entering = asyncio.create_task(town.enter(first))
    with caplog.at_level(logging.WARNING):
        await until(lambda: "not joined yet, trying on" in caplog.text)
    entering.cancel()
    assert (
        f"this worker, w1, has joined the supervisor at tcp://192.0.2.1:9998; the one at {town.endpoint} doesn't answer to that one's key"
    ) in caplog.text
    assert "give a join token of it with --token" in caplog.text


async def test_an_old_token_does_no_harm_where_the_supervisor_has_moved(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    first, old = town.identity(), town.token()
    await town.enter(first, town.token())
    await town.supervisor.close()
    town.supervise()
    later = time.time() + 1e6
    monkeypatch.setattr("xi_core.cluster.store.time.time", lambda: later)
    assert (await town.enter(first, old)).endpoint == town.endpoint


async def test_a_supervisor_at_another_endpoint_that_comes_late(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    first = town.identity()
    await town.enter(first, town.token())
    await town.supervisor.close()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    entering = asyncio.create_task(town.enter(first, endpoint=f"tcp://127.0.0.1:{port}"))
    with caplog.at_level(logging.WARNING):
        await until(lambda: "not joined yet, trying on" in caplog.text)
    town.supervise(port)
    await entering
