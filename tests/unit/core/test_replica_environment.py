"""The environment of a replica's process, and the devices that a worker offers."""

from __future__ import annotations

import pytest

from xi_core.cluster import host
from xi_core.cluster.devices import Device, DeviceProbe, DeviceProbeInfo
from xi_core.cluster.process import environment
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan


def plan(*devices: str) -> LaunchPlan:
    return LaunchPlan(
        uid="m", replica_id="m-0", incarnation="e-1", engine=EngineRef(name="x", path="x:X"), artifact=Artifact(format="x", path=""),
        endpoint="", devices=list(devices),
    )  # fmt: skip


def test_a_replica_gets_no_secrets_its_own_devices_and_its_tag() -> None:
    found = environment({"XI_API_KEY": "k", "PATH": "/bin"}, plan("cuda:2", "cuda:3"), {"A": "1"})
    assert "XI_API_KEY" not in found
    assert (found["PATH"], found["A"], found["XI_REPLICA_ID"], found["CUDA_VISIBLE_DEVICES"]) == ("/bin", "1", "m-0@e-1", "2,3")
    assert environment({"CUDA_VISIBLE_DEVICES": "7"}, plan(), {})["CUDA_VISIBLE_DEVICES"] == ""


def test_a_replica_on_amd_sees_its_device_whatever_the_workers_own_setting_is() -> None:
    """HIP numbers anew what `ROCR_VISIBLE_DEVICES` leaves: with both, number 1 of one device would be none."""
    found = environment({"ROCR_VISIBLE_DEVICES": "1,3"}, plan("rocm:3"), {})
    assert (found["HIP_VISIBLE_DEVICES"], found.get("ROCR_VISIBLE_DEVICES")) == ("3", None)


class TwoDevices(DeviceProbe):
    def devices(self) -> list[Device]:
        return [Device(id="cuda:0", kind="cuda"), Device(id="cuda:1", kind="cuda"), Device(id="npu:0", kind="npu")]


@pytest.mark.parametrize(
    ("setting", "left"),
    [(None, ["cuda:0", "cuda:1", "npu:0"]), ("1", ["cuda:1", "npu:0"]), ("", ["npu:0"]), ("GPU-5f", ["cuda:0", "cuda:1", "npu:0"])],
)
def test_a_worker_offers_the_devices_that_it_may_see(setting: str | None, left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "import_path", lambda path: {"good": TwoDevices, "bad": int}[path])
    probes = [DeviceProbeInfo(name="b", probe="bad"), DeviceProbeInfo(name="g", probe="good")]
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert [d.id for d in host.find_devices(probes, environ)] == left
