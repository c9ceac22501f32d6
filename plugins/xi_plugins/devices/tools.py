"""Running the tools that tell of devices (`nvidia-smi`, `amd-smi`, `sysctl`). Used by this folder's probes."""

from __future__ import annotations

import logging
import subprocess

log = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds that a tool may take; a device in trouble can make it hang."""


def output(command: str, *arguments: str, timeout: float = TIMEOUT) -> str | None:
    """What it prints; None, with a warning, where it can't be run or fails."""
    name = command.rpartition("/")[2]
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        log.warning("%s can't be used, so what it tells is missing: %s", name, error)
        return None
    if done.returncode != 0:
        log.warning("%s failed with status %s: %s", name, done.returncode, (done.stderr or done.stdout).strip()[:200])
        return None
    return done.stdout


def number(text: object) -> float:
    """A figure, or 0 for what a device doesn't tell (`[N/A]`)."""
    try:
        return float(str(text))
    except ValueError:
        return 0.0
