"""The two gateways that `relay.py` compares, each before its stub: xi's own and `sglang-router` (PyPI, written in Rust)."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.bodies import CHAT, request
from benchmarks.processes import READY, ROOT, Child, NotReady

PEERS = ROOT / "benchmarks" / ".venv-peers"
"""An environment of their own for programs that xi is compared with."""
ROUTER = "sglang-router==0.3.2"


class Server(msgspec.Struct):
    """A gateway that can be asked: its process and its URL."""

    name: str
    child: Child
    url: str


@contextlib.contextmanager
def xi_gateway() -> Iterator[Server]:
    """xi's gateway before a stub replica."""
    with tempfile.TemporaryDirectory(prefix="xi-bench-") as runtime, contextlib.ExitStack() as stack:
        stub = stack.enter_context(Child([sys.executable, "-m", "benchmarks.stubs", "replica", "--runtime", runtime]))
        supervisor = stub.line().strip()
        argv = [sys.executable, "-m", "xi_server", "--supervisor", supervisor, "--host", "127.0.0.1", "--port", "0", "--watch-stdin"]
        gateway = stack.enter_context(Child(argv, {"XI_LOG_LEVEL": "warning"}))
        url = json.loads(gateway.line())["detail"]
        _until_it_answers(gateway, url)
        yield Server("xi", gateway, url)


@contextlib.contextmanager
def sglang_router() -> Iterator[Server]:
    """The router before a stub HTTP server, with its cheapest policy and quiet logs."""
    program = installed_router()
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(Child([sys.executable, "-m", "benchmarks.stubs", "upstream"])).line().strip()
        port, metrics = free_port(), free_port()
        argv = [
            str(program), "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port), "--worker-urls", upstream,
            "--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(metrics), "--prometheus-host", "127.0.0.1",
        ]  # fmt: skip
        router = stack.enter_context(Child(argv))
        url = f"http://127.0.0.1:{port}"
        _until_it_answers(router, url)
        yield Server("sglang-router", router, url)


def installed_router() -> Path:
    """The interpreter that has the router; installed on the first call. Never into xi's own environment."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
    if not list(PEERS.glob("lib/*/site-packages/sglang_router")):
        subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", ROUTER], check=True)
    return python


def free_port() -> int:
    """A port that nobody listens on just now, for programs that can't choose one themselves."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _until_it_answers(child: Child, url: str) -> None:
    """Wait until a request goes through. Raises `NotReady`."""
    body = request("stub", stream=False, max_tokens=1).partition(b"\r\n\r\n")[2]
    asking = urllib.request.Request(url + CHAT, body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + READY
    while True:
        try:
            with urllib.request.urlopen(asking, timeout=5.0) as answer:
                answer.read()
                return
        except OSError as error:
            if time.monotonic() > deadline or not child.running():
                raise NotReady(f"{url} does not answer: {error}\n{child.output()}") from None
            time.sleep(0.05)
