"""What the cache of models asks of the file system: links, and errors in words. Used by `cache.py` and the sources over the network."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from xi_core.errors import ArtifactError


def link_to(blob: Path, target: Path, coming: Path | None = None) -> None:
    """A hard link, so that the model's folder stands by itself; a symbolic one where the file system has none.

    `coming`: the file that is about to be moved to where the blob will be.
    """
    with contextlib.suppress(OSError):
        if os.path.samefile(coming or blob, target):
            return  # to make it anew would leave the blob without a link for a moment
    target.unlink(missing_ok=True)
    try:
        os.link(coming or blob, target)
    except FileNotFoundError:
        raise
    except OSError:
        target.symlink_to(os.path.relpath(blob, target.parent))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the disk says, as an `ArtifactError` that tells what to do."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> ArtifactError:
    """An error of the disk below `path`, in words. The cache stays as it was."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = "allows no file as large as this" if error.errno == errno.EFBIG else "is full"
        return ArtifactError(
            f"the disk of {path} {what}; what came is kept. Make room (xi cached, xi remove-cache), or set XI_HOME to another disk, "
            f"and launch again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        where = error.filename or path
        return ArtifactError(f"{where} can't be written: {error.strerror}; give this user the right to, or set XI_HOME to another folder")
    return ArtifactError(f"{error.filename or path}: {error.strerror or error}")
