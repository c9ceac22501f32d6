"""From a launch's options to the command line of a server that reads it with argparse, and from argparse's complaint back to an error.

Pure; called by engines built on `ChildServerEngine`, before the server starts and after it has ended badly.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from xi_core.errors import UnknownOption
from xi_core.process_end import how_ended

_ARGPARSE = how_ended(2)
_Positive = Annotated[int, Meta(ge=1)]
_COMPLAINT = re.compile(r"^\S.*?: error: (.+)$")
_OPTION = re.compile(r"--[A-Za-z][\w-]*")
_CAUSE = re.compile(r"(?:^|[\s)])((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)): ?(.*)$")
_TOO_LONG = re.compile(r"(?:max_model_len|context_length) \((\d+)\) is greater than the derived \w+ \((?:\w+=)?(\d+)")
_FOLLOWED = re.compile(r"validation errors? for")


def normalised(options: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """`options` with underscores in their names and other names replaced. Raises `UnknownOption` for one that is given twice."""
    found: dict[str, Any] = {}
    for given, value in options.items():
        name = given.replace("-", "_")
        name = aliases.get(name, name)
        if name in found and found[name] != value:
            raise UnknownOption(f"option '{name}' is given twice, as {found[name]!r} and {value!r}", param=name)
        found[name] = value
    return found


def refuse(engine: str, options: Iterable[str], reserved: Mapping[str, str]) -> None:
    """Raises `UnknownOption` for an option that xi sets itself; `reserved` maps it to what to do instead."""
    for name in options:
        if name in reserved:
            raise UnknownOption(f"option '{name}' of engine {engine} can't be given: {reserved[name]}", param=name)


def flags(options: Mapping[str, Any], *, negated: bool) -> list[str]:
    """Command line words: `--name=value`, bare for true, `--no-name` for false where `negated`, JSON for objects, words for lists."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None or (value is False and not negated):
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words += [flag, *(_text(item) for item in value)]
        else:
            words.append(f"{flag}={_text(value)}")
    return words


def count(engine: str, options: Mapping[str, Any], name: str) -> int | None:
    """An option that is a whole number from 1 on; None where it isn't given. Raises `UnknownOption`."""
    value = options.get(name)
    if value is None:
        return None
    try:
        return msgspec.convert(value, type=_Positive, strict=False)
    except msgspec.ValidationError:
        raise UnknownOption(f"option '{name}' of engine {engine} is {value!r}; it is a whole number from 1 on", param=name) from None


def checked_context(engine: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with a `context_length` that is a number, where it is given. Raises `UnknownOption` where it is none."""
    return {
        name: count(engine, {"context_length": value}, "context_length") if name.replace("-", "_") == "context_length" else value
        for name, value in options.items()
    }


def parallelism(engine: str, options: Mapping[str, Any], devices: int, names: Sequence[str]) -> dict[str, int]:
    """How the model is spread: the options of `names`, whose product is the number of devices; the first takes what the others leave.

    Without devices they are as given. Raises `UnknownOption` where they don't come to the devices that the replica has.
    """
    given = {name: found for name in names if (found := count(engine, options, name)) is not None}
    if not devices:
        return given
    rest = 1
    for name in names[1:]:
        rest *= given.get(name, 1)
    first = given.get(names[0], max(1, devices // rest))
    if first * rest != devices:
        spread = " × ".join(f"{name} {given.get(name, first if name == names[0] else 1)}" for name in names)
        wanted = first * rest
        raise UnknownOption(
            f"engine {engine}: {spread} needs {wanted} devices, and this replica has {devices}; launch it with --n-gpu {wanted}",
            param=next(iter(given), names[0]),
        )
    return {**given, names[0]: first}


def complaint(engine: str, how: str, lines: Sequence[str]) -> UnknownOption | None:
    """The error that argparse has ended with, with options of like names, which its usage lists; None where it was something else.

    `how` it ended, in words, tells it from the complaints of compilers, which servers run as they start: those have the same form.
    """
    if how != _ARGPARSE:
        return None
    found = next((match for line in reversed(lines) if (match := _COMPLAINT.match(line))), None)
    if found is None:
        return None
    message = found[1]
    named = _OPTION.findall(message)
    known = sorted({option for line in lines if line is not found.string for option in _OPTION.findall(line)})
    near = [] if not named or named[0] in known else difflib.get_close_matches(named[0], known, 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return UnknownOption(f"options of engine {engine}: {message}{hint}", param=named[0][2:].replace("-", "_") if named else None)


def too_long(why: str, param: str, own: str = "") -> UnknownOption | None:
    """The error of a context that is longer than the model's own, as vLLM's and SGLang's model configurations complain of it.

    `own`: the engine's own name of the option, where it has another.
    """
    found = _TOO_LONG.search(why)
    if found is None:
        return None
    name = f"{param} ({own})" if own else param
    return UnknownOption(f"{name} {found[1]} is more than the {found[2]} that this model was made for", param=param)


def cause(lines: Sequence[str], not_these: Sequence[str] = ()) -> str:
    """The first exception that the output tells of and that says something particular; empty where there is none."""
    for index, line in enumerate(lines):
        match = _CAUSE.search(line)
        if match is None or any(text in line for text in not_these):
            continue
        text = match[2]
        if _FOLLOWED.search(text):  # pydantic says on the next line what is wrong
            text = next((after for after in (_plain(one) for one in lines[index + 1 : index + 4]) if " " in after), text)
        if text:
            return text
    return ""


def _plain(line: str) -> str:
    """Without the name of the process that vLLM puts before each line."""
    return re.sub(r"^\([^)]*\)\s*", "", line).strip()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
