"""The whole of xi, started as a user would start it: `xi serve`, then a launch."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gateways import free_port
from benchmarks.processes import READY, Child, NotReady

XI = Path(sys.executable).with_name("xi")
LAUNCH = 120.0
"""Seconds that a launch may take."""


@contextlib.contextmanager
def xi_serve(home: Path) -> Iterator[tuple[Child, str]]:
    """`xi serve` with its files in `home`; its process and its URL, once it is ready."""
    port = free_port()
    argv = [str(XI), "serve", "--port", str(port), "--no-restore", "--log-level", "warning"]
    with Child(argv, {"XI_HOME": str(home), "XI_API_KEY": "", "XI_GRACE": "2"}) as serving:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + READY
        while not _ready(url):
            if time.monotonic() > deadline or not serving.running():
                raise NotReady(f"`xi serve` is not ready\n{serving.output()}")
            time.sleep(0.02)
        yield serving, url


def launch(url: str, **fields: Any) -> None:
    """Launch a model and wait until it is ready. Raises `NotReady` with the server's reason."""
    asking = urllib.request.Request(f"{url}/v1/models", json.dumps(fields).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asking, timeout=LAUNCH) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        raise NotReady(f"{fields.get('model_uid')} can't be launched: {error.read().decode(errors='replace')}") from None


def terminate(url: str, uid: str) -> None:
    """End a launch, and wait until its processes are gone."""
    asking = urllib.request.Request(f"{url}/v1/models/{uid}", method="DELETE")
    with urllib.request.urlopen(asking, timeout=LAUNCH) as answer:
        answer.read()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
