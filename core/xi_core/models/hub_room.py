"""Room on the disk for what a download still needs: one that can't fit is refused before it begins. Used by `hub.py`.

Downloads of other processes aren't known here; a disk that is full all the same is told by whoever writes to it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from xi_core.byte_size import in_words
from xi_core.errors import ArtifactError
from xi_core.models.cache import KEPT
from xi_core.models.cache_disk import disk_error
from xi_core.models.downloading import part_path
from xi_core.models.hub_files import HubFile

_OWN = re.compile(r"[0-9a-f]{32}|[0-9a-f]{40}\.sha256")
"""Files of xi's own in a download's folder: what came of a file, and noted hashes."""
_lock = threading.Lock()
_running: dict[object, tuple[int, Callable[[], int]]] = {}
"""Of each download of this process: its file system, and the bytes that it still needs there."""


@contextlib.contextmanager
def room_for(id: str, root: Path, folder: Path, files: Iterable[HubFile], fetched: Callable[[], int]) -> Iterator[None]:
    """Around a download of these files to `folder` below `root`; `fetched` tells how many bytes have come.

    Raises `ArtifactError` at once where they don't fit beside what the other downloads of this process still need.
    """
    own = object()
    try:
        needed, disk = still_needed(files, folder), root.stat().st_dev
        with _lock:
            others = sum(left() for other, left in _running.values() if other == disk)
            _check(id, root, needed, others)
            _running[own] = disk, lambda: max(0, needed - fetched())
    except OSError as error:
        raise disk_error(root, error) from error
    try:
        yield
    finally:
        with _lock:
            del _running[own]


def still_needed(files: Iterable[HubFile], folder: Path) -> int:
    """Bytes that are to come for these files, of which what lies in `folder`, a download's own, is there already. Raises `OSError`.

    What a hub's library left there counts as there too: it is gone on with, or written over.
    """
    sizes = {part_path(folder, file): file.size for file in files}
    needed = sum(sizes.values())
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != KEPT]
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path in sizes:
                    needed -= min(path.stat().st_size, sizes[path])
                elif not _OWN.fullmatch(path.name):
                    needed -= path.stat().st_size
    return max(0, needed)


def _check(id: str, root: Path, needed: int, others: int) -> None:
    """Raises `ArtifactError` where so many bytes don't fit."""
    usage = shutil.disk_usage(root)
    if not needed or not usage.total or needed + others <= usage.free:  # a file system that doesn't tell has a total of 0
        return
    also = f", of which other downloads still need {in_words(others)}" if others else ""
    raise ArtifactError(
        f"{id} needs {in_words(needed)} more in {root}, and {in_words(usage.free)} are free on its disk{also}; nothing was downloaded. "
        f"Make room (xi cached, xi remove-cache), or set XI_HOME to another disk, and launch again"
    )
