"""Run by path in the child: SGLang's server, once its own parser has taken every option. Imported by nothing; SGLang is loaded here.

It stands for `python -m sglang.launch_server`, with three differences. An option must be written out in full: argparse would take any
beginning of its name, and xi would not know what was meant. `--no-NAME` is taken for a flag that is off anyway. The key comes by
environment, for command lines can be read by all.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys

KEY = "CHILD_SERVER_KEY"


def words_for(parser: argparse.ArgumentParser, given: list[str]) -> list[str]:
    """`given` without the negations of flags that are off by default and have no `--no-NAME` of their own."""
    actions = {option: action for action in parser._actions for option in action.option_strings}

    def idle(word: str) -> bool:
        flag = actions.get(f"--{word.removeprefix('--no-')}")
        return word.startswith("--no-") and word not in actions and flag is not None and flag.nargs == 0 and not flag.default

    return [word for word in given if not idle(word)]


def main() -> None:
    """Check the command line and become the server. Ends with status 2, as argparse does, where an option is wrong."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()  # they may bring options
    parser = argparse.ArgumentParser(prog="sglang", allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    words = words_for(parser, sys.argv[1:])
    parser.parse_args(words)
    sys.argv[1:] = [*words, f"--api-key={os.environ.pop(KEY)}"]
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
