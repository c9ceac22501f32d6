"""What a worker tells of its machine: devices, by the probes of plugins, and the facts that engines' `probe` and `match` may ask for."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from xi_core.cluster.devices import FAKE, Device, DeviceProbeInfo
from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.errors import ConfigError
from xi_core.importing import import_path
from xi_core.machine import cpus, memory
from xi_core.models.family import ModelSpec
from xi_core.models.inspect import inspect, local_path

log = logging.getLogger(__name__)


def find_devices(probes: Iterable[DeviceProbeInfo], environ: Mapping[str, str]) -> list[Device]:
    """All devices that the probes find and that the settings of CUDA and HIP in `environ` leave; a probe that fails is logged.

    Where devices are made up, no others are used. Raises `ConfigError` where the description of those can't be read.
    """
    found: list[Device] = []
    for info in probes:
        try:
            found += import_path(info.probe)().devices()
        except ConfigError:
            raise
        except Exception:
            log.exception("device probe %s failed; its devices are not used", info.name)
    made_up = [device for device in found if device.kind == FAKE]
    return made_up or [device for device in found if _visible(device, environ)]


VISIBLE = {"cuda": ("CUDA_VISIBLE_DEVICES",), "rocm": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")}
"""Variables that hide devices of a kind. HIP heeds CUDA's too."""


def _visible(device: Device, environ: Mapping[str, str]) -> bool:
    """Whether the driver's own settings leave this device."""
    return all(_left(device, environ[name]) for name in VISIBLE.get(device.kind, ()) if name in environ)


def _left(device: Device, setting: str) -> bool:
    """Numbers, and UUIDs or their beginnings; as in CUDA, what can't be read ends the list. What can't be compared (a slice of a GPU,
    MIG, or a probe that tells no UUID) leaves the device in sight."""
    for name in (name.strip() for name in setting.split(",")):
        if name.isdecimal():
            if name == device.id.partition(":")[2]:
                return True
        elif name.startswith("MIG-"):
            return True
        elif not name.startswith("GPU-"):
            return False
        elif not device.uuid or device.uuid.startswith(name):
            return True
    return False


def host_info(devices: Iterable[Device]) -> HostInfo:
    """The facts of this machine, as far as this process may use it."""
    found = list(devices)
    return HostInfo(
        system=platform.system().lower(),
        machine=platform.machine(),
        python=platform.python_version(),
        cpus=cpus(),
        memory=memory().total,
        device_kinds=tuple(dict.fromkeys(d.kind for d in found)),
        device_memory=max((d.memory for d in found), default=0),
    )


def probe_engines(engines: Iterable[EngineInfo], host: HostInfo) -> dict[str, Support]:
    """Per engine, whether it runs here."""
    return {info.name: _asked(info, partial(info.probe, host)) for info in engines}


def match_engines(engines: Iterable[EngineInfo], model: ModelSpec, host: HostInfo) -> dict[str, Support]:
    """Per engine, whether it runs this model here."""
    return {info.name: _asked(info, partial(_match, info, model, host)) for info in engines}


def _match(info: EngineInfo, model: ModelSpec, host: HostInfo) -> Support:
    if model.pickled and not info.pickles:
        return Support(
            ok=False, reason=f"weights in pickled files (.bin), which engine {info.name} doesn't read; convert them to safetensors"
        )
    return info.match(model, host)


def inspect_path(engines: Iterable[EngineInfo], path: str | Path, *, pickled: bool = False) -> ModelSpec:
    """What `path` holds: asked of the engines with formats of their own, then read as Hugging Face or GGUF. Raises `ArtifactError`.

    `pickled`: as in `inspect`.
    """
    path = local_path(path)
    for info in engines:
        try:
            found = info.inspect(path) if info.inspect is not None else None
        except Exception:  # a plugin's fault must not hide the other engines
            log.exception("engine %s could not say what %s holds", info.name, path)
            continue
        if found is not None:
            return found
    return inspect(path, pickled=pickled)


def _asked(info: EngineInfo, ask: Callable[[], Support]) -> Support:
    try:
        return ask()
    except Exception as error:
        log.exception("engine %s could not say whether it is supported", info.name)
        return Support(ok=False, reason=f"its plugin failed: {type(error).__name__}: {error}")
