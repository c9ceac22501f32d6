"""A scripted xi server, and ways to run `xi` against it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from xi_cli.root import cli
from xi_core.config import settings


@dataclass
class Seen:
    method: str
    path: str
    body: Any
    authorization: str | None


@dataclass
class ScriptedServer:
    """Answers from `script`: (method, path) → a JSON value, a (status, value) pair, a list of them (the last stays), or a list of SSE events as bytes."""

    url: str = ""
    script: dict[tuple[str, str], Any] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """A client closed its connection while a stream with `hold` was open."""
    answering: threading.Event = field(default_factory=threading.Event)
    """Cleared: requests are seen, and answered once it is set."""
    hold: bool = False
    """Keep streams open after their events, until the client leaves."""

    def calls(self, method: str, path: str) -> list[Seen]:
        return [seen for seen in self.seen if (seen.method, seen.path) == (method, path)]

    def next_answer(self, method: str, path: str) -> Any:
        answer = self.script.get((method, path), (404, error("no such route", "not_found")))
        if isinstance(answer, Turns):
            return answer.values.pop(0) if len(answer.values) > 1 else answer.values[0]
        return answer


@dataclass
class Turns:
    values: list[Any]


def error(message: str, code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def status(state: str, uid: str = "xi-tiny", **fields: Any) -> dict[str, Any]:
    return {"model_uid": uid, "spec": {"model_name": uid}, "state": state, "created": 1, **fields}


def replica(state: str, stage: str = "", progress: float | None = None, error: str | None = None) -> dict[str, Any]:
    return {"replica_id": "xi-tiny-0", "state": state, "stage": stage, "progress": progress, "error": error}


def events(*values: Any, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(value)}\n\n" for value in values] + ["data: [DONE]\n\n"] * done
    return "".join(lines).encode()


def said(*texts: str) -> bytes:
    return events(*({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts))


def _wire(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Wire(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            server.seen.append(Seen(self.command, self.path, body, self.headers.get("Authorization")))
            assert server.answering.wait(20)
            answer = server.next_answer(self.command, self.path)
            if isinstance(answer, bytes):
                self._stream(answer)
            else:
                code, value = answer if isinstance(answer, tuple) else (200, answer)
                self._send(code, "application/json", json.dumps(value).encode())

        def _send(self, code: int, kind: str, data: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(data.replace(b"data: [DONE]\n\n", b"") if server.hold else data)
            self.wfile.flush()
            if server.hold:
                self.connection.settimeout(20)
                try:
                    gone = self.connection.recv(1) == b""
                except ConnectionError:
                    gone = True
                if gone:
                    server.left.set()

        do_GET = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            pass

    return Wire


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.answering.set()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _wire(scripted))
    http.daemon_threads = True
    scripted.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.02))
    thread.start()
    yield scripted
    http.shutdown()
    http.server_close()
    thread.join(5)


@pytest.fixture(autouse=True)
def _clean_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("XI_", "XINFERENCE_")):
            monkeypatch.delenv(name)
    settings.cache_clear()
    cli.__dict__.pop("plugged_in", None)  # found once per process, but each test may install other plugins
    yield
    settings.cache_clear()


Run = Callable[..., Result]


@pytest.fixture
def xi(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `xi ARGS` in this process, with XI_ENDPOINT at the scripted server."""
    monkeypatch.setenv("XI_ENDPOINT", server.url)

    def run(*args: str, stdin: str | None = None) -> Result:
        settings.cache_clear()
        return CliRunner().invoke(cli, args, input=stdin, prog_name="xi")

    return run


@pytest.fixture
def spawn(server: ScriptedServer) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `xi ARGS` as a process of its own; killed at the end, whatever happens."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, **kwargs: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "XI_ENDPOINT": server.url, "PYTHONUNBUFFERED": "1"}
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs}
        process = subprocess.Popen([sys.executable, "-m", "xi_cli.main", *args], env=environment, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until the condition holds; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition didn't come true in time"
        time.sleep(0.01)


@pytest.fixture
def words() -> SimpleNamespace:
    """The words of scripts, for test modules: with `--import-mode=importlib` they can't import a conftest."""
    return SimpleNamespace(Turns=Turns, error=error, status=status, replica=replica, events=events, said=said, eventually=eventually)
