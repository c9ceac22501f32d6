"""What a launch's status says of why it isn't READY."""

from __future__ import annotations

import pytest

from xi_core.api.control import LaunchSpec, LaunchState, ModelStatus, ReplicaStatus


def replica(number: int, state: LaunchState, stage: str = "", error: str | None = None) -> ReplicaStatus:
    return ReplicaStatus(replica_id=f"m-{number}", state=state, stage=stage, error=error)


def status(state: LaunchState, *replicas: ReplicaStatus, error: str | None = None) -> ModelStatus:
    return ModelStatus(model_uid="m", spec=LaunchSpec(model_name="m"), state=state, created=1, replicas=list(replicas), error=error)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (status("READY", replica(0, "READY", "ready")), ""),
        (status("FAILED", replica(0, "FAILED", error="x"), error="out of luck"), "out of luck"),
        (status("FAILED", replica(0, "FAILED", error="x")), "x"),
        (status("PENDING", replica(0, "PENDING", "waiting: no room")), "waiting: no room"),
        (status("PENDING", replica(0, "PENDING")), ""),
        (status("PENDING", replica(0, "PENDING", "restarting", "it ended: exit status 7")), "restarting: it ended: exit status 7"),
        (status("LOADING", replica(0, "READY"), replica(1, "LOADING", "weights")), "m-1: weights"),
        (
            status("PENDING", replica(0, "READY"), replica(1, "PENDING", "waiting: a"), replica(2, "PENDING", "waiting: a")),
            "m-1, m-2: waiting: a",
        ),
        (
            status("PENDING", replica(0, "PENDING", "waiting: a"), replica(1, "STARTING", "b")),
            "m-0: waiting: a; m-1: b",
        ),
    ],
)
def test_why_it_is_not_ready(what: ModelStatus, told: str) -> None:
    assert what.hindrance() == told
