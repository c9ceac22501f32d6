"""Built-in device probes. A machine where none finds a device runs replicas on CPU."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.cluster.devices import DeviceProbeInfo
from xi_core.hookspecs import hookimpl


@hookimpl
def xi_devices() -> Iterable[DeviceProbeInfo]:
    """CUDA devices."""
    return [DeviceProbeInfo(name="cuda", probe="xi_plugins.devices.cuda:CudaProbe", description="NVIDIA GPUs, by NVML or nvidia-smi")]
