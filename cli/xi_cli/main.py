"""The start of `xi`: the console script calls `main`. It imports next to nothing, so that Ctrl-C is answered while the rest is imported."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from xi_cli import INTERRUPTED


def main() -> None:
    """Run `xi` with the process's arguments."""
    try:
        open_closed_streams()
        _take_any_input()
        from xi_cli.root import cli

        cli(prog_name="xi")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def open_closed_streams() -> None:
    """Let the standard streams that xi was started without lead nowhere, under their own numbers: the next file or socket would get these,
    and what is started from here would write into it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # Python's value for one that is closed
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - stays open as long as the process
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _take_any_input() -> None:
    """Read bytes that aren't UTF-8 from stdin as they come in arguments, so that they are refused where they are sent, in words."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


if __name__ == "__main__":
    main()
