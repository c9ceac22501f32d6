"""`LocalCluster`: a supervisor, a gateway and workers as real processes on this machine, and nothing of them left afterwards.

with LocalCluster(tmp_path, plugins=["xi_core.testing.sharded_plugin"]) as cluster:
    cluster.client.launch("in-parts", n_worker=2, n_gpu="none")
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from xi_core.api.control import ModelStatus, RankStatus, ReplicaStatus
from xi_core.client import Client
from xi_core.errors import DeadlineExceeded, XiError
from xi_core.testing.server import free_port
from xi_core.testing.waiting import wait_until

WORKERS = ("w1", "w2")
PORTS = 400
"""Each cluster has so many ports of its own, from `FIRST_PORT` on: below those that systems give to outgoing connections."""
FIRST_PORT = 12000


class LocalCluster:
    """Processes by name: `supervisor`, `gateway`, and the workers'. Each worker has a home and a runtime folder of its own."""

    def __init__(
        self, folder: Path, workers: Sequence[str] = WORKERS, plugins: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> None:
        """`plugins` are modules that every process loads beside the installed plugins; `env` adds environment variables."""
        self.folder = folder
        self.workers = tuple(workers)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sockets = Path(tempfile.mkdtemp(prefix="xi-"))  # paths of local sockets must be short
        self._endpoint = f"ipc://{self._sockets}/s.sock"
        self._port = free_port()
        self.client = Client(f"http://127.0.0.1:{self._port}", timeout=60.0)
        _install(folder / "plugins", plugins)
        path = os.pathsep.join([str(folder / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._lock, first = _own_ports()
        self.ports = (first, first + PORTS - 2)
        self._env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "XI_PORT_RANGE": f"{first}-{self.ports[1]}", **(env or {})}

    def __enter__(self) -> LocalCluster:
        self.start("supervisor")
        self.start("gateway")
        for name in self.workers:
            self.start(name)
        try:
            self.wait_workers()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def home(self, name: str) -> Path:
        """The home of a process."""
        return self.folder / name

    def log(self, name: str) -> str:
        """What a process has written so far."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def start(self, name: str, *arguments: str) -> None:
        """Start a process, for the first time or again."""
        self.home(name).mkdir(parents=True, exist_ok=True)
        runtime = self._sockets / name
        runtime.mkdir(exist_ok=True)
        command = {
            "supervisor": ["xi_core.cluster.supervisor", "--endpoint", self._endpoint, "--settle", "0"],
            "gateway": ["xi_server", "--supervisor", self._endpoint, "--port", str(self._port)],
        }.get(name, ["xi_core.cluster.worker", "--supervisor", self._endpoint, "--runtime", str(runtime), "--name", name])
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", *command, *arguments],
                env={**self._env, "XI_HOME": str(self.home(name))},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """`kill -9` of a process."""
        self.processes[name].kill()
        self.processes[name].wait(10.0)

    def wait_workers(self, timeout: float = 30.0) -> None:
        """Wait until all workers have joined."""
        wait_until(self._joined, timeout, f"the workers {', '.join(self.workers)} to join; logs: {self.folder}")

    def _joined(self) -> bool:
        try:
            processes = self.client.cluster().processes
        except XiError:
            return False
        return {p.name for p in processes if p.role == "worker"} >= set(self.workers)

    # ---- models ---------------------------------------------------------------------------------

    def wait_ready(self, uid: str, unlike: Sequence[int] = (), timeout: float = 60.0) -> ModelStatus:
        """Wait until a launch is READY with processes that are none of `unlike`."""

        def ready() -> ModelStatus | None:
            with contextlib.suppress(XiError):
                found = self.client.model(uid)
                assert found.state not in ("FAILED", "CANCELLED"), found.error
                if found.state == "READY" and not set(pids(found)) & set(unlike):
                    return found
            return None

        found = _there(wait_until(ready, timeout, f"{uid} to be READY"))
        self.client.wait_ready(uid)  # and for the gateway to know it
        return found

    def wait_ended(self, uid: str, timeout: float = 60.0) -> ModelStatus:
        """Wait until a launch has FAILED or was CANCELLED, and none of its processes is left."""

        def ended() -> ModelStatus | None:
            found = self.client.model(uid)
            return found if found.state in ("FAILED", "CANCELLED") and not self.replicas(uid) else None

        return _there(wait_until(ended, timeout, f"{uid} to end"))

    def replicas(self, uid: str = "") -> list[int]:
        """Live processes of a launch, or of all, by what stands in their environment. Linux only."""
        prefix = f"{uid}-" if uid else ""
        return [pid for pid, env in _environments() if _is_of(env, self.folder) and env["XI_REPLICA_ID"].startswith(prefix)]

    def ports_held(self) -> list[int]:
        """Ports of this cluster's range that something listens on or keeps."""
        return [port for port in range(self.ports[0], self.ports[1] + 1) if not _free(port)]

    def close(self) -> None:
        """End all: gently the workers, so that their replicas end too, then the rest."""
        workers = [process for name, process in self.processes.items() if name in self.workers]
        for process in workers:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in [*workers, *(p for p in self.processes.values() if p not in workers)]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process in workers:
                    process.wait(20.0)
            process.kill()
            process.wait(10.0)
        for path in sorted(self._sockets.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self._sockets.rmdir()
        self._lock.close()


def _there(status: ModelStatus | None) -> ModelStatus:
    assert status is not None
    return status


def pids(status: ModelStatus) -> list[int]:
    """The processes of a launch: those of all ranks of all replicas."""
    parts: list[RankStatus | ReplicaStatus] = []
    for replica in status.replicas:
        parts += replica.ranks or [replica]
    return [part.pid for part in parts if part.pid]


def rank(status: ModelStatus, number: int) -> RankStatus:
    """One rank of the only replica."""
    return status.replicas[0].ranks[number]


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _own_ports() -> tuple[socket.socket, int]:
    """The first of a run of ports that no other cluster of tests has, and what shows the others so while it is open."""
    for first in range(FIRST_PORT, FIRST_PORT + 17 * PORTS, PORTS):
        lock = socket.socket()
        try:
            lock.bind(("127.0.0.1", first))
        except OSError:
            lock.close()
            continue
        return lock, first + 1
    raise DeadlineExceeded("all ports for clusters of tests are taken")


def _install(folder: Path, modules: Sequence[str]) -> None:
    """Metadata of a distribution that offers these modules as plugins."""
    info = folder / "xi_under_test-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xi-under-test\nVersion: 1.0\n")
    lines = "".join(f"{module.replace('.', '-')} = {module}\n" for module in modules)
    (info / "entry_points.txt").write_text(f"[xi]\n{lines}")


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and alive(int(entry.name)):
                words = (entry / "environ").read_bytes().decode("utf-8", "replace").split("\0")
                yield int(entry.name), dict(word.partition("=")[::2] for word in words)


def _is_of(env: dict[str, str], folder: Path) -> bool:
    """Whether this is the environment of a replica of a cluster in `folder`."""
    return bool(env.get("XI_REPLICA_ID")) and Path(env.get("XI_HOME", "")).parent == folder


def _free(port: int) -> bool:
    """Whether the port could be taken; connections that linger after their end don't count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
