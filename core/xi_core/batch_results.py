"""The output file of a batch: what it holds already, and one line more per answer. Used by `xi_core.batch` and `xi batch`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct, field

from xi_core.errors import Conflict, Envelope, InvalidRequest

ID = "batch_req_"
BEGINNING = b'{"id":"' + ID.encode()
"""How every line begins, so that a torn one can be told from another file's end."""


class Reply(Struct, kw_only=True):
    """What the API answered: `body` is a whole answer, or an error's envelope."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class Result(Struct, kw_only=True):
    """One line of the output. `response` is None where no answer came; then `error` says why."""

    id: str = field(default_factory=lambda: ID + secrets.token_hex(12))
    custom_id: str
    response: Reply | None = None
    error: dict[str, str] | None = None

    @property
    def ok(self) -> bool:
        """Whether the request was done."""
        return self.response is not None and self.response.status_code == 200

    @property
    def reason(self) -> str:
        """Why the request wasn't done, in words."""
        if self.response is None:
            return (self.error or {}).get("message", "no answer came")
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(self.response.body, type=Envelope).error.message
        return f"status {self.response.status_code}"


_decode = msgspec.json.Decoder(Result).decode


class Results:
    """The output file, open and locked until `close`. A context manager. `finished` are the custom_ids that it held at the start.

    Lines of failures are taken out, since those requests are sent again, and so is a last line that was cut off.
    """

    def __init__(self, path: Path) -> None:
        """Raises `InvalidRequest` for a file that no batch wrote or that can't be written, `Conflict` while another batch writes it."""
        self.path = path
        self.finished: set[str] = set()
        self._file = -1
        try:
            while not self._opened():
                continue
            self._mend()
        except OSError as error:
            self.close()
            raise InvalidRequest(f"{path} can't be written: {error.strerror or error}") from None
        except BaseException:
            self.close()
            raise

    def add(self, result: Result) -> None:
        """Append one line, at once. Raises `OSError`, such as of a full disk; the file is as before then."""
        end = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            _write(self._file, msgspec.json.encode(result) + b"\n")
        except OSError:
            os.ftruncate(self._file, end)  # another thread may still add its line
            os.lseek(self._file, end, os.SEEK_SET)
            raise

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _opened(self) -> bool:
        """Open and lock the file; False where another batch put a new one in its place in between."""
        self.close()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise InvalidRequest(f"{self.path} is no file that could be read again; give another with -o")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another batch is writing {self.path}; wait for it, or give another file with -o") from None
        return self.path.exists() and os.path.samestat(os.fstat(self._file), self.path.stat())

    def _mend(self) -> None:
        """Read what is there, and leave the lines of finished requests alone in the file, with its end as the place to write."""
        with open(self._file, "rb", closefd=False) as file:
            lines = file.read().splitlines(keepends=True)
        kept = [line for number, line in enumerate(lines, 1) if self._keeps(number, line, last=number == len(lines))]
        whole = [line if line.endswith(b"\n") else line + b"\n" for line in kept]
        if whole != lines:
            self._rewrite(b"".join(whole))
        os.lseek(self._file, 0, os.SEEK_END)

    def _keeps(self, number: int, line: bytes, last: bool) -> bool:
        """Whether a line is that of a finished request."""
        try:
            found = _decode(line)
        except msgspec.DecodeError:
            torn = last and not line.endswith(b"\n") and (line.startswith(BEGINNING) or BEGINNING.startswith(line))
            if torn:
                return False
            raise InvalidRequest(f"{self.path}, line {number}, is no result of a batch; give another file with -o") from None
        if found.ok:
            self.finished.add(found.custom_id)
        return found.ok

    def _rewrite(self, text: bytes) -> None:
        """In one step: a whole file takes this one's place, and is locked before anybody can open it."""
        place = self.path.resolve()
        beside = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        new = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, os.fstat(self._file).st_mode & 0o777)
        try:
            fcntl.flock(new, fcntl.LOCK_EX)
            _write(new, text)
            os.replace(beside, place)
        except BaseException:
            os.close(new)
            beside.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file = new


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
