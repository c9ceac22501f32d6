"""The cluster port and the join port of a real supervisor in this process: who may join, as what, and what the others are told."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from xi_core.api.control import MemberRole
from xi_core.cluster import addresses, admission, joining
from xi_core.cluster import messages as m
from xi_core.cluster.admission import Admission
from xi_core.cluster.joining import Join, JoinToken
from xi_core.cluster.membership import Identity, Membership, enter
from xi_core.cluster.store import Entry, Store
from xi_core.cluster.supervisor import VOCABULARY, Supervisor
from xi_core.cluster.worker import Worker
from xi_core.config import Settings
from xi_core.errors import (
    ChannelRefused,
    ConfigError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProtocolMismatch,
    TransportError,
    XiError,
)
from xi_core.plugins import PluginHub
from xi_core.testing.waiting import until
from xi_core.transport import rpc
from xi_core.transport.rpc import Link, dial
from xi_core.transport.schemes import by_scheme
from xi_core.transport.security import ClientSecurity, KeyPair
from xi_core.wire import PROTOCOL

SOON = 8.0


class Town:
    """A supervisor on TCP with its store, and who wants to join."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = PluginHub.load()
        self.transport = by_scheme(self.hub.transports, "tcp://x:0")
        self.store = Store(folder / "s")
        self.identities: list[Identity] = []
        self.links: list[Link] = []
        self.workers: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
        self.supervise()

    def supervise(self, port: int = 0) -> None:
        settings = Settings(home=str(self.folder / "s"), grace=0.5)
        local = f"ipc://{self.folder}/s.sock"
        self.supervisor = Supervisor(self.hub, settings, local, 0.0, store=self.store, cluster=("127.0.0.1", port))
        assert self.supervisor.admission is not None
        self.admission: Admission = self.supervisor.admission
        self.endpoint = self.admission.endpoint

    def token(self, role: MemberRole = "worker", ttl: float = 60.0) -> str:
        return self.admission.new_token(role, ttl)

    def identity(self, name: str = "w1", role: MemberRole = "worker", home: str = "") -> Identity:
        found = Identity(self.folder / (home or name), role, name)
        self.identities.append(found)
        return found

    async def enter(self, identity: Identity, token: str = "", endpoint: str = "") -> Membership:
        return await asyncio.wait_for(enter(identity, self.transport, endpoint or self.endpoint, token), SOON)

    def link(self, keys: KeyPair, endpoint: str = "", vocabulary: rpc.Vocabulary = VOCABULARY) -> Link:
        server = self.store.keys("supervisor").public
        link = dial(self.transport, endpoint or self.endpoint, vocabulary, {}, lambda: None, ClientSecurity(keys, server))
        self.links.append(link)
        return link

    def work(self, name: str, found: Membership) -> tuple[Worker, asyncio.Task[None]]:
        settings = Settings(home=str(self.folder / name), grace=0.5)
        worker = Worker(self.hub, settings, name=name, runtime=self.folder, supervisor=found.endpoint, security=found.security)
        stop = asyncio.Event()
        serving = asyncio.create_task(worker.serve(stop))
        self.workers.append((stop, serving))
        return worker, serving

    async def close(self) -> None:
        for stop, serving in self.workers:
            stop.set()
            await asyncio.wait([serving])
        for link in self.links:
            await link.close()
        for identity in self.identities:
            identity.close()
        await self.supervisor.close()
        self.store.close()


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    made = Town(tmp_path)
    yield made
    await made.close()


async def refusal(link: Link, command: Any) -> XiError:
    with pytest.raises(XiError) as raised:
        await asyncio.wait_for(link.call(command), SOON)
    return raised.value


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


async def test_nobody_registers_under_anothers_name(town: Town) -> None:
    first, second = town.identity(), town.identity("w2")
    for identity in (first, second):
        await town.enter(identity, town.token())
    for command in (_registration("w2"), m.Leaving("w2")):
        error = await refusal(town.link(first.keys), command)
        assert isinstance(error, Forbidden)
        assert error.message == "this connection's key belongs to worker w1, not to w2"


def _registration(name: str) -> m.Register:
    return m.Register(
        worker=name, incarnation="x", pid=1, keeper_pid=2, version="0", protocol=PROTOCOL, devices=[], engines={}, plugins={"families": "9"}
    )


async def test_workers_and_gateways_may_only_do_their_own(town: Town) -> None:
    worker, gateway = town.identity(), town.identity("g1", "gateway")
    await town.enter(worker, town.token())
    await town.enter(gateway, town.token("gateway"))
    of_worker, of_gateway = town.link(worker.keys), town.link(gateway.keys)
    for command in (m.Subscribe("g1", 1), m.ListModels(), m.NewJoinToken(), m.Terminate("x"), m.GetCluster()):
        error = await refusal(of_worker, command)
        assert isinstance(error, InvalidRequest)
        assert "doesn't answer" in error.message
    error = await refusal(of_gateway, _registration("w1"))
    assert isinstance(error, InvalidRequest)
    answer = await of_gateway.call(m.Subscribe("g1", 1))
    assert answer.keys == town.store.keys("gateways")
    assert (await of_gateway.call(m.GetCluster())).endpoint == town.endpoint
    assert isinstance(await refusal(of_gateway, m.Subscribe("g2", 1)), Forbidden)


async def test_differences_are_told_at_joining(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    first = town.identity()
    await town.enter(first, town.token())
    with caplog.at_level(logging.WARNING):
        answer = await town.link(first.keys).call(_registration("w1"))
    assert any("xi 0" in warning for warning in answer.warnings)
    assert any("lacks the plugin" in warning for warning in answer.warnings)
    assert any("has 9 of the plugin families" in warning for warning in answer.warnings)
    assert "worker w1: " in caplog.text


async def test_the_join_port_takes_nothing_but_joining(town: Town) -> None:
    port = joining.join_port(town.endpoint)
    for command in (_registration("w1"), m.ListModels(), m.NewJoinToken()):
        error = await refusal(town.link(KeyPair.new(), port), command)
        assert isinstance(error, InvalidRequest)
        assert "doesn't understand the command" in error.message
    token = joining.read(town.token())
    for name in ("../../etc", "", "x" * 200):
        link = town.link(KeyPair.new(), port, joining.VOCABULARY)
        error = await refusal(link, Join(secret=token.secret, name=name, role="worker"))
        assert isinstance(error, InvalidRequest)
        assert (error.param, "is no name" in error.message) == ("name", True)


async def test_a_large_message_at_the_join_port_is_not_taken_and_the_next_machine_joins(town: Town) -> None:
    lost = asyncio.Event()
    security = ClientSecurity(KeyPair.new(), town.store.keys("supervisor").public)
    channel = town.transport.connect(joining.join_port(town.endpoint), lambda message: None, lost.set, security)
    channel.send(bytes(joining.LARGEST + 1))
    await asyncio.wait_for(lost.wait(), SOON)
    link = town.link(KeyPair.new(), joining.join_port(town.endpoint), joining.VOCABULARY)
    error = await refusal(link, Join(secret=bytes(joining.LARGEST - 500), name="w1", role="worker"))
    assert isinstance(error, Forbidden), "what may be a question is answered"
    await town.enter(town.identity(), town.token())
    assert town.store.entries("worker") == ["w1"]


async def test_members_say_more_than_strangers_may(town: Town) -> None:
    identity = town.identity()
    await town.enter(identity, town.token())
    command = _registration("w1")
    command.plugins = {"families": "9" * joining.LARGEST}
    assert (await town.link(identity.keys).call(command)).warnings


async def test_of_too_many_at_the_join_port_the_oldest_make_room(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MOST_STRANGERS", 3)
    port = joining.join_port(town.endpoint)
    links = [town.link(KeyPair.new(), port, joining.VOCABULARY) for _ in range(3)]
    await until(lambda: len(town.admission._strangers) == 3)
    await town.enter(town.identity(), town.token())
    assert town.store.entries("worker") == ["w1"]
    await until(lambda: any(link.closed.is_set() for link in links))
    (ended,) = (link for link in links if link.closed.is_set())
    assert isinstance(await refusal(ended, Join(secret=b"x", name="w2", role="worker")), Overloaded)
    for link in links:
        await link.close()
    await until(lambda: not town.admission._strangers, what="nobody to be counted who has gone")


async def test_one_who_is_not_let_in_for_the_crowd_tries_on(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    meet, refused = town.admission._desk._accept, []

    def crowded(link: Link) -> rpc.Calls:
        if refused:
            return meet(link)
        refused.append(link)
        raise Overloaded("too many join at once")

    monkeypatch.setattr(town.admission._desk, "_accept", crowded)
    await town.enter(town.identity(), town.token())
    assert len(refused) == 1


async def test_a_stranger_asks_one_question_at_a_time(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, check = threading.Event(), town.store.check_token

    def held(*question: Any) -> None:
        assert slow.wait(SOON)
        check(*question)

    monkeypatch.setattr(town.store, "check_token", held)
    link = town.link(KeyPair.new(), joining.join_port(town.endpoint), joining.VOCABULARY)
    question = Join(secret=b"guess", name="w1", role="worker")
    first = asyncio.create_task(refusal(link, question))
    await asyncio.sleep(0)
    assert isinstance(await refusal(link, question), Overloaded)
    slow.set()
    assert isinstance(await first, Forbidden)
    assert isinstance(await refusal(link, question), Forbidden), "and then the next"


async def test_another_version_of_the_protocol_is_told_at_joining(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "PROTOCOL", rpc.PROTOCOL - 1)
    with pytest.raises(ProtocolMismatch, match="run the same version of xi in every process"):
        await town.enter(town.identity(), town.token())


async def test_a_worker_whose_key_was_forgotten_ends_and_says_so(town: Town) -> None:
    identity = town.identity()
    found = Membership(town.endpoint, ClientSecurity(identity.keys, town.store.keys("supervisor").public))
    _, serving = town.work("w1", found)
    with pytest.raises(ChannelRefused, match="the key of this process is not known there"):
        await asyncio.wait_for(serving, SOON)
    town.workers.clear()


async def test_a_worker_that_was_in_stays_when_the_supervisor_forgets_it(town: Town) -> None:
    worker, serving = town.work("w1", await town.enter(town.identity(), town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    members, town.store._allowed = town.store._allowed, {}
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    town.supervise(port)
    await until(lambda: not worker.registered.is_set())
    town.store._allowed = members
    await asyncio.wait_for(worker.registered.wait(), SOON)
    assert not serving.done()


async def test_a_supervisor_whose_port_is_held_a_moment_longer_waits_for_it(town: Town) -> None:
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    held = await until_bound(port + 1)
    threading.Timer(0.3, held.close).start()
    town.supervise(port)
    assert town.endpoint.endswith(f":{port}")


async def test_a_supervisor_that_cannot_start_leaves_no_port_behind(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PATIENCE", 0.1)
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    with await until_bound(port + 1), pytest.raises(ConfigError, match=r"--cluster-port"):
        town.supervise(port)
    (town.folder / "taken").mkdir()
    monkeypatch.setattr(addresses, "PATIENCE", 5.0)
    for _ in range(2):  # the local socket can't be had: the cluster's ports, taken first, are given back
        with pytest.raises(TransportError):
            Supervisor(
                town.hub,
                Settings(home=str(town.folder / "s")),
                f"ipc://{town.folder}/taken",
                0.0,
                store=town.store,
                cluster=("127.0.0.1", port),
            )
    town.supervise(port)


async def until_bound(port: int) -> socket.socket:
    """The port, as soon as ZeroMQ's own thread has let go of it, held by somebody else."""
    for _ in range(100):
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("127.0.0.1", port))
            held.listen()
            return held
        except OSError:
            held.close()
            await asyncio.sleep(0.02)
    raise AssertionError(f"port {port} is not free")


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


async def test_the_epoch_grows_with_each_start(town: Town) -> None:
    first = town.store.next_epoch()
    assert town.store.next_epoch() == first + 1


# ---- striking off the list -----------------------------------------------------------------------


async def ask(town: Town, command: Any) -> Any:
    """What the head's own gateway asks, over the local socket."""
    link = dial(by_scheme(town.hub.transports, "ipc://x"), town.supervisor.endpoint, VOCABULARY, {}, lambda: None)
    town.links.append(link)
    return await asyncio.wait_for(link.call(command), SOON)


async def members(town: Town) -> list[tuple[str, str, bool]]:
    return [(one.role, one.name, one.linked) for one in (await ask(town, m.ListMembers())).members]


async def test_who_may_join_is_listed_here_or_not(town: Town) -> None:
    began = time.time()
    worker, _ = town.work("w1", await town.enter(town.identity(), town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    await town.enter(town.identity("w0"), town.token())
    await town.enter(town.identity("g1", "gateway"), town.token("gateway"))
    assert await members(town) == [("worker", "w0", False), ("worker", "w1", True), ("gateway", "g1", False)]
    assert all(began - 1 <= one.joined <= time.time() + 1 for one in (await ask(town, m.ListMembers())).members)


async def test_a_removed_worker_says_so_ends_and_is_not_let_in_by_its_key_or_its_token(town: Town) -> None:
    identity, token = town.identity(), town.token()
    found = await town.enter(identity, token)
    worker, serving = town.work("w1", found)
    await asyncio.wait_for(worker.registered.wait(), SOON)
    assert (await ask(town, m.RemoveMember(name="w1"))) == m.MemberRemoved(role="worker")
    with pytest.raises(Forbidden, match=r"worker w1 was removed from the cluster .*with a new join token it may come again"):
        await asyncio.wait_for(serving, SOON)
    assert await members(town) == []
    assert (await ask(town, m.ListWorkers())).workers == [], "and it is not one that is away"
    await town.enter(identity, token)  # the old token in a service file; it lets nobody in
    _, again = town.work("w1", found)
    with pytest.raises(Forbidden, match="was removed from the cluster"):
        await asyncio.wait_for(again, SOON)
    town.workers.clear()


async def test_a_worker_that_is_removed_while_it_is_away_is_told_when_it_comes_back(town: Town) -> None:
    worker, serving = town.work("w1", await town.enter(town.identity(), town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    town.supervise(port)
    await town.admission.strike(Entry("worker", "w1"))
    with pytest.raises(Forbidden, match="was removed from the cluster"):
        await asyncio.wait_for(serving, SOON)
    town.workers.clear()


async def test_a_removed_worker_comes_again_with_a_new_token(town: Town) -> None:
    identity = town.identity()
    await town.enter(identity, town.token())
    await ask(town, m.RemoveMember(name="w1", role="worker"))
    worker, _ = town.work("w1", await town.enter(identity, town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    assert await members(town) == [("worker", "w1", True)]


async def test_whom_to_remove_must_be_clear(town: Town) -> None:
    await town.enter(town.identity("both"), town.token())
    await town.enter(town.identity("both", "gateway", home="g"), town.token("gateway"))
    with pytest.raises(NotFound, match="no member 'w9' is on the list; on it: worker both, gateway both"):
        await ask(town, m.RemoveMember(name="w9"))
    with pytest.raises(InvalidRequest, match="a worker and a gateway named both; say which with --role"):
        await ask(town, m.RemoveMember(name="both"))
    assert (await ask(town, m.RemoveMember(name="both", role="gateway"))).role == "gateway"
    assert await members(town) == [("worker", "both", False)]


async def test_gateways_are_told_of_new_keys_and_keep_those_that_replicas_still_want(town: Town) -> None:
    told: list[m.GatewayKeys] = []

    async def hear(notice: m.GatewayKeys) -> None:
        told.append(notice)

    transport = by_scheme(town.hub.transports, "ipc://x")
    link = dial(transport, town.supervisor.endpoint, VOCABULARY, {m.GatewayKeys: hear}, lambda: None)
    town.links.append(link)
    first = (await link.call(m.Subscribe("g", 1))).keys
    await until(lambda: bool(town.supervisor._executor.gateways))
    assert (await link.call(m.RotateGatewayKeys())) == m.GatewayKeysRotated([])
    await until(lambda: bool(told))
    assert (told[0].keys != first, told[0].older) == (True, [first])
    assert town.supervisor._executor.gateways_key == told[0].keys.public
    await link.call(m.RotateGatewayKeys())
    await until(lambda: len(told) == 2)
    assert told[1].older == [told[0].keys], "nothing wants to see the first any more"
    again = await link.call(m.Subscribe("g", 1))
    assert (again.keys, again.older) == (told[1].keys, told[1].older)
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    town.supervise(port)
    assert (town.admission.gateway_keys, town.admission.older_keys) == (again.keys, again.older), "over restarts"


async def test_a_supervisor_by_itself_has_no_list(tmp_path: Path) -> None:
    alone = Supervisor(PluginHub.load(), Settings(home=str(tmp_path)), f"ipc://{tmp_path}/s.sock", 0.0)
    link = dial(by_scheme(PluginHub.load().transports, "ipc://x"), alone.endpoint, VOCABULARY, {}, lambda: None)
    for command in (m.ListMembers(), m.RemoveMember(name="x"), m.RotateGatewayKeys()):
        with pytest.raises(InvalidRequest, match="takes no other machines"):
            await link.call(command)
    await link.close()
    await alone.close()
