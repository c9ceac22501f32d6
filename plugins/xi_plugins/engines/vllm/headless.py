"""Run by path in the child of a rank above 0: `python headless.py MODEL --headless …` is `vllm serve MODEL --headless …`.

The module that the other ranks' children run starts a server whatever `--headless` says, and vLLM's own command wants a distribution of
the name `vllm`, which its CPU build is not. Imported by nothing; vLLM is loaded here.
"""

from __future__ import annotations

import os


def main() -> None:
    """Become the part of vLLM that runs this machine's share. Ends with status 2, as argparse does, where an option is wrong."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # as vLLM's own commands do
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    (serve,) = cmd_init()
    parser = serve.subparser_init(FlexibleArgumentParser(prog="vllm").add_subparsers())
    parser.usage = None  # argparse's own, which lists the options: xi looks there for names like a wrong one
    arguments = parser.parse_args()
    serve.validate(arguments)
    serve.cmd(arguments)


if __name__ == "__main__":  # vLLM's processes import this file again
    main()
