"""The `rocm` device probe: AMD GPUs by `amd-smi`, or by `rocm-smi` where that is all there is. Called by a worker.

The JSON of both differs from release to release in how deep a figure lies; what isn't told counts as 0.
"""

from __future__ import annotations

import json
import logging
import shutil
from functools import lru_cache
from typing import Any

from xi_core.cluster.devices import Device, DeviceProbe
from xi_plugins.devices import links
from xi_plugins.devices.tools import number, output

log = logging.getLogger(__name__)

MIB = 2**20
UNITS = {"B": 1, "KB": 2**10, "MB": MIB, "GB": 2**30}
"""As amd-smi means them."""


class RocmProbe(DeviceProbe):
    """AMD GPUs; none where there is no driver."""

    def devices(self) -> list[Device]:
        if (command := shutil.which("amd-smi")) and (found := _by_amd_smi(command)):
            return found
        command = shutil.which("rocm-smi")
        text = output(command, "--showproductname", "--showuniqueid", "--showmeminfo", "vram", "--showuse", "--json") if command else None
        return parse_rocm_smi(text) if text else []


def _by_amd_smi(command: str) -> list[Device]:
    metric = output(command, "metric", "--mem-usage", "--usage", "--json")
    return parse_amd_smi(metric, *_fixed(command)) if metric else []


@lru_cache(maxsize=4)
def _fixed(command: str) -> tuple[str, str]:
    """What doesn't change while a machine runs: names and links."""
    return output(command, "static", "--asic", "--json") or "", output(command, "topology", "--json") or ""


def parse_amd_smi(metric: str, static: str = "", topology: str = "") -> list[Device]:
    """Devices of the JSON of `amd-smi metric`, with the names of `amd-smi static` and the links of `amd-smi topology`."""
    rows = {row["gpu"]: row for row in _rows(metric) if isinstance(row.get("gpu"), int)}
    asics = {row.get("gpu"): row.get("asic") for row in _rows(static)}
    joined = links.domains(rows, links.amd_pairs(_rows(topology)), "xgmi")
    devices = []
    for gpu, row in sorted(rows.items()):
        memory, usage, asic = _part(row, "mem_usage"), _part(row, "usage"), _part(asics, gpu)
        total, used = _bytes(memory.get("total_vram")), _bytes(memory.get("used_vram"))
        if not total:
            log.warning("amd-smi tells no memory of GPU %s, so it is not used", gpu)
            continue
        devices.append(
            Device(
                id=f"rocm:{gpu}",
                kind="rocm",
                name=str(asic.get("market_name", "")),
                memory=total,
                memory_free=_bytes(memory.get("free_vram")) or max(0, total - used),
                utilisation=number(_value(usage.get("gfx_activity"))) / 100,
                domain=joined[gpu],
            )
        )
    return devices


def parse_rocm_smi(text: str) -> list[Device]:
    """Devices of the JSON of `rocm-smi`: an object for each `cardN`, all values texts."""
    found = _loaded(text)
    cards = found if isinstance(found, dict) else {}
    devices = []
    for name in sorted((n for n in cards if n.startswith("card") and n[4:].isdecimal()), key=lambda n: int(n[4:])):
        card = _part(cards, name)
        total, used = int(number(card.get("VRAM Total Memory (B)"))), int(number(card.get("VRAM Total Used Memory (B)")))
        if not total:
            log.warning("rocm-smi tells no memory of %s, so it is not used", name)
            continue
        devices.append(
            Device(
                id=f"rocm:{name[4:]}",
                kind="rocm",
                name=str(card.get("Card Series") or card.get("Card series") or ""),
                memory=total,
                memory_free=max(0, total - used),
                utilisation=number(card.get("GPU use (%)")) / 100,
            )
        )
    return devices


def _rows(text: str) -> list[dict[str, Any]]:
    """The GPUs of a document of amd-smi: a list, which newer releases have in `gpu_data`."""
    found = _loaded(text) if text else []
    rows = found.get("gpu_data") if isinstance(found, dict) else found
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        log.warning("the JSON of AMD's tool can't be read: %s", error)
        return None


def _part(row: Any, name: Any) -> dict[str, Any]:
    found = row.get(name)
    return found if isinstance(found, dict) else {}


def _value(cell: object) -> object:
    """A bare figure, or the one in `{"value": …, "unit": …}`."""
    return cell.get("value") if isinstance(cell, dict) else cell


def _bytes(cell: object) -> int:
    unit = cell.get("unit", "MB") if isinstance(cell, dict) else "MB"
    return int(number(_value(cell)) * UNITS.get(str(unit), MIB))
