"""The `cuda` device probe: NVIDIA GPUs by NVML where the module `pynvml` is installed, else by `nvidia-smi`. Called by a worker."""

from __future__ import annotations

import csv
import importlib.util
import logging
import shutil
from functools import lru_cache
from itertools import combinations
from typing import Any

import msgspec

from xi_core.cluster.devices import Device, DeviceProbe
from xi_plugins.devices import links
from xi_plugins.devices.tools import TIMEOUT, number, output

log = logging.getLogger(__name__)

FIELDS = "index,name,memory.total,memory.free,utilization.gpu,uuid"
MIB = 1024 * 1024


class CudaProbe(DeviceProbe):
    """NVIDIA GPUs; none where there is no driver."""

    def devices(self) -> list[Device]:
        if importlib.util.find_spec("pynvml") is not None:
            found = _by_nvml()
            if found is not None:
                return found
        command = shutil.which("nvidia-smi")
        return _by_command(command) if command else []


def _by_nvml() -> list[Device] | None:
    """The devices; None where NVML can't be used."""
    nvml: Any = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.debug("NVML can't be used: %s", error)
        return None
    try:
        found = [_nvml_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        return _with_domains(found, _nvml_pairs(nvml, len(found)))
    except nvml.NVMLError as error:
        log.warning("NVML failed, so nvidia-smi is asked: %s", error)
        return None
    finally:
        nvml.nvmlShutdown()


def _nvml_device(nvml: Any, index: int) -> Device:
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    memory, name = nvml.nvmlDeviceGetMemoryInfo(gpu), nvml.nvmlDeviceGetName(gpu)
    try:
        utilisation = nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
    except nvml.NVMLError:  # a MIG slice doesn't tell
        utilisation = 0.0
    return Device(
        id=f"cuda:{index}",
        kind="cuda",
        name=_text(name),
        memory=int(memory.total),
        memory_free=int(memory.free),
        utilisation=utilisation,
        uuid=_text(nvml.nvmlDeviceGetUUID(gpu)),
    )


def _nvml_pairs(nvml: Any, count: int) -> list[tuple[int, int]]:
    """The pairs of devices that reach each other by NVLink; none where the driver doesn't tell."""
    gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    try:
        return [
            (one, other)
            for one, other in combinations(range(count), 2)
            if nvml.nvmlDeviceGetP2PStatus(gpus[one], gpus[other], nvml.NVML_P2P_CAPS_INDEX_NVLINK) == nvml.NVML_P2P_STATUS_OK
        ]
    except nvml.NVMLError as error:
        log.debug("NVML doesn't tell of links: %s", error)
        return []


def _with_domains(devices: list[Device], pairs: list[tuple[int, int]]) -> list[Device]:
    """The devices, their ids `cuda:N`, with the domain of each."""
    numbers = {device.id: int(device.id.partition(":")[2]) for device in devices}
    joined = links.domains(numbers.values(), pairs, "nvlink")
    return [msgspec.structs.replace(device, domain=joined[numbers[device.id]]) for device in devices]


def _text(value: bytes | str) -> str:
    """NVML's own binding gives text, older ones bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _by_command(command: str) -> list[Device]:
    text = output(command, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", timeout=TIMEOUT)
    devices = parse_table(text) if text else []
    return _with_domains(devices, list(_topology(command))) if len(devices) > 1 else devices


@lru_cache(maxsize=4)
def _topology(command: str) -> tuple[tuple[int, int], ...]:
    """Asked once: links don't change while a machine runs."""
    return tuple(links.nvidia_pairs(output(command, "topo", "-m", timeout=TIMEOUT) or ""))


def parse_table(text: str) -> list[Device]:
    """Devices of `nvidia-smi`'s CSV with the columns `FIELDS`, memory in MiB and utilisation in percent; odd lines are left out."""
    devices = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(FIELDS.split(",")) or not row[0].isdecimal():
            log.warning("nvidia-smi: a line that can't be read: %s", ",".join(row))
            continue
        total, free, busy = (number(cell) for cell in row[2:5])
        devices.append(
            Device(
                id=f"cuda:{row[0]}",
                kind="cuda",
                name=row[1],
                memory=int(total * MIB),
                memory_free=int(free * MIB),
                utilisation=busy / 100,
                uuid=row[5],
            )
        )
    return devices
