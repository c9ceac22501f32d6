"""What is said on a link: the messages of `xi_core.transport.rpc` as they travel, and the vocabulary that types what they carry.

Each message is one msgpack array whose first element is its tag; a command, answer or notice inside it is decoded by the type that the
vocabulary gives, so nothing from a peer ever chooses a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

import msgspec
from msgspec import Raw, Struct

from xi_core.errors import ErrorBody, InvalidRequest, ProtocolMismatch
from xi_core.wire import PROTOCOL, UNREADABLE


class Hello(Struct, array_like=True, tag=1):
    """First message of either side."""

    protocol: int


class Call(Struct, array_like=True, tag=2):
    """A command to answer under `id`."""

    id: int
    command: Raw


class Result(Struct, array_like=True, tag=3):
    """The answer to call `id`."""

    id: int
    answer: Raw


class Failure(Struct, array_like=True, tag=4):
    """Call `id` ended with an error."""

    id: int
    error: ErrorBody


class Notice(Struct, array_like=True, tag=5):
    """Something told; no answer."""

    notice: Raw


class Beat(Struct, array_like=True, tag=6):
    """Sign of life."""


class Bye(Struct, array_like=True, tag=7):
    """The sender has closed the link; `error` says why, where it wasn't by plan."""

    error: ErrorBody | None = None


Message = Hello | Call | Result | Failure | Notice | Beat | Bye

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode
BEAT_MESSAGE = encode(Beat())


class Vocabulary:
    """All that may be said on a link: commands with the types of their answers, and notices. All are tagged structs."""

    def __init__(self, answers: Mapping[type[Struct], type[Struct]], notices: Sequence[type[Struct]]) -> None:
        self._answers = {command: msgspec.msgpack.Decoder(answer) for command, answer in answers.items()}
        self._notices = tuple(notices)
        self._command = _decoder(tuple(answers))
        self._notice = _decoder(self._notices)

    def command(self, body: Raw) -> Struct:
        """The command in `body`. Raises `InvalidRequest` for one that this version doesn't know or whose fields are wrong."""
        command: Struct = _typed(self._command, body, "command")
        return command

    def notice(self, body: Raw) -> Struct:
        """The notice in `body`. Raises `InvalidRequest`."""
        notice: Struct = _typed(self._notice, body, "notice")
        return notice

    def answer(self, command: Struct, body: Raw) -> Struct:
        """The answer to `command` in `body`. Raises `ProtocolMismatch` for one of another type."""
        try:
            return self._answers[type(command)].decode(body)
        except UNREADABLE as error:
            raise ProtocolMismatch(f"the answer to {name_of(command)} can't be read: {error}") from None

    def require_command(self, command: Struct) -> None:
        """Raises `TypeError` for a command that isn't in the vocabulary: a mistake in this program."""
        if type(command) not in self._answers:
            raise TypeError(f"{name_of(command)} is no command of this vocabulary")

    def require_notice(self, notice: Struct) -> None:
        """Raises `TypeError` for a notice that isn't in the vocabulary."""
        if type(notice) not in self._notices:
            raise TypeError(f"{name_of(notice)} is no notice of this vocabulary")


def _decoder(types: tuple[type[Struct], ...]) -> msgspec.msgpack.Decoder[Any] | None:
    for cls in types:
        if cls.__struct_config__.tag is None:
            raise TypeError(f"{cls.__name__} has no tag; write class {cls.__name__}(Struct, tag=...)")
    return msgspec.msgpack.Decoder(Union[types]) if types else None  # noqa: UP007 - made of a tuple at run time


def _typed(decoder: msgspec.msgpack.Decoder[Any] | None, body: Raw, noun: str) -> Any:
    try:
        if decoder is not None:
            return decoder.decode(body)
    except UNREADABLE as error:
        raise InvalidRequest(f"this side doesn't understand the {noun}: {error}") from None
    raise InvalidRequest(f"this side knows no {noun}s")


def name_of(message: Struct) -> str:
    """The name of a message's type, for people."""
    return type(message).__name__


def mismatch(theirs: int) -> ProtocolMismatch:
    """The other side speaks protocol `theirs`."""
    return ProtocolMismatch(f"protocol {theirs} on one side, {PROTOCOL} on the other; run the same version of xi in every process")


def objection(message: bytes) -> ProtocolMismatch | None:
    """Why a peer's first message is no greeting in this protocol."""
    try:
        said = decode(message)
    except UNREADABLE as error:
        return ProtocolMismatch(f"the first message can't be read: {error}")
    if not isinstance(said, Hello):
        return ProtocolMismatch(f"the first message is {name_of(said)}, not Hello; dial again")
    return None if said.protocol == PROTOCOL else mismatch(said.protocol)
