"""`--lora-modules` of `xi launch`: names and directories of LoRA adapters, in the forms that users know from vLLM and Xinference."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

FLAGS = ("--lora-modules", "-lm")
_PAIR = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*=.+")


def spread(args: list[str]) -> list[str]:
    """`args` with the flag before each of its values: `--lora-modules a=x b=y` becomes `--lora-modules a=x --lora-modules b=y`.

    A name without `=` takes the next word as its directory: `--lora-modules a x`.
    """
    found: list[str] = []
    words = list(reversed(args))
    while words:
        word = words.pop()
        if word == "--":
            return [*found, word, *reversed(words)]
        flag, equals, value = word.partition("=")
        if flag not in FLAGS or not (equals or words):
            found.append(word)
            continue
        value = value if equals else words.pop()
        if "=" not in value and words and not words[-1].startswith("-"):
            value = f"{value}={words.pop()}"
        found += [flag, value]
        while words and _PAIR.fullmatch(words[-1]):
            found += [flag, words.pop()]
    return found


def parsed(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Name → directory, made absolute where it is here. Raises `click.BadParameter` for no NAME=PATH, and for a name given twice."""
    modules: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (equals and name and path):
            raise click.BadParameter(f"'{value}' is not NAME=PATH, such as sql=./sql-adapter")
        if name in modules:
            raise click.BadParameter(f"the name '{name}' is given twice")
        modules[name] = _absolute(path)
    return modules


def _absolute(text: str) -> str:
    path = Path(os.path.expanduser(text))
    return str(path.absolute()) if path.exists() else text
