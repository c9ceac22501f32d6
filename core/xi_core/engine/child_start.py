"""Run by path, `python -I -S child_start.py PARENT COMMAND…`: asks Linux to kill this process when its parent dies, then becomes COMMAND.

Standard library only. It stands for `preexec_fn`, which isn't safe in a process with threads.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and run the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent):  # it died in between
            sys.exit(3)
    try:
        os.execvp(command[0], command)  # noqa: S606 - to become the command is the purpose
    except OSError as error:
        sys.exit(f"{command[0]} can't be run: {error.strerror or error}")


if __name__ == "__main__":
    main()
