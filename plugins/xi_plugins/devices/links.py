"""Domains: which devices of a machine are joined by its fast link (NVLink, xGMI). Used by this folder's probes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_GPU = re.compile(r"GPU(\d+)")


def domains(numbers: Iterable[int], pairs: Iterable[tuple[int, int]], link: str) -> dict[int, str]:
    """The domain of each device: devices that a chain of links joins have one; one without a link has its own.

    On a machine without any link all are alike: every domain is empty.
    """
    root = {number: number for number in sorted(numbers)}

    def top(number: int) -> int:
        while root[number] != number:
            number = root[number]
        return number

    linked = False
    for one, other in pairs:
        if one in root and other in root and one != other:
            low, high = sorted((top(one), top(other)))
            root[high] = low
            linked = True
    return {number: f"{link}{top(number)}" if linked else "" for number in root}


def nvidia_pairs(text: str) -> list[tuple[int, int]]:
    """The pairs that `nvidia-smi topo -m` shows as joined by NVLink (`NV4`, `NV18`)."""
    lines = [_STYLE.sub("", line).split("\t") for line in text.splitlines()]
    header = next((line for line in lines if any(_GPU.fullmatch(cell.strip()) for cell in line)), [])
    columns = {at: int(found[1]) for at, cell in enumerate(header) if (found := _GPU.fullmatch(cell.strip()))}
    pairs = []
    for line in lines:
        row = _GPU.fullmatch(line[0].strip())
        if row is None:
            continue
        pairs += [(int(row[1]), columns[at]) for at, cell in enumerate(line) if at in columns and re.fullmatch(r"NV\d+", cell.strip())]
    return pairs


def amd_pairs(rows: Iterable[Mapping[str, object]]) -> list[tuple[int, int]]:
    """The pairs that `amd-smi topology --json` shows as joined by xGMI."""
    pairs = []
    for row in rows:
        links, gpu = row.get("links"), row.get("gpu")
        for link in links if isinstance(links, list) else []:
            other = link.get("gpu") if isinstance(link, dict) else None
            if isinstance(gpu, int) and isinstance(other, int) and link.get("link_type") == "XGMI":
                pairs.append((gpu, other))
    return pairs
