"""Keeper: a tiny process that outlives its worker by a moment, to kill what the worker ran. Standard library only; run by path.

It reads lines on stdin: `+PGID TAG` a replica's process group and the value of XI_REPLICA_ID in its environment; `-PGID` it is gone. At
the end of the input, which is the worker's end, it kills every listed group, and every process that carries one of the tags.
The worker imports `kill_group` and `kill_tagged` for its own clean-up.
"""

from __future__ import annotations

import os
import signal
import sys

TAG = "XI_REPLICA_ID"
ROUNDS = 20
"""Most searches for tagged processes; each but the last found some, which may have started others."""


def kill_group(group: int) -> None:
    """SIGKILL to a process group; one that is gone is no error."""
    if group <= 1:
        return
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def kill_tagged(tags: set[str]) -> None:
    """SIGKILL to every process that was started with one of these tags in its environment, until there is none. Linux only."""
    wanted = {f"{TAG}={tag}".encode() for tag in tags}
    for _ in range(ROUNDS):
        found = [pid for pid in _pids() if wanted & set(_environment(pid))]
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    except OSError:
        return []


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def keep() -> None:
    """Read the list until the worker is dead, then kill what is on it."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: dict[int, str] = {}
    for line in sys.stdin:
        number, _, tag = line[1:].strip().partition(" ")
        if not number.isdecimal():
            continue  # whatever it is, it must not keep the keeper from its task
        if line.startswith("+"):
            groups[int(number)] = tag
        elif line.startswith("-"):
            groups.pop(int(number), None)
    for group in groups:
        kill_group(group)
    if groups:
        kill_tagged({tag for tag in groups.values() if tag})


if __name__ == "__main__":
    keep()
