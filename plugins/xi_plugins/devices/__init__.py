"""Built-in device probes. A machine where none finds a device runs replicas on CPU."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.cluster.devices import DeviceProbeInfo
from xi_core.hookspecs import hookimpl


@hookimpl
def xi_devices() -> Iterable[DeviceProbeInfo]:
    """CUDA, ROCm and Apple devices, and made up ones."""
    return [
        DeviceProbeInfo(name="cuda", probe="xi_plugins.devices.cuda:CudaProbe", description="NVIDIA GPUs, by NVML or nvidia-smi"),
        DeviceProbeInfo(name="rocm", probe="xi_plugins.devices.rocm:RocmProbe", description="AMD GPUs, by amd-smi or rocm-smi"),
        DeviceProbeInfo(name="apple", probe="xi_plugins.devices.apple:AppleProbe", description="The GPU of a Mac, by sysctl"),
        DeviceProbeInfo(name="fake", probe="xi_plugins.devices.fake:FakeProbe", description="Devices made up by XI_FAKE_DEVICES"),
    ]
