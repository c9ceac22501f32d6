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
from xi_plugins.devices import cuda, links
from xi_plugins.devices.cuda import CudaProbe

DATA = Path(__file__).parents[2] / "data" / "devices"
TABLE, TOPOLOGY = DATA / "nvidia-smi-query-gpu.csv", DATA / "nvidia-smi-topo-m.txt"
ANSWER = f'case "$1" in topo) cat "{TOPOLOGY}";; *) cat "{TABLE}";; esac'
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


def test_by_nvidia_smi(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{bare}:/bin:/usr/bin")  # for `cat`
    script(bare, ANSWER)
    first, second, third = CudaProbe().devices()
    assert first == Device(
        id="cuda:0",
        kind="cuda",
        name="NVIDIA H100 80GB HBM3",
        memory=81559 * MIB,
        memory_free=80995 * MIB,
        utilisation=0.07,
        domain="nvlink0",
        uuid="GPU-5f0d4a3e-7c1b-4c2e-9d7e-2f6b8a1c0d11",
    )
    assert (second.memory_free, second.utilisation, second.domain) == (1021 * MIB, 1.0, "nvlink0")
    assert (third.id, third.utilisation, third.domain) == ("cuda:2", 0.0, "nvlink2")


def test_links_of_the_topology() -> None:
    assert links.nvidia_pairs(TOPOLOGY.read_text()) == [(0, 1), (1, 0)]
    assert links.nvidia_pairs("") == links.nvidia_pairs("no driver\n") == []
    assert links.domains([0, 1, 2, 3], [(0, 1), (2, 3)], "nvlink") == {0: "nvlink0", 1: "nvlink0", 2: "nvlink2", 3: "nvlink2"}
    assert links.domains([0, 1, 2, 3], [(3, 2), (2, 1), (0, 3)], "x") == dict.fromkeys(range(4), "x0")
    assert links.domains([0, 1], [(0, 7), (1, 1)], "nvlink") == {0: "", 1: ""}


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

    def __init__(self, broken: bool = False, count: int = 1, mute: bool = False) -> None:
        super().__init__("pynvml")
        self.broken, self.open, self.count, self.mute = broken, 0, count, mute
        self.__spec__ = ModuleSpec("pynvml", None)

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"GPU-{gpu}"

    NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, kind: int) -> int:
        if self.mute:
            raise self.NVMLError("not supported")
        assert kind == self.NVML_P2P_CAPS_INDEX_NVLINK
        return 0 if {one, other} == {0, 2} else 5

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
    (found,) = CudaProbe().devices()
    assert found == Device(id="cuda:0", kind="cuda", name="Fake GPU", memory=8, memory_free=4, utilisation=0.0, uuid="GPU-0")
    assert nvml.open == 0


@pytest.mark.parametrize(("mute", "domains"), [(False, ["nvlink0", "nvlink1", "nvlink0"]), (True, ["", "", ""])])
def test_links_by_nvml(monkeypatch: pytest.MonkeyPatch, mute: bool, domains: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(count=3, mute=mute))
    assert [device.domain for device in CudaProbe().devices()] == domains


def test_broken_nvml_falls_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    script(tmp_path, ANSWER)
    assert [device.id for device in CudaProbe().devices()] == ["cuda:0", "cuda:1", "cuda:2"]


def test_descriptors() -> None:
    found = list(devices.xi_devices())
    assert [info.name for info in found] == ["cuda", "rocm", "apple", "fake"]
    assert all(isinstance(import_path(info.probe)(), DeviceProbe) for info in found)
