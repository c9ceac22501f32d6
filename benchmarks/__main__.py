"""`python -m benchmarks [NAME …] [--quick]`: exit status 1 when a target is missed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import stop_on_sigterm

NAMES = ("relay", "engines", "joining", "launching", "embeddings", "hashing", "footprint", "routing", "control_plane")
APART = ("vllm", "xinference")
"""Those that need an environment of their own."""


def main() -> None:
    """Run the named benchmarks, or those that run in `.venv`, one after the other."""
    known = ", ".join(NAMES + APART)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {known}; when none is named, all but {', '.join(APART)}")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; nothing is saved unless --save is given")
    parser.add_argument("--save", action="store_true", help="write the results of a quick run too")
    parser.add_argument("--in-process", action="store_true", help="engines: measure xi's serving layer without its processes; not saved")
    parser.add_argument("--install", action="store_true", help="footprint: also install the base distribution in a fresh environment")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of xi's engine and of its peer, where they run in turns; one less than cores"
    )
    parser.add_argument("--python", type=Path, metavar="FILE", help="xinference: the interpreter of an environment that has it")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES + APART]
    if unknown:
        parser.error(f"no benchmark is named {', '.join(unknown)}; there are {known}")
    with stop_on_sigterm():
        met = [_runner(name, arguments)() for name in arguments.names or NAMES]
    sys.exit(0 if all(met) else 1)


def _runner(name: str, arguments: argparse.Namespace) -> Callable[[], bool]:
    quick, save = arguments.quick, arguments.save or not (arguments.quick or arguments.in_process)

    def run() -> bool:
        if name == "relay":
            from benchmarks import relay

            return relay.run(quick=quick, save=save)
        if name == "engines":
            from benchmarks import engines

            return engines.run(quick=quick, save=save, in_process=arguments.in_process, threads=arguments.threads)
        if name == "embeddings":
            from benchmarks import embeddings

            return embeddings.run(quick=quick, save=save, threads=arguments.threads)
        if name == "joining":
            from benchmarks import joining

            return joining.run(quick=quick, save=save, threads=arguments.threads)
        if name == "launching":
            from benchmarks import launching

            return launching.run(quick=quick, save=save, threads=arguments.threads)
        if name == "control_plane":
            from benchmarks import control_plane

            return control_plane.run(quick=quick, save=save)
        if name == "xinference":
            from benchmarks import xinference

            return xinference.run(quick=quick, save=save, python=arguments.python, threads=arguments.threads)
        if name == "vllm":
            from benchmarks import vllm

            return vllm.run(quick=quick, save=save)
        if name == "hashing":
            from benchmarks import hashing

            return hashing.run(quick=quick, save=save)
        if name == "routing":
            from benchmarks import routing

            return routing.run(quick=quick, save=save)
        from benchmarks import footprint

        return footprint.run(quick=quick, save=save, install=arguments.install)

    return run


if __name__ == "__main__":
    main()
