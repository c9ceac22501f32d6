"""The `cuda` device probe: NVIDIA GPUs by NVML where the module `pynvml` is installed, else by `nvidia-smi`. Called by a worker."""

from __future__ import annotations

import csv
import importlib.util
import logging
import shutil
import subprocess
from typing import Any

from xi_core.cluster.devices import Device, DeviceProbe

log = logging.getLogger(__name__)

FIELDS = "index,name,memory.total,memory.free,utilization.gpu"
TIMEOUT = 10.0
"""Seconds that `nvidia-smi` may take; a GPU in trouble can make it hang."""
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
        return [_nvml_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
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
        name=name.decode() if isinstance(name, bytes) else str(name),
        memory=int(memory.total),
        memory_free=int(memory.free),
        utilisation=utilisation,
    )


def _by_command(command: str) -> list[Device]:
    try:
        done = subprocess.run(
            [command, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("nvidia-smi can't be used, so no GPU is: %s", error)
        return []
    if done.returncode != 0:
        log.warning("nvidia-smi failed with status %s, so no GPU is used: %s", done.returncode, (done.stderr or done.stdout).strip()[:200])
        return []
    return parse_table(done.stdout)


def parse_table(text: str) -> list[Device]:
    """Devices of `nvidia-smi`'s CSV with the columns `FIELDS`, memory in MiB and utilisation in percent; odd lines are left out."""
    devices = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(FIELDS.split(",")) or not row[0].isdecimal():
            log.warning("nvidia-smi: a line that can't be read: %s", ",".join(row))
            continue
        total, free, busy = (_number(cell) for cell in row[2:])
        devices.append(
            Device(
                id=f"cuda:{row[0]}", kind="cuda", name=row[1], memory=int(total * MIB), memory_free=int(free * MIB), utilisation=busy / 100
            )
        )
    return devices


def _number(cell: str) -> float:
    """A figure, or 0 for what the GPU doesn't tell (`[N/A]`)."""
    try:
        return float(cell)
    except ValueError:
        return 0.0
