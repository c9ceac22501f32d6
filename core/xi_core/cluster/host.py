"""What a worker tells of its machine: devices, by the probes of plugins, and the facts that engines' `probe` and `match` may ask for."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from xi_core.cluster.devices import Device, DeviceProbeInfo
from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.importing import import_path
from xi_core.models.family import ModelSpec
from xi_core.models.inspect import inspect, local_path

log = logging.getLogger(__name__)


def find_devices(probes: Iterable[DeviceProbeInfo], environ: Mapping[str, str]) -> list[Device]:
    """All devices that the probes find and that CUDA_VISIBLE_DEVICES in `environ` leaves; a probe that fails is logged and finds none."""
    found: list[Device] = []
    for info in probes:
        try:
            found += import_path(info.probe)().devices()
        except Exception:
            log.exception("device probe %s failed; its devices are not used", info.name)
    return [device for device in found if _visible(device, environ.get("CUDA_VISIBLE_DEVICES"))]


def _visible(device: Device, setting: str | None) -> bool:
    """Whether CUDA's own setting leaves this device. Names that aren't numbers (a UUID) leave all: they can't be compared."""
    if device.kind != "cuda" or setting is None:
        return True
    names = [name.strip() for name in setting.split(",") if name.strip()]
    return not all(name.isdecimal() for name in names) or device.id.partition(":")[2] in names


def host_info(devices: Iterable[Device]) -> HostInfo:
    """The facts of this machine."""
    return HostInfo(
        system=platform.system().lower(),
        machine=platform.machine(),
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=_memory(),
        device_kinds=tuple(dict.fromkeys(d.kind for d in devices)),
    )


def probe_engines(engines: Iterable[EngineInfo], host: HostInfo) -> dict[str, Support]:
    """Per engine, whether it runs here."""
    return {info.name: _asked(info, partial(info.probe, host)) for info in engines}


def match_engines(engines: Iterable[EngineInfo], model: ModelSpec, host: HostInfo) -> dict[str, Support]:
    """Per engine, whether it runs this model here."""
    return {info.name: _asked(info, partial(info.match, model, host)) for info in engines}


def inspect_path(engines: Iterable[EngineInfo], path: Path) -> ModelSpec:
    """What `path` holds: asked of the engines with formats of their own, then read as Hugging Face or GGUF. Raises `ArtifactError`."""
    path = local_path(path)
    for info in engines:
        try:
            found = info.inspect(path) if info.inspect is not None else None
        except Exception:  # a plugin's fault must not hide the other engines
            log.exception("engine %s could not say what %s holds", info.name, path)
            continue
        if found is not None:
            return found
    return inspect(path)


def _asked(info: EngineInfo, ask: Callable[[], Support]) -> Support:
    try:
        return ask()
    except Exception as error:
        log.exception("engine %s could not say whether it is supported", info.name)
        return Support(ok=False, reason=f"its plugin failed: {type(error).__name__}: {error}")


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
