"""Where a model's weights go: one device, or several of one machine with a run of layers on each. Used by loading.py and engine.py.

Several devices are accelerate's doing: it puts each layer on a device and moves what passes between them. They work one after the other:
more memory, not more speed.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from msgspec import Struct

from xi_core.errors import UnknownOption

DeviceMap = Literal["auto", "balanced", "sequential"]
SHARE = 0.9
"""Most of a device's free memory that weights may take where there are several: keys, values and what a pass computes need the rest."""


class Layout(Struct, kw_only=True, frozen=True):
    """The devices of a model, and how its layers are spread over them if there are several."""

    devices: tuple[torch.device, ...]
    device_map: DeviceMap = "auto"

    @property
    def first(self) -> torch.device:
        """Where token ids go in and logits come out."""
        return self.devices[0]

    def arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`: nothing is ever put on a device, or on a disk, that the launch was not given."""
        if len(self.devices) == 1:
            return {"device_map": {"": self.first}}
        memory = {device.index: int(SHARE * torch.cuda.mem_get_info(device)[0]) for device in self.devices}
        return {"device_map": self.device_map, "max_memory": {**memory, "cpu": 0}}


def choose_layout(option: str, devices: list[str], device_map: DeviceMap | None) -> Layout:
    """The devices to load on, by the options `device` and `device_map` and by what the launch was given. Raises `UnknownOption`."""
    given = [name for name in devices if name.startswith(("cuda", "rocm"))]  # torch's ROCm build calls its devices cuda too
    if option != "auto" and len(given) > 1:
        raise UnknownOption(f"device {option} is one device, the launch was given {len(given)}: leave the option out", param="device")
    if device_map is not None and len(given) < 2:
        raise UnknownOption(
            f"device_map {device_map} spreads a model over several devices, and the launch has {len(given)}: --n-gpu 2 gives it two",
            param="device_map",
        )
    if len(given) < 2:
        return Layout(devices=(_device(option if option != "auto" else given[0] if given else "cpu"),))
    _check_cuda(" and ".join(given), "n_gpu")
    seen = torch.cuda.device_count()
    indexes = [int(name.partition(":")[2] or 0) for name in given]
    if max(indexes) >= seen:  # the process sees only the devices that it was given, numbered from 0
        indexes = list(range(len(given)))
    if len(given) > seen:
        raise UnknownOption(f"the launch was given {len(given)} devices, torch {torch.__version__} finds {seen} here", param="n_gpu")
    return Layout(devices=tuple(torch.device("cuda", index) for index in indexes), device_map=device_map or "auto")


def choose_device(option: str, devices: list[str]) -> torch.device:
    """The device of a model that runs on one only. Raises `UnknownOption`."""
    layout = choose_layout(option, devices, None)
    if len(layout.devices) > 1:
        raise UnknownOption(
            f"this model runs on one device, {len(layout.devices)} were given: use --n-gpu 1, or --replica {len(layout.devices)}",
            param="n_gpu",
        )
    return layout.first


def _device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    _check_cuda(name, "device")
    index = int(name.partition(":")[2] or 0)
    return torch.device("cuda", index if index < torch.cuda.device_count() else 0)  # numbered from 0, as above


def _check_cuda(name: str, param: str) -> None:
    if not torch.cuda.is_available():
        raise UnknownOption(f"device {name}: torch {torch.__version__} finds no CUDA device here", param=param)
