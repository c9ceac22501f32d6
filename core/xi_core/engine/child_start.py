"""Run by path, `python -I -S child_start.py`: starts a server for a replica, and sees to it that no process of it outlives either.

Standard input is a socket to the replica. What to run comes on it, see `packed`; after that a byte asks for SIGTERM to the server, and the
end, which is the replica's too, for SIGKILL to all. The server's process id goes back, and how it has ended, as `subprocess` tells it.

On Linux this process is a subreaper: what loses its parent below it becomes its child. So nothing can hide, be it in a session of its own,
under another name or with an environment that it has overwritten, and once there is no child, nothing is left. This process is in a group
of its own, for SIGKILL to the replica's must not hit it. Elsewhere it kills the server only, and the replica's group holds the rest.

Standard library only. The replica imports `packed` and `TAG`.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from collections.abc import Sequence

TAG = "XI_REPLICA_ID"
"""By this variable a worker finds what its replicas have left, to kill it. The server has it, this process must not."""
_LINK = 0
_STDERR = 2
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Some servers' workers tell their parent of their end by a signal, and it may be this process by then."""
_PAUSE = 0.2
"""Seconds between searches for processes while some are left that don't die, as one may that a device holds."""


def packed(tag: str, command: Sequence[str]) -> bytes:
    """What to run: its length in four bytes; the value of `TAG`, empty for none, and the words of the command, with a zero byte between."""
    data = b"\0".join(os.fsencode(word) for word in (tag, *command))
    return len(data).to_bytes(4, "big") + data


class Server:
    """The process that was started, and all below it."""

    def __init__(self, pid: int) -> None:
        self.ended = False
        self._pid = pid

    def kill(self, number: signal.Signals) -> None:
        """A signal to the server alone. Its number is its own until `reap` finds it dead."""
        if not self.ended:
            _kill(self._pid, number)

    def reap(self) -> bool:
        """Take note of what has ended, and tell the replica if the server has; False when no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self.ended = True
                _tell(os.waitstatus_to_exitcode(status))

    def clear(self, woken: int) -> None:
        """SIGKILL to all, until there is none."""
        while self.reap():
            self.kill(signal.SIGKILL)
            for pid in _family():
                _kill(pid, signal.SIGKILL)
            _wait(_PAUSE, woken)


def main() -> None:
    """Start the server, watch it, and clear up after it."""
    group = os.getpgrp()
    os.setpgid(0, 0)
    if _LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)  # whoever stopped the replica may have stopped this process as well
    tag, *command = _received()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    server = Server(_started(tag, command, group))
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    while server.reap() and not server.ended:
        if _LINK in _wait(None, _LINK, woken):
            if not _read(1):
                break
            server.kill(signal.SIGTERM)
    server.clear(woken)


def _started(tag: str, command: list[str], group: int) -> int:
    """Its process id, which the replica is told."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        _tell(pid)
        return pid
    try:
        _become(tag, command, group, parent)
    except OSError as error:
        os.write(_STDERR, f"{command[0]} can't be run: {error.strerror or error}\n".encode())
    finally:
        os._exit(1)


def _become(tag: str, command: list[str], group: int, parent: int) -> None:
    """In the new process: the command, in the replica's group and tied to this file's process."""
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            return
    os.setpgid(0, group)
    os.dup2(os.open(os.devnull, os.O_RDONLY), _LINK)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores both, and what is ignored stays so in another program
        signal.signal(number, signal.SIG_DFL)
    if tag:
        os.environ[TAG] = tag
    os.execvp(command[0], command)  # noqa: S606 - to become the command is the purpose


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _wait(seconds: float | None, *readable: int) -> list[int]:
    """Until one of them is, the last of which is the pipe that a child's end writes to, or so many seconds."""
    found = select.select(readable, [], [], seconds)[0]
    if readable[-1] in found:
        os.read(readable[-1], 4096)
    return found


def _family() -> list[int]:
    """Every process below this one, parents first. None but on Linux."""
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if _LINUX else []:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:  # it has ended
                continue
            below.setdefault(parent, []).append(int(name))
    found, layer = [], [os.getpid()]
    while layer := [pid for parent in layer for pid in below.get(parent, [])]:
        found += layer
    return found


def _received() -> list[str]:
    """What `packed` made. Ends this process where the replica has died."""
    return [os.fsdecode(word) for word in _whole(int.from_bytes(_whole(4), "big")).split(b"\0")]


def _whole(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = _read(size - len(data))
        if not more:
            sys.exit(3)
        data += more
    return data


def _read(size: int) -> bytes:
    try:
        return os.read(_LINK, size)
    except ConnectionResetError:  # it died with something unread
        return b""


def _tell(number: int) -> None:
    try:
        os.write(_LINK, b"%d\n" % number)
    except OSError:  # the replica is gone, which the reading side notices
        return


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
