"""How far a download is, in bytes: a model's, and that of each file of it that is coming."""

from __future__ import annotations

from msgspec import Struct, field

from xi_core.byte_size import in_words


class Transfer(Struct, kw_only=True):
    """Bytes that are coming."""

    done: int
    """Bytes that are there, with those that an earlier download left."""
    total: int
    """Bytes."""
    rate: float = 0.0
    """Bytes per second, on average since it began; what was there before doesn't count."""
    eta: float | None = None
    """Seconds until the rest is there, at this rate; null while that can't be told."""

    def words(self) -> str:
        """As people say it: `1.2 GB of 4.0 GB, 20.0 MB/s, 2 min left`."""
        left = "" if self.eta is None else f", {_time(self.eta)} left"
        return f"{in_words(self.done)} of {in_words(self.total)}, {in_words(self.rate)}/s{left}"


class FileTransfer(Transfer, kw_only=True):
    """One file of a model."""

    name: str
    """Its path in the repository."""
    note: str = ""
    """Why no bytes come, such as a hub that is to be asked again."""


class ModelTransfer(Transfer, kw_only=True):
    """All files of a model that is being downloaded."""

    files: list[FileTransfer] = field(default_factory=list)
    """Those that are coming now."""
    files_done: int = 0
    """How many files are there."""
    files_total: int = 0
    """How many files the model has."""


def _time(seconds: float) -> str:
    """A stretch of time, to two digits at least."""
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 120 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"
