"""Probes of AMD's and Apple's devices, by what their tools print, and devices that are made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.cluster.devices import Device
from xi_core.cluster.host import find_devices
from xi_core.config import settings
from xi_core.errors import ConfigError
from xi_plugins import devices
from xi_plugins.devices import apple, fake, rocm

DATA = Path(__file__).parents[2] / "data" / "devices"
GIB, MIB = 2**30, 2**20


def text(name: str) -> str:
    return (DATA / name).read_text()


def tool(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_amd_smi(caplog: pytest.LogCaptureFixture) -> None:
    first, second = rocm.parse_amd_smi(text("amd-smi-metric.json"), text("amd-smi-static-asic.json"), text("amd-smi-topology.json"))
    assert first == Device(
        id="rocm:0",
        kind="rocm",
        name="AMD Instinct MI300X",
        memory=196592 * MIB,
        memory_free=192496 * MIB,
        utilisation=0.37,
        domain="xgmi0",
    )
    assert (second.memory_free, second.utilisation, second.domain) == (0, 0.0, "xgmi0")
    assert "no memory of GPU 2" in caplog.text


def test_amd_smi_of_an_older_release() -> None:
    (found,) = rocm.parse_amd_smi(text("amd-smi-metric-of-older-release.json"))
    assert (found.memory, found.memory_free, found.name, found.domain) == (20464 * MIB, 20438 * MIB, "", "")


def test_rocm_smi() -> None:
    first, second = rocm.parse_rocm_smi(text("rocm-smi.json"))
    assert first == Device(
        id="rocm:0",
        kind="rocm",
        name="AMD Instinct MI250X / MI250",
        memory=68702699520,
        memory_free=60112764928,
        utilisation=0.83,
    )
    assert (second.id, second.utilisation) == ("rocm:1", 0.0)


@pytest.mark.parametrize("damaged", ["", "{", "[]", "[1]", '{"gpu_data": {}}', '[{"gpu": "x"}]', '{"card0": 7}', "null"])
def test_what_cannot_be_read_is_no_device(damaged: str) -> None:
    assert rocm.parse_amd_smi(damaged) == rocm.parse_rocm_smi(damaged) == []


def test_the_older_tool_is_asked_where_the_newer_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rocm.RocmProbe().devices() == []
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    tool(tmp_path, "amd-smi", "exit 255")
    tool(tmp_path, "rocm-smi", f'cat "{DATA}/rocm-smi.json"')
    assert [device.id for device in rocm.RocmProbe().devices()] == ["rocm:0", "rocm:1"]
    answer = f'case "$1" in metric) f=metric;; static) f=static-asic;; *) f=topology;; esac; cat "{DATA}/amd-smi-$f.json"'
    tool(tmp_path, "amd-smi", answer)
    assert [device.domain for device in rocm.RocmProbe().devices()] == ["xgmi0", "xgmi0"]


def test_a_mac() -> None:
    (found,) = apple.parse(text("sysctl-of-m2-max.txt"), text("vm_stat-of-m2-max.txt"))
    assert found == Device(id="mps:0", kind="mps", name="Apple M2 Max", memory=48 * GIB, memory_free=2_020_000 * 16384)


def test_limits_of_a_macs_memory() -> None:
    (set_by_hand,) = apple.parse("hw.memsize: 68719476736\niogpu.wired_limit_mb: 60000\n", "")
    assert set_by_hand.memory == set_by_hand.memory_free == 60000 * MIB
    (small,) = apple.parse("hw.memsize: 17179869184\n", "")
    assert small.memory == 16 * GIB * 2 // 3
    assert apple.parse("", "") == apple.parse("sysctl: unknown oid 'hw.memsize'\n", "") == []


def test_other_machines_are_no_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apple.platform, "system", lambda: "Linux")
    assert apple.AppleProbe().devices() == []
    monkeypatch.setattr(apple.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(apple.platform, "machine", lambda: "x86_64")
    assert apple.AppleProbe().devices() == []


@pytest.mark.parametrize(
    ("described", "found"),
    [
        ("", []),
        ("2x80GiB", [("fake:0", 80 * GIB), ("fake:1", 80 * GIB)]),
        ("cuda:0=80GiB, cuda:1=24GiB", [("fake-cuda:0", 80 * GIB), ("fake-cuda:1", 24 * GIB)]),
        ("fake:3=1GiB", [("fake:3", GIB)]),
        ("1x80,1x24GB", [("fake:0", 80 * GIB), ("fake:1", 24 * 10**9)]),
    ],
)
def test_made_up_devices(described: str, found: list[tuple[str, int]]) -> None:
    made = fake.parse(described)
    assert [(device.id, device.memory) for device in made] == found
    assert all(device.kind == "fake" and device.memory_free == device.memory for device in made)


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ("80GiB", "neither like 4x80GiB"),
        ("4x", "neither like 4x80GiB"),
        ("4xmany", "'many' is no size"),
        ("0x80GiB", "0 devices; 1 to 1024"),
        ("9999x1GiB", "9999 devices; 1 to 1024"),
        ("cuda:0=1GiB,cuda:0=2GiB", "fake-cuda:0 is described twice"),
        ("cuda=80GiB", "neither like"),
    ],
)
def test_what_is_no_description(described: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        fake.parse(described)
    assert caught.value.param == "XI_FAKE_DEVICES"


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    settings.cache_clear()
    yield monkeypatch
    settings.cache_clear()


def test_made_up_devices_take_the_place_of_real_ones(described: pytest.MonkeyPatch) -> None:
    described.setenv("XI_FAKE_DEVICES", "cuda:0=8GiB")
    described.setattr("xi_plugins.devices.cuda.CudaProbe.devices", lambda self: [Device(id="cuda:0", kind="cuda")])
    assert [device.id for device in find_devices(devices.xi_devices(), {"CUDA_VISIBLE_DEVICES": ""})] == ["fake-cuda:0"]


def test_a_description_that_cannot_be_read_is_no_probe_that_fails(described: pytest.MonkeyPatch) -> None:
    described.setenv("XI_FAKE_DEVICES", "nonsense")
    with pytest.raises(ConfigError, match="XI_FAKE_DEVICES"):
        find_devices(devices.xi_devices(), {})
