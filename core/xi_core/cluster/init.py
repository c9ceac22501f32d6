"""Init: the first process of a container that was started without one. `python -I -S init.py COMMAND…`; see `xi_cli.commands.serve.become`.

The kernel gives process 1 every process that has lost its parent, and each stays a zombie until it is reaped. Who waits for children of its
own can't also reap strangers without taking others' exit statuses away. So this process has one child, the command, reaps all the
others, passes signals on, and ends as the command does, with which the kernel kills whatever is left in the container.

Standard library only; run by path.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
OF_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH)
"""What a terminal sends to the command as well, which is in the same group."""
_SI_KERNEL = 0x80
"""Who sent a signal: the kernel, and so the terminal."""


def main(command: list[str]) -> int:
    """Run the command until it ends. Answers its exit status; 128 and the signal's number where it was killed, as shells do."""
    passed_on = {number for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN}  # `nohup` wants SIGHUP ignored
    heeded = {*passed_on, signal.SIGCHLD}
    # A signal that is blocked waits to be taken. Process 1 gets no other that it has no handler for.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
    pid = os.fork()
    if pid == 0:
        _become(command, before)
    while True:
        status = _reap(pid)
        if status is not None:
            return status if status >= 0 else 128 - status
        found = signal.sigwaitinfo(heeded)
        if found.si_signo in passed_on and not (found.si_signo in OF_TERMINAL and found.si_code == _SI_KERNEL):
            os.kill(pid, found.si_signo)  # its number is its own until it is reaped


def _reap(pid: int) -> int | None:
    """Take note of all that has ended. Answers how the command has, as `subprocess` tells it; None while it runs."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)  # there is always a child: the command
        if ended == pid:
            return os.waitstatus_to_exitcode(status)
        if ended == 0:
            return None


def _become(command: list[str], mask: Iterable[int]) -> None:
    """In the new process: the command, with signals as they were."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores both, and what is ignored stays so in another program
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvp(command[0], command)  # noqa: S606 - to become the command is the purpose
    except OSError as error:
        sys.stderr.write(f"{command[0]} can't be run: {error.strerror or error}\n")
        sys.stderr.flush()
    finally:
        os._exit(127)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
