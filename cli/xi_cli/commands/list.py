"""`xi list`: the launches."""

from __future__ import annotations

import shutil
import sys

import click

from xi_cli.options import client_options, connect, json_option, print_json, say


@click.command("list")
@json_option
@client_options
def list_(as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """List the models that are launched, and their LoRA modules.

    Below them it says why one isn't ready.

    \b
    Examples:
      xi list
      xi list --json
    """
    models = connect(endpoint, api_key).models()
    if as_json:
        print_json(models)
    elif not models:
        say("No model is launched. Launch one: xi launch xi-tiny")
    else:
        from xi_cli.draw import table

        table(
            ("UID", "STATE", "MODEL", "ENGINE", "FORMAT", "SIZE (B)", "QUANTIZATION", "REPLICAS", "RESTARTS", "CONTEXT"),
            [
                (
                    m.id,
                    "ASLEEP" if m.asleep_replicas and not m.ready_replicas else m.state,
                    f"LoRA module of {m.parent}" if m.parent else m.model_name,
                    m.model_engine,
                    m.model_format,
                    m.size_in_billions,
                    m.quantization,
                    f"{m.ready_replicas}/{m.replica}" + (f", {m.asleep_replicas} asleep" if m.asleep_replicas else ""),
                    m.restarts,
                    m.context_length,
                )
                for m in models
            ],
        )
        for m in models:
            if m.detail and not m.parent:
                say(_cut(f"{m.id}: {m.state}: {m.detail}"))


def _cut(text: str) -> str:
    """One line, no longer than the terminal is wide."""
    line, most = " ".join(text.split()), width()
    return line if not most or len(line) <= most else line[: most - 1].rstrip() + "…"


def width() -> int:
    """Of the terminal that shows what is said; 0 where none does: nothing is cut then."""
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else 0
