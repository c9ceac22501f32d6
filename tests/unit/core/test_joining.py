"""Join tokens as text, names, and what a member keeps on disk."""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import stat
from pathlib import Path

import msgspec
import pytest

from xi_core.cluster import addresses, joining, worker
from xi_core.cluster.joining import JoinToken
from xi_core.cluster.membership import Identity, token_of
from xi_core.errors import ConfigError, Unavailable, XiError
from xi_core.transport.security import KeyPair

TOKEN = JoinToken(["tcp://10.0.0.5:9998"], KeyPair.new().public, joining.new_secret(), 2e9, "worker")


def test_a_token_survives_its_text() -> None:
    text = TOKEN.text()
    assert text.startswith("xi1.")
    assert not set(text) & set("=+/ \n")
    assert joining.read(f"  {text}\n") == TOKEN


def test_a_secret_is_not_printed() -> None:
    assert repr(TOKEN.secret) not in repr(TOKEN)


def _packed(value: object) -> str:
    return "xi1." + base64.urlsafe_b64encode(msgspec.msgpack.encode(value)).decode().rstrip("=")


GOOD = msgspec.to_builtins(TOKEN)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "xi1.",
        "xi2." + TOKEN.text()[4:],
        TOKEN.text()[:-3],
        TOKEN.text()[:20] + "!" + TOKEN.text()[21:],
        "xi1." + "A" * 5000,
        _packed({"endpoints": []}),
        _packed([[], *GOOD[1:]]),
        _packed([["http://10.0.0.5:9998"], *GOOD[1:]]),
        _packed([["tcp://10.0.0.5:99999"], *GOOD[1:]]),
        _packed([GOOD[0], "short", *GOOD[2:]]),
        _packed([*GOOD[:4], "king"]),
    ],
)
def test_what_is_no_token_is_told_so(text: str) -> None:
    with pytest.raises(ConfigError, match="join token can't be read") as raised:
        joining.read(text)
    assert raised.value.param == "token"


@pytest.mark.parametrize(
    ("endpoint", "beside"),
    [("tcp://10.0.0.5:9998", "tcp://10.0.0.5:9999"), ("tcp://[::1]:9998", "tcp://[::1]:9999"), ("tcp://a.b-c:1", "tcp://a.b-c:2")],
)
def test_the_join_port_is_the_next(endpoint: str, beside: str) -> None:
    assert joining.join_port(endpoint) == beside


@pytest.mark.parametrize(
    "endpoint", ["", "10.0.0.5:9998", "tcp://10.0.0.5", "tcp://x:0", "tcp://x:65535", "tcp://x y:1", "ipc:///x", "tcp://::1:99"]
)
def test_what_is_no_cluster_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="write tcp://HOST:PORT") as raised:
        joining.join_port(endpoint)
    assert raised.value.param == "endpoint"


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "a b", "-x", "x" * 65, "ä", "x\n"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name") as raised:
        joining.check_name(name)
    assert raised.value.param == "name"


def test_an_identity_is_kept_and_private(tmp_path: Path) -> None:
    first = Identity(tmp_path, "worker", "w1")
    first.remember("tcp://a:1", TOKEN.server)
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.path.parent.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="worker w1 of this XI_HOME runs already"):
        Identity(tmp_path, "worker", "w1")
    other = Identity(tmp_path, "gateway", "w1")
    assert other.keys != first.keys
    first.close()
    again = Identity(tmp_path, "worker", "w1")
    assert (again.keys, again.known("tcp://a:1"), again.known("tcp://b:1")) == (first.keys, TOKEN.server, None)
    again.close()
    other.close()


def test_supervisors_on_the_same_host_come_first(tmp_path: Path) -> None:
    member = Identity(tmp_path, "worker", "w1")
    for endpoint, server in (("tcp://b:1", "far"), ("tcp://a:1", "near"), ("tcp://a:3", "near"), ("tcp://c:1", "far")):
        member.remember(endpoint, server)
    assert list(member.servers("tcp://a:9").items()) == [("near", "tcp://a:1"), ("far", "tcp://b:1")]
    assert list(member.servers("tcp://x:9").items()) == [("far", "tcp://b:1"), ("near", "tcp://a:1")]
    member.close()


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"keys": 1}'])
def test_a_damaged_identity_is_told_of(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "worker-w1.json").write_bytes(content)
    for _ in range(2):  # the lock is free again
        with pytest.raises(ConfigError, match=r"worker-w1\.json can't be read or written"):
            Identity(tmp_path, "worker", "w1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="can't be read or written"):
        Identity(tmp_path, "worker", "w1")


def test_the_token_leaves_the_environment() -> None:
    environment = {"XI_JOIN_TOKEN": " xi1.x ", "HOME": "/"}
    assert token_of(environment) == "xi1.x"
    assert environment == {"HOME": "/"}
    assert token_of(environment) == ""


def test_addresses() -> None:
    assert addresses.endpoint("10.0.0.5", 1) == "tcp://10.0.0.5:1"
    assert addresses.endpoint("::1", 1) == "tcp://[::1]:1"
    assert addresses.split("tcp://[::1]:99") == ("::1", 99)
    assert addresses.resolved("localhost") in ("127.0.0.1", "::1")
    assert addresses.own_address("127.0.0.1") == "127.0.0.1"
    assert addresses.reachable("10.0.0.5") == "10.0.0.5"
    assert addresses.reachable("0.0.0.0") not in ("0.0.0.0", "")
    with pytest.raises(Unavailable, match=r"host 'no\.such\.host\.invalid' leads to no address") as raised:
        addresses.resolved("no.such.host.invalid")
    assert raised.value.param == "host"


def test_two_neighbouring_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PATIENCE", 0.1)
    port = addresses.neighbours("127.0.0.1", 0)
    assert addresses.neighbours("127.0.0.1", port) == port
    held = addresses._bound("127.0.0.1", port + 1)
    try:
        held.listen()
        with pytest.raises(ConfigError, match=rf"ports {port} and {port + 1} of 127.0.0.1 can't be had.*--cluster-port"):
            addresses.neighbours("127.0.0.1", port)
    finally:
        held.close()
    with pytest.raises(ConfigError, match="--cluster-port"):
        addresses.neighbours("127.0.0.1", 65535)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1", "localhost"])
def test_an_address_that_gateways_cannot_dial(host: str) -> None:
    with pytest.raises(ConfigError, match=f"host '{host}'.*--host") as raised:
        addresses.of_member(host, "tcp://192.0.2.5:9998")
    assert raised.value.param == "host"


def test_a_members_address() -> None:
    assert addresses.of_member("", "tcp://127.0.0.1:9998") == "127.0.0.1"
    assert addresses.of_member("127.0.0.1", "tcp://localhost:9998") == "127.0.0.1"
    assert addresses.of_member("192.0.2.6", "tcp://192.0.2.5:9998") == "192.0.2.6"


@pytest.mark.parametrize(
    ("host", "words", "kind"),
    [("203.0.113.9", "is no address of this machine", Unavailable), ("0.0.0.0", "no address that others can dial", ConfigError)],
)
async def test_a_worker_with_a_host_that_is_not_its_own_does_not_join(
    host: str, words: str, kind: type[XiError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XI_HOME", str(tmp_path))
    given = argparse.Namespace(watch_stdin=False, name="w1", supervisor="tcp://127.0.0.1:1", runtime="", host=host)
    with pytest.raises(kind, match=f"host '{host}'.*{words}.*--host") as raised:
        await asyncio.wait_for(worker.run(given), 5.0)
    assert raised.value.param == "host"
    assert not (tmp_path / "cluster").exists(), "its token, if it has one, is not used up"


def test_an_own_address() -> None:
    addresses.check_own("127.0.0.1")
    addresses.check_own("localhost")
    with pytest.raises(Unavailable, match=r"host '192\.0\.2\.6' is no address of this machine.*--host"):
        addresses.check_own("192.0.2.6")
