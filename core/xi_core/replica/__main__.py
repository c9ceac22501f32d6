"""`python -m xi_core.replica --report-fd N`: started by a worker, which writes the launch plan to standard input."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from xi_core.replica.process import read_plan, run


def main() -> int:
    """Run the replica; the exit status is 0 when it was asked to stop."""
    parser = argparse.ArgumentParser(prog="python -m xi_core.replica", description="One replica of a model. Workers start it.")
    parser.add_argument("--report-fd", type=int, required=True, help="descriptor of the pipe for reports to the worker")
    arguments = parser.parse_args()
    plan = read_plan(sys.stdin.buffer)
    logging.basicConfig(
        level=plan.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    return run(plan, arguments.report_fd)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not `sys.exit`: a thread that is still within an engine's library would abort the process, and the status would tell of a crash.
    os._exit(status)
