"""Supervisor and worker over real sockets, with a stand-in for the replica's process that does as its options say."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from xi_core.api.control import LaunchSpec, ModelStatus
from xi_core.cluster import messages as m
from xi_core.cluster.store import Store
from xi_core.cluster.supervisor import VOCABULARY, Supervisor
from xi_core.cluster.worker import Worker
from xi_core.config import Settings
from xi_core.engine.info import EngineInfo, EngineOptions, Support
from xi_core.errors import ModelNotFound
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Link, dial
from xi_core.transport.schemes import by_scheme
from xi_core.wire.manifest import of_fields

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
    if mode == "crash" or os.path.exists(os.path.join(os.path.dirname(__file__), plan.replica_id + ".crash")):
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

    def supervise(self, settle: float = 0.0, store: Store | None = None) -> Supervisor:
        self.supervisor = Supervisor(self.hub, self.settings, self.endpoint, settle, store=store)
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


async def until_ended(stage: Stage, state: str, seconds: float = 20.0) -> ModelStatus:
    end = time.monotonic() + seconds
    while (found := await stage.status()).state != state:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.02)
    return found


async def until_known(stage: Stage, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ModelNotFound):
            await stage.status()
            return
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


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


def environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def life_of(pid: int) -> str:
    """The tag of a replica's process, which all that it starts has too."""
    return next(line.decode().partition("=")[2] for line in environ(pid).split(b"\0") if line.startswith(b"XI_REPLICA_ID="))


def tagged(life: str) -> list[int]:
    """Processes of this life alone: tests that run at the same time launch models of the same name."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"XI_REPLICA_ID={life}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found
