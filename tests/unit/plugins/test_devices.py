"""`xi_plugins.devices`: NVML and nvidia-smi are stood in for, so that these tests say the same on every machine."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from xi_core.cluster.devices import Device, DeviceProbe
from xi_core.importing import import_path
from xi_plugins import devices
from xi_plugins.devices import cuda
from xi_plugins.devices.cuda import CudaProbe

TABLE = "0, NVIDIA H100 80GB HBM3, 81559, 80995, 7\n1, NVIDIA A2, 15356, 1, [N/A]\n"
MIB = 1024 * 1024


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without NVML; what is put into the folder is its PATH."""
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def script(folder: Path, text: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_no_driver_is_no_devices(bare: Path) -> None:
    assert CudaProbe().devices() == []


def test_by_nvidia_smi(bare: Path) -> None:
    script(bare, f"printf '{TABLE}'".replace("\n", "\\n"))
    assert CudaProbe().devices() == [
        Device(id="cuda:0", kind="cuda", name="NVIDIA H100 80GB HBM3", memory=81559 * MIB, memory_free=80995 * MIB, utilisation=0.07),
        Device(id="cuda:1", kind="cuda", name="NVIDIA A2", memory=15356 * MIB, memory_free=MIB, utilisation=0.0),
    ]


def test_failures_are_warned_of(bare: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    script(bare, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert CudaProbe().devices() == []
    assert "status 9" in caplog.text
    assert cuda.parse_table("nonsense\n, , ,\n") == []
    monkeypatch.setattr(cuda, "TIMEOUT", 0.05)
    script(bare, "while :; do :; done")
    assert CudaProbe().devices() == []
    assert "can't be used" in caplog.text


class FakeNvml(types.ModuleType):
    """As much of `pynvml` as the probe calls."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken: bool = False) -> None:
        super().__init__("pynvml")
        self.broken, self.open = broken, 0
        self.__spec__ = ModuleSpec("pynvml", None)

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, gpu: int) -> bytes:
        return b"Fake GPU"

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(total=8, free=4)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> types.SimpleNamespace:
        raise self.NVMLError("not supported")


def test_by_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert CudaProbe().devices() == [Device(id="cuda:0", kind="cuda", name="Fake GPU", memory=8, memory_free=4, utilisation=0.0)]
    assert nvml.open == 0


def test_broken_nvml_falls_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path, f"printf '{TABLE}'".replace("\n", "\\n"))
    assert [device.id for device in CudaProbe().devices()] == ["cuda:0", "cuda:1"]


def test_descriptor() -> None:
    (info,) = devices.xi_devices()
    assert isinstance(import_path(info.probe)(), DeviceProbe)
