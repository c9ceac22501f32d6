"""`python -m xi_core.testing.simulation [--seeds N] [--first N] [--replay SEED] [--scheduler NAME]`: exit status 1 where a seed fails."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable

from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.placement import Scheduler
from xi_core.importing import import_path
from xi_core.plugins import PluginHub
from xi_core.testing.simulation.chaos import troubled

SHOWN = 10
"""Failing seeds after which it is given up."""


def failure(seed: int, scheduler: Scheduler, say: Callable[[str], None] | None = None) -> str:
    """Why the cluster of this seed fails; empty where it doesn't."""
    try:
        troubled(seed, scheduler, make=Lifecycle, say=say)
    except Exception as error:
        if say is not None:
            say(traceback.format_exc())
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> int:
    """Run seeds, or one again with its trace. Answers the exit status."""
    parser = argparse.ArgumentParser(prog="python -m xi_core.testing.simulation", description="Simulated clusters, one for each seed.")
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them")
    parser.add_argument("--replay", type=int, metavar="SEED", help="only this one, with all that happens in it")
    parser.add_argument("--scheduler", default="idle_first", metavar="NAME", help="the scheduler that places replicas")
    arguments = parser.parse_args()
    scheduler: Scheduler = import_path(PluginHub.load().schedulers.get(arguments.scheduler, param="--scheduler").scheduler)()
    if arguments.replay is not None:
        return 1 if failure(arguments.replay, scheduler, say=_say) else 0
    began, failed = time.process_time(), 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        reason = failure(seed, scheduler)
        if reason:
            failed += 1
            _say(f"seed {seed}: {reason}\n  python -m xi_core.testing.simulation --scheduler {arguments.scheduler} --replay {seed}")
            if failed == SHOWN:
                break
    else:
        seconds = max(time.process_time() - began, 0.001)
        _say(f"{arguments.seeds} seeds in {seconds:.1f} s of CPU ({60 * arguments.seeds / seconds:.0f} a minute), {failed} failed")
    return 1 if failed else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
