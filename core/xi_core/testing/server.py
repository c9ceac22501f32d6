"""`RunningServer`: a real `xi serve` on a free port, with a home of its own, and nothing of it left afterwards.

with RunningServer(tmp_path) as server:
    server.xi("launch", "xi-tiny")
    server.client.chat("xi-tiny", [{"role": "user", "content": "Hi"}])
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from xi_core.client import Client
from xi_core.errors import DeadlineExceeded, XiError
from xi_core.testing.waiting import wait_until


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RunningServer:
    """`xi serve` as a child process. `env` adds environment variables; `command` is another environment's `xi`."""

    def __init__(self, home: Path, *arguments: str, env: dict[str, str] | None = None, command: Path | None = None) -> None:
        self.home = home
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, "XI_HOME": str(home), "XI_ENDPOINT": self.endpoint, "NO_COLOR": "1", **(env or {})}
        self.log = home / "serve.log"
        self._arguments = arguments
        self._command = str(command or Path(sys.executable).with_name("xi"))
        self.process: subprocess.Popen[bytes]

    @property
    def client(self) -> Client:
        """A client of this server."""
        return Client(self.endpoint, self.environment.get("XI_API_KEY") or None)

    def start(self) -> RunningServer:
        """Start it and wait until it is ready. Raises `DeadlineExceeded` with its log."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self._command, "serve", "--port", str(self.port), *self._arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._answers, 30.0, "xi serve to answer")
        except DeadlineExceeded as error:
            self.kill()
            raise DeadlineExceeded(f"{error.message}; its log:\n{self.log.read_text()}") from None
        return self

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise DeadlineExceeded(f"xi serve ended with status {self.process.returncode}:\n{self.log.read_text()}")
        try:
            return bool(self.client.cluster().processes)
        except XiError:
            return False

    def stop(self) -> int:
        """Ctrl-C, and the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30.0)

    def kill(self) -> None:
        """`kill -9` of the launcher."""
        self.process.kill()
        self.process.wait(10.0)

    def pids(self, role: str | None = None) -> list[int]:
        """Processes of a role, or all."""
        return [one.pid for one in self.client.cluster().processes if role in (None, one.role)]

    def xi(self, *arguments: str, timeout: float = 120.0, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of the CLI against this server."""
        return subprocess.run(
            [self._command, *arguments], env=self.environment, input=input, capture_output=True, text=True, timeout=timeout, check=False
        )

    def __enter__(self) -> RunningServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
