"""`xi launch` takes any option: what it doesn't know goes to the engine. Here the command line is parted and values are converted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import click
import msgspec

FLOAT = re.compile(r"^[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?$")
NEGATIVE = re.compile(r"^-[\d.]")


def part(params: Iterable[click.Parameter], args: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Part a command line into the words for click and the engine's options.

    An option that no parameter knows is the engine's: `--name value`, `--name=value`, or bare (true) where an option or the end follows.
    Raises `click.UsageError` for an unknown option with one dash and for an option given twice.
    """
    arity = _arity(params)
    known: list[str] = []
    options: dict[str, Any] = {}
    words = list(reversed(args))
    while words:
        word = words.pop()
        if word == "--":
            return [*known, word, *reversed(words)], options
        name, equals, value = word.partition("=")
        if name in arity:
            known.append(word)
            known.extend(words.pop() for _ in range(0 if equals else min(arity[name], len(words))))
        elif word.startswith("--"):
            _add(options, name, value if equals else _value(words))
        elif word[2:].isdecimal() and arity.get(word[:2]) == 1:  # -r2; not letters: -envs isn't -e nvs
            known.extend((word[:2], word[2:]))
        elif word.startswith("-") and len(word) > 1:
            raise click.UsageError(f"No such option: {word}. An engine's option has two dashes: --{word.lstrip('-')}")
        else:
            known.append(word)
    return known, options


def joined(options: dict[str, Any], **ours: Any) -> dict[str, Any]:
    """`options` with those that have a flag of their own, where they are given. Raises `click.UsageError` for one given both ways."""
    found = {name: value for name, value in ours.items() if value is not None}
    for name in found.keys() & options.keys():
        raise click.UsageError(f"--{name.replace('_', '-')} is given twice")
    return {**options, **found}


def convert(text: str) -> Any:
    """A value as JSON has it (numbers, true and false in any case, objects, lists), else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if FLOAT.match(text) and math.isfinite(float(text)):
        return float(text)
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text
    return value if isinstance(value, int | float | dict | list) else text


def _arity(params: Iterable[click.Parameter]) -> dict[str, int]:
    """How many words follow each option that click knows; `--help` is one of them."""
    found = {"-h": 0, "--help": 0}
    for param in params:
        if isinstance(param, click.Option):
            words = 0 if param.is_flag else param.nargs
            found.update(dict.fromkeys([*param.opts, *param.secondary_opts], words))
    return found


def _value(words: list[str]) -> str | None:
    """The value that follows an engine's option, taken off the words; None for a bare one."""
    if words and (not words[-1].startswith("-") or NEGATIVE.match(words[-1])):
        return words.pop()
    return None


def _add(options: dict[str, Any], name: str, value: str | None) -> None:
    key = name.removeprefix("--").replace("-", "_")
    if not key:
        raise click.UsageError(f"'{name}={value}' names no option")
    if key in options:
        raise click.UsageError(f"{name} is given twice")
    options[key] = True if value is None else convert(value)
