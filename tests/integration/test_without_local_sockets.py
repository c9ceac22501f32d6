"""`xi serve` where there are no local sockets: supervisor, worker, gateway and replica talk over loopback TCP."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from xi_core.client import Client

CODE = "from xi_core.cluster import launcher; launcher.LOCAL_SOCKETS = False; launcher.main(['--port', '0', '--json'])"


def test_a_model_answers_over_tcp(tmp_path: Path) -> None:
    environment = {**os.environ, "XI_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as launcher:
        try:
            assert launcher.stdout is not None
            client = Client(json.loads(launcher.stdout.readline())["endpoint"])
            client.launch("xi-tiny", model_engine="llama.cpp")
            answer: Any = client.chat("xi-tiny", [{"role": "user", "content": "What is 2 + 3?"}], temperature=0)
            assert "5" in answer.choices[0].message.content
        finally:
            launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(20) == 0
