"""Supervisor and worker over real sockets, with a stand-in for the replica's process that does as its options say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from xi_core.api.control import LaunchSpec, ModelStatus
from xi_core.cluster import messages as m
from xi_core.cluster.store import Store
from xi_core.cluster.supervisor import VOCABULARY, Supervisor
from xi_core.cluster.worker import Worker
from xi_core.config import Settings
from xi_core.engine.info import EngineInfo, EngineOptions, Support
from xi_core.errors import (
    ArtifactError,
    Conflict,
    EngineNotInstalled,
    InvalidRequest,
    LaunchCancelled,
    LaunchError,
    ModelNotFound,
    NoPlacement,
    Unavailable,
    UnknownEngine,
    UnknownModel,
    UnknownOption,
    XiError,
)
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef
from xi_core.plugins import PluginHub, PluginRecord
from xi_core.testing.waiting import until
from xi_core.transport.rpc import Link, dial
from xi_core.transport.schemes import by_scheme
from xi_core.wire.manifest import of_fields

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STAND_IN = textwrap.dedent(
    """
    import json, os, signal, struct, subprocess, sys, threading, time
    import msgspec
    from xi_core.wire.plan import LaunchPlan

    size = struct.unpack(">I", sys.stdin.buffer.read(4))[0]
    plan = msgspec.msgpack.decode(sys.stdin.buffer.read(size), type=LaunchPlan)
    mode, fd = plan.options.get("mode", "ready"), int(sys.argv[sys.argv.index("--report-fd") + 1])

    def life_line():
        while sys.stdin.buffer.read(1):
            pass
        os._exit(3)

    threading.Thread(target=life_line, daemon=True).start()
    tell = lambda **what: os.write(fd, json.dumps(what).encode() + b"\\n")
    print("hello from", plan.replica_id, flush=True)
    if mode == "children":
        child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
        for session in (False, True):
            subprocess.Popen([sys.executable, "-c", child], start_new_session=session, stdout=subprocess.PIPE).stdout.readline()
    if mode == "crash":
        print("Traceback: out of luck", flush=True)
        os._exit(7)
    tell(type="stage", stage="loading", progress=0.5)
    if mode == "fail":
        tell(type="failed", error={"message": "the weights are not to my taste", "code": "artifact_error", "status": 400})
        os._exit(1)
    if mode == "slow":
        time.sleep(60)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(type="ready", endpoint=plan.endpoint, context_length=64, slots=2, manifest={"endpoints": {"/v1/completions": {}}})
    while mode == "silent":
        time.sleep(1)
    while True:
        tell(type="health", healthy=mode != "hang", steps=1, running=1, waiting=0, reason="no step" if mode == "hang" else "")
        time.sleep(0.1)
    """
)


class StubOptions(EngineOptions):
    mode: str = "ready"
    size: int = 1


def _yes(*_: object) -> Support:
    return Support(ok=True, reason="1.0")


class StubPlugin:
    """An engine that is there, one that isn't, and a family of their format."""

    def __init__(self, weights: Path) -> None:
        self.weights = weights

    @hookimpl
    def xi_engines(self) -> list[EngineInfo]:
        stub = EngineInfo(
            name="stub",
            engine="nowhere:Stub",
            formats=("toy",),
            manifest=of_fields(completions={}),
            probe=_yes,
            match=_yes,
            options=StubOptions,
        )
        absent = EngineInfo(
            name="absent",
            engine="nowhere:Absent",
            formats=("toy",),
            manifest=of_fields(),
            probe=lambda host: Support(ok=False, reason="absentlib is not installed"),
            match=_yes,  # which looks at the model only: it is not chosen all the same
            requirements=("absentlib>=2",),
            priority=9,
        )
        return [stub, absent]

    @hookimpl
    def xi_model_families(self) -> list[ModelFamily]:
        def spec(name: str, path: Path) -> ModelSpec:
            return ModelSpec(name=name, format="toy", source=SourceRef(source="local", id=str(path)), size_in_billions="0.5")

        return [
            ModelFamily(name="toy", description="", specs=[spec("toy", self.weights)]),
            ModelFamily(name="lost", description="", specs=[spec("lost", self.weights / "gone")]),
        ]


class Stage:
    """A supervisor and a worker in this process, on sockets of their own, and a client's link."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = Settings(home=str(folder / "home"), grace=1.0, plugins="", **settings)
        self.endpoint = f"ipc://{folder}/s.sock"
        weights = folder / "weights"
        weights.mkdir()
        (weights / "w").touch()
        script = folder / "replica.py"
        script.write_text(STAND_IN)
        self.command = (sys.executable, str(script))
        self.hub = PluginHub.load()
        self.hub.register(StubPlugin(weights), "stub")
        self.stack = contextlib.AsyncExitStack()
        self.notices: list[m.TableUpdate] = []

    def supervise(self, settle: float = 0.0) -> Supervisor:
        self.supervisor = Supervisor(self.hub, self.settings, self.endpoint, settle)
        return self.supervisor

    async def work(self) -> Worker:
        self.worker = Worker(self.hub, self.settings, name="w1", runtime=self.folder, supervisor=self.endpoint, command=self.command)
        stop = asyncio.Event()
        serving = asyncio.create_task(self.worker.serve(stop))

        async def end() -> None:
            stop.set()
            await serving

        self.end_worker = end
        self.stack.push_async_callback(end)
        await asyncio.wait_for(self.worker.registered.wait(), 10)
        return self.worker

    def client(self) -> Link:
        async def update(notice: m.TableUpdate) -> None:
            self.notices.append(notice)

        link = dial(by_scheme(self.hub.transports, self.endpoint), self.endpoint, VOCABULARY, {m.TableUpdate: update}, lambda: None)
        self.stack.push_async_callback(link.close)
        self.link = link
        return link

    async def launch(self, name: str = "toy", **fields: Any) -> str:
        uid: str = (await self.link.call(m.Launch(LaunchSpec(model_name=name, **fields)))).uid
        return uid

    async def status(self, uid: str = "toy") -> ModelStatus:
        found: ModelStatus = await self.link.call(m.GetModel(uid))
        return found

    async def until(self, state: str, uid: str = "toy", seconds: float = 15.0) -> ModelStatus:
        end = time.monotonic() + seconds
        while (found := await self.status(uid)).state != state:
            assert time.monotonic() < end, found
            assert found.state not in ("FAILED", "CANCELLED"), found
            await asyncio.sleep(0.02)
        return found


@pytest.fixture
async def stage(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, **getattr(request, "param", {}))
    made.supervise()
    try:
        await made.work()
        made.client()
        yield made
    finally:
        await made.stack.aclose()
        await made.supervisor.close()
    assert not of_runtime(tmp_path), "processes are left"


@pytest.fixture
async def workerless(tmp_path: Path) -> AsyncIterator[Stage]:
    """A supervisor and a client; no worker ever joins."""
    made = Stage(tmp_path)
    made.supervise()
    made.client()
    yield made
    await made.stack.aclose()
    await made.supervisor.close()


def of_runtime(folder: Path) -> list[int]:
    """Live processes whose plan or script is of this test."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def _environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def life_of(pid: int) -> str:
    """The tag of a replica's process, which all that it starts has too."""
    return next(line.decode().partition("=")[2] for line in _environ(pid).split(b"\0") if line.startswith(b"XI_REPLICA_ID="))


def tagged(life: str) -> list[int]:
    """Processes of this life alone: tests that run at the same time launch models of the same name."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"XI_REPLICA_ID={life}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


async def test_launch_publish_and_terminate(stage: Stage) -> None:
    await stage.link.call(m.Subscribe("g", 1))
    assert await stage.launch(replica=2) == "toy"
    found = await stage.until("READY")
    assert [r.replica_id for r in found.replicas] == ["toy-0", "toy-1"]
    assert (found.engine, found.context_length, found.replicas[0].worker) == ("stub", 64, "w1")
    await until(lambda: bool(stage.notices) and len(stage.notices[-1].models[0].replicas) == 2)
    assert stage.notices[0].full
    assert [n.version for n in stage.notices] == list(range(stage.notices[0].version, stage.notices[-1].version + 1))
    route = stage.notices[-1].models[0]
    assert route.endpoints == ["/v1/completions"]
    assert route.replicas[0].endpoint.startswith(f"ipc://{stage.folder}/")
    cluster = await stage.link.call(m.GetCluster())
    roles = [p.role for p in cluster.processes]
    assert sorted(roles) == ["gateway", "keeper", "replica", "replica", "supervisor", "worker"]
    pids = [r.pid for r in found.replicas]
    await stage.link.call(m.Terminate("toy"))
    assert not any(alive(pid) for pid in pids if pid)
    with pytest.raises(ModelNotFound, match="launched: none"):
        await stage.status()
    await until(lambda: stage.notices[-1].removed == ["toy"])
    assert (stage.folder / "home" / "logs" / "toy-0.log").read_text().startswith("hello from toy-0")


async def test_the_same_launch_and_another(stage: Stage) -> None:
    await asyncio.gather(stage.launch(), stage.launch(model_uid="toy", size_in_billions=None))
    await stage.until("READY")
    pid = (await stage.status()).replicas[0].pid
    await stage.launch()
    assert (await stage.status()).replicas[0].pid == pid
    with pytest.raises(Conflict, match="another spec"):
        await stage.launch(replica=2)


async def test_an_unknown_engine_is_told_also_under_a_name_that_is_taken(stage: Stage) -> None:
    """By a launch that is under way, and by one that runs: the other spec is not what is wrong."""
    first = asyncio.create_task(stage.launch())
    await asyncio.sleep(0)  # it is asked for
    with pytest.raises(UnknownEngine, match=r"unknown engine 'stubb'; did you mean 'stub'\? known: .*absent"):
        await stage.launch(model_engine="stubb")
    await first
    await stage.until("READY")
    with pytest.raises(UnknownEngine, match="unknown engine 'stubb'"):
        await stage.launch(model_engine="stubb")


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"name": "tox"}, UnknownModel, "did you mean 'toy'"),
        ({"model_engine": "nope"}, UnknownEngine, "unknown engine 'nope'; known:.*stub"),
        (
            {"model_engine": "absent"},
            EngineNotInstalled,
            "absentlib is not installed; install it and start xi again: pip install 'absentlib>=2'",
        ),
        ({"model_engine": "llama.cpp"}, LaunchError, "can't load toy as toy: it loads ggufv2; engines that can: stub, absent"),
        ({"model_engine": "stub", "options": {"colour": 1}}, UnknownOption, "no option 'colour'; its options: mode, size"),
        ({"options": {"size": "x"}}, UnknownOption, "option 'size'"),
        ({"env": {"LD_PRELOAD": "x"}}, InvalidRequest, "LD_PRELOAD"),
        ({"name": "~nobody-of-this-name/m"}, ArtifactError, "no such home directory as that of '~nobody-of-this-name/m'"),
        ({"model_path": "~nobody-of-this-name/m"}, ArtifactError, "no such home directory"),
        ({"name": "/" + "x" * 3000}, ArtifactError, "x can't be read: File name too long"),
        ({"name": "x" * 3000}, UnknownModel, "unknown model"),
        ({"n_gpu": -1}, InvalidRequest, "n_gpu"),
        ({"gpu_idx": [0]}, NoPlacement, r"no worker has 1 device\(s\) to give.*w1: has no devices"),
        ({"gpu_idx": [0], "n_gpu": None}, InvalidRequest, "gpu_idx names devices, but n_gpu asks for none"),
        ({"model_type": "image"}, InvalidRequest, "model type 'image'"),
        ({"model_format": "mlx"}, UnknownModel, "has no model_format 'mlx' here; it has: toy"),
        ({"name": "/nowhere/m.gguf"}, ArtifactError, "no file or directory at /nowhere/m.gguf"),
    ],
)
async def test_what_cannot_be_launched_is_told_to_the_caller(
    stage: Stage, fields: dict[str, Any], error: type[XiError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await stage.launch(**fields)
    assert (await stage.link.call(m.ListModels())).models == []


async def test_engines(stage: Stage) -> None:
    engines = {e.name: e for e in (await stage.link.call(m.ListEngines(LaunchSpec(model_name="toy")))).engines}
    assert (engines["stub"].available, engines["stub"].model, engines["stub"].plugin) == (True, "yes", "stub")
    assert (engines["absent"].available, engines["absent"].model) == (False, "yes")
    assert "pip install" in engines["absent"].reason


async def test_a_replica_that_says_why_it_fails_ends_the_launch_at_once(stage: Stage) -> None:
    await stage.launch(options={"mode": "fail"})
    await until_ended(stage, "FAILED")
    found = await stage.status()
    assert found.error == "the weights are not to my taste"
    await stage.link.call(m.Terminate("toy"))
    assert (await stage.link.call(m.ListModels())).models == []


async def until_ended(stage: Stage, state: str, seconds: float = 20.0) -> ModelStatus:
    end = time.monotonic() + seconds
    while (found := await stage.status()).state != state:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.02)
    return found


async def test_weights_that_are_missing(stage: Stage) -> None:
    await stage.launch("lost", model_uid="toy")
    found = await until_ended(stage, "FAILED")
    assert "gone" in (found.error or "")


async def test_a_crash_loop_ends_failed_with_the_last_lines_and_can_be_launched_again(stage: Stage) -> None:
    await stage.launch(options={"mode": "crash"})
    found = await until_ended(stage, "FAILED")
    assert "ended 4 times within 60 s" in (found.error or "")
    assert "ended with status 7" in (found.error or "")
    assert "out of luck" in (found.error or "")
    await stage.launch()
    await stage.until("READY")


async def test_a_killed_replica_is_started_again(stage: Stage) -> None:
    await stage.launch(env={"MINE": "1"})
    first = (await stage.until("READY")).replicas[0].pid
    assert first is not None
    assert b"MINE=1" in _environ(first)
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + 10
    while True:
        found = await stage.status()
        if found.state == "READY" and found.replicas[0].pid != first:
            break
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    assert found.replicas[0].restarts == 1


async def test_its_children_die_with_a_replica(stage: Stage) -> None:
    await stage.launch(options={"mode": "children"})
    first = (await stage.until("READY")).replicas[0].pid
    assert first is not None
    life = life_of(first)
    family = tagged(life)
    assert len(family) == 3
    os.kill(first, signal.SIGKILL)
    await until(lambda: not any(alive(pid) for pid in family), 5.0)
    await stage.link.call(m.Terminate("toy"))
    assert not tagged(life)


async def test_a_stubborn_replica_is_killed_after_the_grace(stage: Stage) -> None:
    await stage.launch(options={"mode": "stubborn"})
    pid = (await stage.until("READY")).replicas[0].pid
    began = time.monotonic()
    await stage.link.call(m.Terminate("toy"))
    assert 0.9 < time.monotonic() - began < 4
    assert pid is not None
    assert not alive(pid)


async def test_cancel_while_it_loads(stage: Stage) -> None:
    await stage.launch(options={"mode": "slow"})
    pid = (await stage.until("LOADING")).replicas[0].pid
    assert pid is not None
    life = life_of(pid)
    await stage.link.call(m.Terminate("toy"))
    found = await stage.status()
    assert (found.state, found.error) == ("CANCELLED", "terminated before it was ready")
    assert not tagged(life)


@pytest.mark.parametrize("stage", [{"hang_timeout": 0.5}], indirect=True)
@pytest.mark.parametrize(("mode", "why"), [("hang", "made no progress and was killed: no step"), ("silent", "was silent for 0.5 s")])
async def test_a_hung_replica_is_killed_and_started_again(stage: Stage, mode: str, why: str) -> None:
    await stage.launch(options={"mode": mode})
    first = (await stage.until("READY")).replicas[0].pid
    end = time.monotonic() + 10
    while True:
        replica = (await stage.status()).replicas[0]
        if replica.error:
            break
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    assert why in (replica.error or "")
    assert first is not None
    assert not alive(first)


@pytest.mark.parametrize("stage", [{"launch_timeout": 1.0}], indirect=True)
async def test_a_launch_that_is_not_ready_in_time_fails_with_its_stage(stage: Stage) -> None:
    await stage.launch(options={"mode": "slow"})
    pid = (await stage.until("LOADING")).replicas[0].pid
    assert pid is not None
    life = life_of(pid)
    found = await until_ended(stage, "FAILED", 5)
    assert "not ready within its time" in (found.error or "") or "was not ready" in (found.error or "")
    await until(lambda: not tagged(life), 5.0)


async def test_a_new_supervisor_adopts_the_same_process(stage: Stage) -> None:
    await stage.launch(replica=2)
    before = [r.pid for r in (await stage.until("READY")).replicas]
    await stage.supervisor.close()
    stage.supervise(settle=3.0)
    stage.client()
    await until_known(stage)
    found = await stage.until("READY", seconds=5)
    assert [r.pid for r in found.replicas] == before
    assert await stage.launch(replica=2) == "toy"
    assert [r.pid for r in (await stage.status()).replicas] == before


async def test_what_is_ended_or_scaled_just_after_a_restart_is_what_runs(stage: Stage) -> None:
    """The new supervisor hears of it from the worker, a moment later."""
    await stage.launch(replica=2)
    await stage.launch(model_uid="other")
    before = [r.pid for r in (await stage.until("READY")).replicas]
    (other,) = [r.pid for r in (await stage.until("READY", "other")).replicas]
    await stage.supervisor.close()
    stage.supervise(settle=2.0)
    stage.client()
    await asyncio.gather(stage.link.call(m.Scale("toy", 1)), stage.link.call(m.Terminate("other")))
    assert other is not None
    assert not alive(other)
    await until(lambda: len([pid for pid in before if pid and alive(pid)]) == 1, 5.0)
    end = time.monotonic() + 5.0
    while len((await stage.status()).replicas) > 1:  # the word that a process is gone comes after that
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    (kept,) = (await stage.until("READY")).replicas
    assert kept.pid in before


async def until_known(stage: Stage, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ModelNotFound):
            await stage.status()
            return
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_a_replica_that_died_while_the_supervisor_was_away_is_started_again(stage: Stage) -> None:
    await stage.launch()
    (first,) = [r.pid for r in (await stage.until("READY")).replicas]
    await stage.supervisor.close()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: not stage.worker._running, 5.0)
    stage.supervise(settle=0.5)
    stage.client()
    await until_known(stage)
    found = await stage.until("READY")
    assert found.replicas[0].pid != first


async def test_a_killed_keeper_is_replaced(stage: Stage) -> None:
    async def keeper() -> int:
        cluster = await stage.link.call(m.GetCluster())
        return next(p.pid for p in cluster.processes if p.role == "keeper")

    first = await keeper()
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + 5
    while await keeper() == first:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    assert alive(await keeper())


async def test_no_worker_yet(workerless: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xi_core.cluster.executor.JOIN_TIMEOUT", 0.2)
    with pytest.raises(Unavailable, match="no worker is connected"):
        await workerless.launch()


async def test_terminate_while_it_is_resolved(workerless: Stage) -> None:
    launching = asyncio.create_task(workerless.launch())
    await until(lambda: "toy" in workerless.supervisor._resolving)
    await workerless.link.call(m.Terminate("toy"))
    with pytest.raises(LaunchCancelled):
        await launching


async def test_terminate_while_another_spec_is_resolved(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends what runs too, not only what would have been refused."""
    await stage.launch()
    pid = (await stage.until("READY")).replicas[0].pid
    monkeypatch.setattr(stage.supervisor._executor.resolver, "resolve", lambda spec: asyncio.Event().wait())
    doomed = asyncio.create_task(stage.launch(replica=2))
    await until(lambda: "toy" in stage.supervisor._resolving)
    await stage.link.call(m.Terminate("toy"))
    with pytest.raises(LaunchCancelled):
        await doomed
    assert (await stage.link.call(m.ListModels())).models == []
    assert pid is not None
    assert not alive(pid)


async def test_terminate_while_it_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is slow: the launch is accepted, and whoever asked for it waits on."""
    made = Stage(tmp_path)
    store = Store(tmp_path / "home")
    monkeypatch.setattr(store, "keep_launches", lambda *what: time.sleep(0.5))
    made.supervisor = Supervisor(made.hub, made.settings, made.endpoint, 0.0, store=store)
    try:
        await made.work()
        made.client()
        launching = asyncio.create_task(made.launch())
        await until(lambda: made.supervisor._lifecycle.find("toy") is not None)
        assert not launching.done()
        await made.link.call(m.Terminate("toy"))
        with contextlib.suppress(XiError):
            await launching
        assert [found.state for found in (await made.link.call(m.ListModels())).models] == ["CANCELLED"]
        assert not tagged("toy-0@"), "nothing runs on"
    finally:
        await made.stack.aclose()
        await made.supervisor.close()
        store.close()


async def test_what_runs_on_an_engine_that_the_supervisor_has_lost_fails_with_its_name_once_it_dies(stage: Stage) -> None:
    await stage.launch()
    (pid,) = [r.pid for r in (await stage.until("READY")).replicas]
    await stage.supervisor.close()
    stage.hub = PluginHub.load()
    stage.supervise(settle=0.2)
    stage.client()
    await until_known(stage)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    found = await until_ended(stage, "FAILED")
    assert "unknown engine 'stub'" in (found.error or "")


async def test_a_worker_that_is_stopped_starts_nothing_again(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Its replicas end one by one; those that end first are not started again while the others drain."""
    await stage.launch("toy", model_uid="quick")
    await stage.launch("toy", model_uid="stubborn", options={"mode": "stubborn"})
    await stage.until("READY", "quick")
    lives = [(await stage.until("READY", uid)).replicas[0].pid for uid in ("quick", "stubborn")]
    with caplog.at_level("INFO"):
        await stage.end_worker()
        await until(lambda: "worker w1 has left" in caplog.text, 5.0)  # the supervisor hears of it a moment later
    assert not any(alive(pid) for pid in lives if pid)
    assert stage.worker._tasks == set()
    for uid in ("quick", "stubborn"):
        found = await stage.status(uid)
        assert (found.state, found.replicas[0].restarts, found.replicas[0].error) == ("PENDING", 0, None)
        assert "no worker is connected" in found.replicas[0].stage
    assert not [record for record in caplog.records if record.levelname != "INFO"], caplog.text
    await stage.work()
    await stage.until("READY", "quick")


async def test_a_plugin_that_is_quarantined_is_told_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = Stage(tmp_path)
    made.hub.records.append(PluginRecord("mine", "mine:plugin", "mine", "1.0", state="quarantined", error="ImportError: no mylib"))
    await made.supervise().close()
    assert "xi runs without the plugin mine: ImportError: no mylib; `xi plugins -v` says more" in caplog.text


async def test_a_log_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    made = Stage(tmp_path)
    (tmp_path / "home").touch()
    made.supervise()
    try:
        await made.work()
        made.client()
        await made.launch()
        found = await until_ended(made, "FAILED")
        assert found.error == f"the log file {tmp_path}/home/logs/toy-0.log can't be written: Not a directory; XI_HOME says where logs go"
    finally:
        await made.stack.aclose()
        await made.supervisor.close()


async def test_the_plan_that_a_replica_gets(stage: Stage) -> None:
    await stage.launch(options={"size": "3"})
    await stage.until("READY")
    plan = stage.worker._running["toy-0"].plan
    assert plan.options == {"size": 3}
    assert plan.artifact.path == str(stage.folder / "weights")
    assert plan.engine.path == "nowhere:Stub"
    assert json.dumps(plan.limits.grace) == "1.0"
