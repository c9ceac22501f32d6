"""What this process may use of its machine: main memory and processors, and of those only its share in a container.

Whatever places or sizes by these figures asks here, so that there is one answer. In Docker and Kubernetes `/proc/meminfo`, `os.sysconf` and
`os.cpu_count` tell of the host; what a process may have is in its cgroups, of version 2 or 1, and in those above them. Who reckons by the
host there is killed when the memory is used up, and runs threads that wait for each other's time.

`root` is where `/proc` and `/sys` are, for tests. What can't be read limits nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from msgspec import Struct

ROOT = Path("/")
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""How mountinfo writes blanks in names."""


class Memory(Struct, frozen=True):
    """Bytes of main memory; 0 where nobody knows."""

    total: int
    available: int
    """What is left of `total` without taking anything from others: copies of files that nobody has used for a while count as left."""


class Cgroup(Struct, frozen=True):
    """A folder of limits."""

    path: Path
    unified: bool
    """Of version 2."""


# ---- memory ---------------------------------------------------------------------------------------


def memory(root: Path = ROOT) -> Memory:
    """Main memory that this process may use."""
    total, available = _of_machine(root)
    for group in _cgroups(root, "memory"):
        limit, used = _limit(group)
        if limit is None:
            continue
        left = max(0, limit - used)
        total, available = (min(total, limit), min(available, left)) if total else (limit, left)
    return Memory(total, min(available, total))


def _of_machine(root: Path) -> tuple[int, int]:
    """Total and available."""
    told = _table(root / "proc/meminfo")
    if told.get("MemTotal"):
        total = told["MemTotal"] * 1024
        return total, told.get("MemAvailable", told["MemTotal"]) * 1024
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0, 0
    return total, total


def _limit(group: Cgroup) -> tuple[int | None, int]:
    """Bytes that the group may have, and that it has. From `memory.high` on, its processes are slowed down until they crawl."""
    stat = _table(group.path / "memory.stat")
    if group.unified:
        limits = [_number(group.path / "memory.max"), _number(group.path / "memory.high")]
        used, idle = _number(group.path / "memory.current"), stat.get("inactive_file", 0)
    else:
        limits = [_number(group.path / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
        used, idle = _number(group.path / "memory.usage_in_bytes"), stat.get("total_inactive_file", 0)
    return min((limit for limit in limits if limit), default=None), max(0, (used or 0) - idle)


# ---- processors -----------------------------------------------------------------------------------


def cpus(root: Path = ROOT) -> int:
    """Processors that this process may use: those of its set, or fewer where it has only a share of their time."""
    return cpus_by_quota(root) or _set()


def cpus_by_quota(root: Path = ROOT) -> int | None:
    """As `cpus` where the time is what limits, None elsewhere: OpenMP, and most that count processors, see the set of them only."""
    quota = min((share for group in _cgroups(root, "cpu") if (share := _share(group))), default=math.inf)
    return max(1, math.ceil(quota)) if quota <= _set() - 1 else None


def fewer_than_cores(root: Path = ROOT) -> int | None:
    """As `cpus` where that is less than the machine's cores, None elsewhere: llama.cpp takes a thread for each, whatever it may use."""
    usable = cpus(root)
    return usable if usable < _cores(root) else None


def _cores(root: Path) -> int:
    siblings = {_text(path) for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings")}
    return len(siblings) or os.cpu_count() or 1


def _set() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(group: Cgroup) -> float | None:
    """Seconds of processors' time per second."""
    if group.unified:
        quota, _, period = _text(group.path / "cpu.max").partition(" ")
    else:
        quota, period = _text(group.path / "cpu.cfs_quota_us"), _text(group.path / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


# ---- cgroups --------------------------------------------------------------------------------------


def _cgroups(root: Path, controller: str) -> Iterator[Cgroup]:
    """The process's groups that may limit it by this controller, each with those above it, as far as they are mounted."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top, own = _mounted(root, "" if not controllers else controller, PurePosixPath(name))
        if top is None:
            continue
        for folder in (own, *own.parents):
            yield Cgroup(folder, unified=not controllers)
            if folder == top:
                break


def _mounted(root: Path, controller: str, name: PurePosixPath) -> tuple[Path | None, Path]:
    """Where a hierarchy is mounted, and the folder of the group `name` in it: the mount itself where the group isn't seen from here."""
    found: Path | None = None
    for mount, top in _mounts(root, controller):
        if name.is_relative_to(mount) and ".." not in (*name.parts, *mount.parts):
            own = top / name.relative_to(mount)
            if own.is_dir():
                return top, own
        found = found or top
    return found, found or root


def _mounts(root: Path, controller: str) -> Iterator[tuple[PurePosixPath, Path]]:
    """Of each mount of a hierarchy (version 1's of this controller, version 2's for none): the group that is at its top, and the folder."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or kind[0] != ("cgroup" if controller else "cgroup2"):
            continue
        if not controller or controller in kind[-1].split(","):
            mount, top = (_ESCAPED.sub(lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
            yield PurePosixPath(mount), root / top.lstrip("/")


# ---- files ----------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int | None:
    """None for `max` and for what can't be read."""
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = [line.replace(":", " ").split() for line in _text(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
