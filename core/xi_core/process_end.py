"""How a process has ended, in words."""

from __future__ import annotations

import signal

_NAMES = {each.value: each.name for each in signal.Signals}


def how_ended(status: int | None) -> str:
    """From its return code, as `subprocess` gives it: "ended with status 1", or "was killed by SIGKILL" and what that may mean."""
    if status is None:
        return "still runs"
    if status >= 0:
        return f"ended with status {status}"
    name = _NAMES.get(-status, f"signal {-status}")
    if status == -signal.SIGKILL:
        return f"was killed by {name} (where nobody did so, the system ran out of memory: see its log)"
    return f"was killed by {name}"
