"""The page of settings, for `reference.py`: each field of `xi_core.config.Settings` with what stands under it."""

from __future__ import annotations

import msgspec
from page_texts import cell, code, field_texts, table

from xi_core import config

PROCESSES = ("head", "gateway", "worker", "commands")
HEAD = """# Settings

Made from `xi_core/config.py`. Each is an environment variable, read once when a process starts. Which processes read it stands in a column:

* head: the supervisor and what starts it, of `xi serve` and `xi supervisor`
* gateway: what answers HTTP, of `xi serve`, `xi supervisor` and `xi gateway`
* worker: what runs replicas, of `xi serve` and `xi worker`
* commands: all others of `xi`

`xi serve` and `xi supervisor` hand their environment on to all that they start, so that the column matters where machines join a cluster:
what only the head reads is set there, and what a worker reads on each machine. A Python program with `LLM` reads what a head and a worker
read.
"""


def settings() -> str:
    """Every setting: variable, Xinference's name for it, default, who reads it, meaning."""
    texts = field_texts(config.Settings)
    rows = [_row(field, texts.get(field.name, "")) for field in msgspec.structs.fields(config.Settings)]
    return HEAD + "\n" + table(["variable", "Xinference's name", "default", "read by", "meaning"], rows)


def split_readers(text: str) -> tuple[str, list[str]]:
    """The meaning, and the processes after `Read by:`. Raises `ValueError` where there are none, or others than those above."""
    meaning, mark, named = text.rpartition(" Read by: ")
    readers = named.removesuffix(".").split(", ")
    if not mark or readers != [process for process in PROCESSES if process in readers]:
        raise ValueError(f"{text!r} should end in `Read by:` and some of {', '.join(PROCESSES)}, in this order")
    return meaning, readers


def _row(field: msgspec.structs.FieldInfo, text: str) -> list[str]:
    meaning, readers = split_readers(text)
    default = "" if field.default in (None, "") else str(field.default)
    return [
        code(f"XI_{field.name.upper()}"),
        code(config.XINFERENCE_NAMES.get(field.name, "")),
        code(default),
        ", ".join(readers),
        cell(meaning),
    ]
