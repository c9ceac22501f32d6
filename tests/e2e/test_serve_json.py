"""`xi serve --json`, as a program would use it: a free port, one line that tells it, and a stop."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from xi_core.client import Client


def test_the_endpoint_is_told_on_stdout(tmp_path: Path) -> None:
    xi = str(Path(sys.executable).with_name("xi"))
    environment = {**os.environ, "XI_HOME": str(tmp_path)}
    with subprocess.Popen(
        [xi, "serve", "--port", "0", "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            told = json.loads(server.stdout.readline())
            assert {process["role"] for process in told["processes"]} == {"supervisor", "worker", "gateway"}
            assert Client(told["endpoint"]).models() == []
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
