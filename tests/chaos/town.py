"""`Town`: a head and members as `xi supervisor`, `xi worker` and `xi gateway` over encrypted TCP; and `Load`, clients that ask it on and on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from xi_core.testing.waiting import wait_until

T = TypeVar("T")
XI = str(Path(sys.executable).with_name("xi"))
UID = "xi-tiny"
TOKENS = 8
BODY = {"model": UID, "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": TOKENS, "ignore_eos": True}
KEY = "a-key-of-the-tests"


class Town:
    """Processes by name; `head` is the launcher of supervisor and gateway. Nothing of it is left afterwards."""

    def __init__(
        self, folder: Path, host: str = "127.0.0.1", inside: Callable[[str], Sequence[str]] = lambda name: (), plugins: Sequence[str] = ()
    ) -> None:
        """`inside` gives the words before a process's command, which put it in its network; `plugins` are modules of this folder."""
        self.folder, self.host, self._inside = folder, host, inside
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._path = _with_plugins(folder / "plugins", plugins)
        self.http = httpx.Client()

    def __enter__(self) -> Town:
        try:
            head = self.start("head", "supervisor", "-H", self.host, "-p", "0", "--cluster-port", "0", "--json", stdout=subprocess.PIPE)
            assert head.stdout is not None
            line = head.stdout.readline()
            assert line, self.said("head")
        except BaseException:
            self.close()
            raise
        self.word: dict[str, Any] = json.loads(line)
        self.url: str = self.word["endpoint"]
        self.http.close()
        self.http = self.visitor()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def visitor(self, url: str = "", timeout: float = 60.0) -> httpx.Client:
        """A client of a gateway; the head's if no other is named."""
        return httpx.Client(base_url=url or self.url, timeout=timeout, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False)

    # ---- processes ------------------------------------------------------------------------------

    def start(self, name: str, *arguments: str, stdout: int = subprocess.DEVNULL, **env: str) -> subprocess.Popen[str]:
        """Start a process with a home of its own."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        own = {"XI_HOME": str(home), "XI_GRACE": "2", "XI_API_KEY": KEY, "OMP_NUM_THREADS": "1", "PYTHONPATH": self._path}
        with (home / "stderr.txt").open("ab") as log:
            process = subprocess.Popen(
                [*self._inside(name), XI, *arguments],
                env={**os.environ, **own, **env},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
                text=True,
            )
        self.processes[name] = process
        return process

    def said(self, name: str) -> str:
        """The log of a process and of those that it started."""
        file = self.folder / name / "stderr.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def token(self, role: str = "worker") -> str:
        """A join token."""
        token: str = self.http.post("/v1/cluster/join-tokens", json={"role": role}).raise_for_status().json()["token"]
        return token

    def work(self, name: str, endpoint: str = "") -> None:
        """Start a worker, for the first time or again, and wait until it has joined."""
        known = (self.folder / name / "cluster").exists()
        words = ["-e", endpoint or self.word["cluster_endpoint"], "--name", name, *([] if known else ["--token", self.token()])]
        self.start(name, "worker", *words)
        eventually(lambda: name in self.pids("worker"), 30.0, f"{name} to join; {self.said(name)}")

    def gateway(self, name: str) -> str:
        """Start one more gateway; its URL once it serves."""
        words = ["-e", self.word["cluster_endpoint"], "--name", name, "--token", self.token("gateway")]
        self.start(name, "gateway", *words, "-H", "0.0.0.0", "-p", "18997")
        wait_until(lambda: "xi serves at " in self.said(name), 30.0, f"gateway {name}")
        return name

    def pids(self, role: str) -> dict[str, int]:
        """Process ids of a role by name, as the supervisor tells them."""
        answer = self.http.get("/v1/cluster/info").raise_for_status().json()
        return {p["name"]: p["pid"] for p in answer["processes"] if p["role"] == role}

    def pid(self, role: str, name: str = "") -> int:
        """The only process of a role, or that of this name."""
        found = self.pids(role)
        return found[name] if name else next(iter(found.values()))

    def replicas(self, worker: str = "") -> list[int]:
        """Live processes of replicas, or of those of one worker, by what stands in their environment: also what nobody tells of."""
        folder = self.folder / worker if worker else self.folder
        return sorted(pid for pid, env in _environments() if "XI_REPLICA_ID" in env and _below(env, folder))

    def everyone(self) -> list[int]:
        """All live processes of this town."""
        return sorted(pid for pid, env in _environments() if _below(env, self.folder))

    def close(self) -> None:
        """Kill everything."""
        self.http.close()
        for process in self.processes.values():
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        while left := self.everyone():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # ---- models ---------------------------------------------------------------------------------

    def launch(self, replica: int = 1, **fields: Any) -> None:
        """Launch xi-tiny, or what `fields` say, and wait until the gateway would send requests to all replicas."""
        body = {"model_name": UID, "model_engine": "llama.cpp", "replica": replica, **fields}
        answer = self.http.post("/v1/models", json=body)
        assert answer.status_code == 200, answer.text
        uid = str(fields.get("model_uid", body["model_name"]))
        eventually(lambda: self.usable(uid) == replica, 30.0, f"{uid} to serve")

    def status(self, uid: str = UID) -> dict[str, Any]:
        """What the supervisor knows of a launch."""
        found: dict[str, Any] = self.http.get(f"/v1/models/{uid}").raise_for_status().json()
        return found

    def places(self, uid: str = UID) -> list[str]:
        """The workers of the replicas that are READY, sorted."""
        return sorted(r["worker"] for r in self.status(uid)["replicas"] if r["state"] == "READY")

    def metrics(self, http: httpx.Client | None = None) -> dict[str, float]:
        """The gateway's metrics: name with labels → value."""
        lines = (http or self.http).get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and not line.startswith("#")}

    def usable(self, uid: str = UID) -> int:
        """Replicas that the gateway would send a request to."""
        return int(self.metrics().get(f'xi_replicas_ready{{model="{uid}"}}', 0))

    def settled(self, places: Sequence[str], seconds: float = 30.0) -> None:
        """Wait until READY replicas are at these workers, the gateway uses them all, and no other process of a replica lives."""

        def so() -> bool:
            told = sorted(self.pids("replica").values())
            if len(self.status()["replicas"]) != len(places):  # one that ends is told of until it is gone
                return False
            return self.places() == sorted(places) and self.usable() == len(places) and self.replicas() == told

        eventually(so, seconds, f"replicas at {', '.join(places)} and nowhere else", self._state)

    def _state(self) -> str:
        with contextlib.suppress(httpx.HTTPError, KeyError):
            status = self.status()["replicas"]
            return f"{[(r['replica_id'], r['worker'], r['state'], r['error']) for r in status]}, live: {self.replicas()}, told: {self.pids('replica')}"
        return "the gateway doesn't answer"

    def complete(self) -> int:
        """The status of a request."""
        return self.http.post("/v1/chat/completions", json=BODY).status_code


class Load:
    """Clients that ask one plain request after the other while the block runs, and what they were answered."""

    def __init__(self, town: Town, clients: int = 3, url: str = "", body: dict[str, Any] = BODY) -> None:
        self._town, self._url, self._body = town, url, body
        self._stop = threading.Event()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def more(self, count: int = 20) -> None:
        """Wait until so many more requests have been answered."""
        least = self.answers.total() + count
        wait_until(lambda: self.answers.total() >= least, 90.0, f"{count} answers more; so far {dict(self.answers)}")

    def all_well(self) -> None:
        """Every request got its whole answer."""
        assert set(self.answers) == {"well"}, self.answers

    def _ask(self) -> None:
        with self._town.visitor(self._url) as http:
            while not self._stop.is_set():
                self.answers[self._one(http)] += 1

    def _one(self, http: httpx.Client) -> str:
        try:
            answer = http.post("/v1/chat/completions", json=self._body)
            whole = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == self._body["max_tokens"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return repr(error)
        return "well" if whole else answer.text

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        try:
            self.more(6)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90.0)


def eventually(check: Callable[[], T], seconds: float = 30.0, what: str = "it", state: Callable[[], str] = lambda: "") -> T:
    """What `check` answers once it is true; an HTTP error counts as not yet. `state` is told when it never is."""
    last: list[str] = []

    def tried() -> T | None:
        with contextlib.suppress(httpx.HTTPError, KeyError, StopIteration):
            return check()
        return None

    try:
        found = wait_until(tried, seconds, what)
    except BaseException as error:
        last.append(state())
        error.add_note(last[0])
        raise
    assert found is not None
    return found


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that hangs (SIGSTOP) for the time of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and alive(int(entry.name)):
                words = (entry / "environ").read_bytes().decode("utf-8", "replace").split("\0")
                yield int(entry.name), dict(word.partition("=")[::2] for word in words)


def _below(env: dict[str, str], folder: Path) -> bool:
    return Path(env.get("XI_HOME", "/")).is_relative_to(folder)


def _with_plugins(folder: Path, modules: Sequence[str]) -> str:
    """PYTHONPATH with which these modules of this folder are installed plugins."""
    path = os.environ.get("PYTHONPATH", "")
    if not modules:
        return path
    info = folder / "xi_chaos-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xi-chaos\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[xi]\n" + "".join(f"{module} = {module}\n" for module in modules))
    return os.pathsep.join(filter(None, [str(folder), str(Path(__file__).parent), path]))
