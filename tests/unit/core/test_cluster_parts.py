"""Small parts of the cluster: the routing table, the rules for environments, logs, runtime folders, the replica's environment."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from xi_core.cluster import host, logs, runtime
from xi_core.cluster.devices import Device, DeviceProbe, DeviceProbeInfo
from xi_core.cluster.envrules import allowed_prefixes, check_env
from xi_core.cluster.launcher import listen, say, siblings_of, url_of
from xi_core.cluster.messages import ModelRoute
from xi_core.cluster.process import environment
from xi_core.cluster.runtime import RuntimeFolder
from xi_core.cluster.siblings import Sibling
from xi_core.cluster.table import RoutingTable
from xi_core.config import Settings
from xi_core.errors import ConfigError, InvalidRequest
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan


def route(uid: str, state: str = "READY") -> ModelRoute:
    return ModelRoute(uid=uid, state=state)


def test_table_publishes_what_changed() -> None:
    table = RoutingTable("e")
    assert (table.snapshot().version, table.snapshot().models) == (0, [])
    first = table.change({"a": route("a"), "b": route("b")})
    assert first is not None
    assert (first.version, first.full, [r.uid for r in first.models]) == (1, False, ["a", "b"])
    assert table.change({"a": route("a"), "x": None}) is None
    second = table.change({"a": None, "b": route("b", "FAILED"), "c": route("c")})
    assert second is not None
    assert (second.version, [r.uid for r in second.models], second.removed) == (2, ["b", "c"], ["a"])
    whole = table.snapshot()
    assert (whole.epoch, whole.version, whole.full, [r.uid for r in whole.models]) == ("e", 2, True, ["b", "c"])


def test_table_keeps_its_own_copy() -> None:
    table, mine = RoutingTable("e"), route("a", "LOADING")
    table.change({"a": mine})
    mine.state = "READY"
    assert table.change({"a": mine}) is not None


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "ld_library_path", "PYTHONPATH", "PythonHome", "PATH", "path", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "A=B", "", "1A", "A B",
     "A\n", "Ä", "A-B", "XI_REPLICA_ID", "CUDA_VISIBLE_DEVICES", "DYLD_INSERT_LIBRARIES"],
)  # fmt: skip
def test_env_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is refused") as caught:
        check_env({"GOOD": "1", name: "x"})
    assert caught.value.param == "env"


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "a\rb"])
def test_env_values_that_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="line break or NUL"):
        check_env({"GOOD": value})


def test_env_that_is_fine() -> None:
    check_env({"OMP_NUM_THREADS": "2", "VLLM_USE_V1": "1", "_x": "", "MY_PATH": "/a b:/c"})


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "VLLM_USE_V1", "HF_HUB_OFFLINE", "MINE_LEVEL"])
def test_env_off_loopback_takes_what_engines_know_and_the_operator_adds(name: str) -> None:
    check_env({name: "1"}, allowed_prefixes(Settings(env_allow="MINE_, OURS_")))


@pytest.mark.parametrize("name", ["MY_PATH", "_x", "vllm_use_v1", "MINE", "GIT_SSH_COMMAND"])
def test_env_off_loopback_refuses_other_names(name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"'{name}' is refused: other machines.*VLLM_.*MINE_.*XI_ENV_ALLOW") as caught:
        check_env({"OMP_NUM_THREADS": "1", name: "x"}, allowed_prefixes(Settings(env_allow="MINE_")))
    assert caught.value.param == "env"


@pytest.mark.parametrize("name", ["VLLM_LOGGING_CONFIG_PATH", "CUDA_INJECTION64_PATH", "NCCL_NET_PLUGIN", "HF_ENDPOINT"])
def test_env_off_loopback_names_no_files_unless_the_operator_says_so(name: str) -> None:
    """A model's repository may bring the file: vLLM calls what a logging set-up names, the others load a library."""
    value = {"HF_ENDPOINT": "https://elsewhere"}.get(name, "/models/m/config.json")
    with pytest.raises(InvalidRequest, match=rf"'{name}' is refused: other machines.*XI_ENV_ALLOW={name}"):
        check_env({name: value}, allowed_prefixes(Settings(env_allow="MINE_")))
    check_env({name: value, "MINE_FILE": "/a"}, allowed_prefixes(Settings(env_allow=f"MINE_,{name}")))
    check_env({name: value})


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "XI_HOME", "HF_PROXY"])
def test_env_that_the_operator_cannot_allow(name: str) -> None:
    with pytest.raises(InvalidRequest, match="could change which code runs"):
        check_env({name: "x"}, allowed_prefixes(Settings(env_allow="LD_,XI_,CUDA_")))


@pytest.mark.parametrize("text", ["A-B", "*", "1A", "A B_"])
def test_a_wrong_list_of_prefixes_names_the_setting(text: str) -> None:
    with pytest.raises(ConfigError, match="XI_ENV_ALLOW") as caught:
        allowed_prefixes(Settings(env_allow=f"MINE_,{text}"))
    assert caught.value.param == "XI_ENV_ALLOW"


@pytest.mark.parametrize(("host", "exposed"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_supervisor_is_told_whether_other_machines_reach_the_server(tmp_path: Path, host: str, exposed: bool) -> None:
    runtime = RuntimeFolder()
    try:
        with listen(host, 0) as listening:
            supervisor = siblings_of(listening, runtime, None)[0]
    finally:
        runtime.remove()
    assert ("--exposed" in supervisor._command) is exposed


def test_log_is_rotated_once_and_its_tail_read(tmp_path: Path) -> None:
    for n in range(3):
        with logs.open_log(tmp_path, "m-0") as file:
            file.write(f"life {n}\n\n".encode() + b"".join(b"line %d\n" % i for i in range(100)))
    path = logs.log_file(tmp_path, "m-0")
    assert sorted(p.name for p in path.parent.iterdir()) == ["m-0.log", "m-0.log.1"]
    assert path.read_text().startswith("life 2")
    assert path.with_name("m-0.log.1").read_text().startswith("life 1")
    assert logs.tail(path).splitlines() == [f"line {n}" for n in range(85, 100)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_tail_of_long_and_missing_logs(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert logs.tail(path) == ""
    path.write_bytes(b"\xff" * 100_000 + b"\nthe end\n")
    assert len(logs.tail(path)) <= logs.TAIL
    assert logs.tail(path).endswith("the end")


def test_runtime_folders_of_the_dead_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(runtime, "LONGEST", 1000)
    alive = runtime.RuntimeFolder()
    dead = tmp_path / "xi-123-abc"
    dead.mkdir()
    (dead / runtime.LOCK).write_text("")
    (dead / "x.sock").write_text("")
    other = tmp_path / "xi-notes-x"
    other.mkdir()
    unlocked = tmp_path / "xi-5-mine"
    unlocked.mkdir()
    try:
        assert alive.path.stat().st_mode & 0o777 == 0o700
        runtime.sweep()
        assert alive.path.is_dir()
        assert other.is_dir()
        assert unlocked.is_dir(), "a folder without a lock is nobody's that we know"
        assert not dead.exists()
    finally:
        alive.remove()
    assert not alive.path.exists()


def test_a_temporary_directory_with_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    short = Path(tempfile.mkdtemp(prefix="xi-test-", dir="/tmp"))
    long.mkdir()
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(long))
    monkeypatch.setattr(runtime, "FALLBACK", str(short))
    try:
        folder = runtime.RuntimeFolder()
        assert folder.path.parent == short
        assert len(os.fsencode(folder.path)) <= runtime.LONGEST
        folder.remove()
        monkeypatch.setattr(runtime, "FALLBACK", "/nowhere")
        with pytest.raises(ConfigError, match="is too long a path for sockets; set TMPDIR"):
            runtime.RuntimeFolder()
    finally:
        short.rmdir()


def test_no_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.tempfile, "tempdir", None)
    monkeypatch.setattr(runtime.tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    runtime.sweep()
    with pytest.raises(ConfigError, match="set TMPDIR to a directory that can be written"):
        runtime.RuntimeFolder()


def test_a_folder_that_another_launchers_sweep_took_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(runtime, "LONGEST", 1000)
    lock, made = runtime.fcntl.flock, []

    def swept(descriptor: int, how: int) -> None:
        made.append(descriptor)
        if len(made) == 1:
            shutil.rmtree(next(tmp_path.iterdir()))
        lock(descriptor, how)

    monkeypatch.setattr(runtime.fcntl, "flock", swept)
    folder = runtime.RuntimeFolder()
    assert (folder.path / runtime.LOCK).exists()
    assert len(made) == 2
    folder.remove()


def test_nobody_reads_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Broken())
    say("hello")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_descriptors_that_were_closed_are_held(tmp_path: Path) -> None:
    """Else the listening socket would be descriptor 0, 1 or 2, and a child's log would be written to it."""
    found = tmp_path / "found"
    code = (
        "import os, sys; from xi_core.cluster.launcher import hold_standard_streams, say; hold_standard_streams(); say('nobody hears')\n"
        "what = [(os.readlink(f'/proc/self/fd/{n}'), os.get_inheritable(n)) for n in range(3)]\n"
        "open(sys.argv[1], 'w').write(repr(what))"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, str(found)]
    assert subprocess.run(command, timeout=20, check=False).returncode == 0
    assert found.read_text() == repr([("/dev/null", True)] * 3)


class Talking(Sibling):
    """A sibling whose stdout is a pipe of the test."""

    def __init__(self, fd: int) -> None:
        super().__init__("worker", [], secret=False)
        self.fd = fd

    @property
    def stdout(self) -> int:
        return self.fd


def test_what_a_plugin_prints_is_no_word_for_the_launcher() -> None:
    reading, writing = os.pipe()
    sibling = Talking(reading)
    try:
        for line in (b"5\n", b"[1]\n", b"null\n", b"hello\n", b"[" * 2000 + b"\n", b'{"role": "gateway"}\n'):
            os.write(writing, line)
            assert sibling.hear()
        assert not sibling.ready
        os.write(writing, b'{"role": "worker", "pid": 1}\n')
        sibling.hear()
        assert sibling.ready
    finally:
        os.close(writing)
        assert not sibling.hear()
        os.close(reading)


def plan(*devices: str) -> LaunchPlan:
    return LaunchPlan(
        uid="m", replica_id="m-0", incarnation="e-1", engine=EngineRef(name="x", path="x:X"), artifact=Artifact(format="x", path=""),
        endpoint="", devices=list(devices),
    )  # fmt: skip


def test_a_replica_gets_no_secrets_its_own_devices_and_its_tag() -> None:
    found = environment({"XI_API_KEY": "k", "PATH": "/bin"}, plan("cuda:2", "cuda:3"), {"A": "1"})
    assert "XI_API_KEY" not in found
    assert (found["PATH"], found["A"], found["XI_REPLICA_ID"], found["CUDA_VISIBLE_DEVICES"]) == ("/bin", "1", "m-0@e-1", "2,3")
    assert environment({"CUDA_VISIBLE_DEVICES": "7"}, plan(), {})["CUDA_VISIBLE_DEVICES"] == ""


def test_a_replica_on_amd_sees_its_device_whatever_the_workers_own_setting_is() -> None:
    """HIP numbers anew what `ROCR_VISIBLE_DEVICES` leaves: with both, number 1 of one device would be none."""
    found = environment({"ROCR_VISIBLE_DEVICES": "1,3"}, plan("rocm:3"), {})
    assert (found["HIP_VISIBLE_DEVICES"], found.get("ROCR_VISIBLE_DEVICES")) == ("3", None)


class TwoDevices(DeviceProbe):
    def devices(self) -> list[Device]:
        return [Device(id="cuda:0", kind="cuda"), Device(id="cuda:1", kind="cuda"), Device(id="npu:0", kind="npu")]


@pytest.mark.parametrize(
    ("setting", "left"),
    [(None, ["cuda:0", "cuda:1", "npu:0"]), ("1", ["cuda:1", "npu:0"]), ("", ["npu:0"]), ("GPU-5f", ["cuda:0", "cuda:1", "npu:0"])],
)
def test_a_worker_offers_the_devices_that_it_may_see(setting: str | None, left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "import_path", lambda path: {"good": TwoDevices, "bad": int}[path])
    probes = [DeviceProbeInfo(name="b", probe="bad"), DeviceProbeInfo(name="g", probe="good")]
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert [d.id for d in host.find_devices(probes, environ)] == left


def test_a_port_in_use_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is in use.*--port"):
            listen("127.0.0.1", port)


def test_a_host_that_is_none() -> None:
    with pytest.raises(ConfigError, match="--host"):
        listen("198.51.100.77", 0)


def test_listen_and_its_url() -> None:
    with listen("127.0.0.1", 0) as found:
        assert url_of(found) == f"http://127.0.0.1:{found.getsockname()[1]}"
        assert not os.get_inheritable(found.fileno())
