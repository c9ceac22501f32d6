"""How a launch failed is in the supervisor's log, and told to who asks for a log that there is none of."""

from __future__ import annotations

import time

import msgspec
import pytest
from supervisor_stage import Stage, until_ended

from xi_core.cluster import messages as m
from xi_core.errors import NoPlacement, Unavailable
from xi_core.testing.waiting import until


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "FAILED" in r.getMessage()]


@pytest.mark.parametrize("stage", [{"launch_timeout": 1.0}], indirect=True)
async def test_a_launch_whose_time_is_over(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    await stage.launch(options={"mode": "slow"}, n_gpu=None)
    failed = await until_ended(stage, "FAILED")
    assert failed.error is not None
    assert told(caplog) == [f"launch toy FAILED: {failed.error}"]
    await stage.link.call(m.Terminate("toy"))
    await stage.launch(options={"mode": "slow"}, n_gpu=None)
    await until_ended(stage, "FAILED")
    assert len(told(caplog)) == 2, "another launch of the same name is told of as well"


async def test_a_launch_whose_weights_are_wrong(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    await stage.launch(options={"mode": "fail"}, n_gpu=None)
    await until_ended(stage, "FAILED")
    assert len(told(caplog)) == 1
    assert told(caplog)[0].endswith("the weights are not to my taste")


async def test_a_failure_is_told_once_though_another_launch_of_the_name_is_refused(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    await stage.launch(options={"mode": "fail"}, n_gpu=None)
    await until_ended(stage, "FAILED")
    with pytest.raises(NoPlacement):
        await stage.launch(n_gpu=9)
    await stage.launch(model_uid="other", n_gpu=None)
    await stage.until("READY", "other")
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("stage", [{"launch_timeout": 1.0}], indirect=True)
async def test_the_log_of_what_never_ran(stage: Stage) -> None:
    """Such as of a launch that was wanted before the supervisor was started again, on a machine that hasn't come back."""
    await stage.launch(n_gpu=None)
    lifecycle, executor = stage.supervisor._lifecycle, stage.supervisor._executor
    before = lifecycle.known("toy").wanted
    lifecycle.restore(time.monotonic(), msgspec.structs.replace(before, uid="lost", n_gpu=1, was_ready=False))
    with pytest.raises(Unavailable, match=r"it does not run now$"):
        await stage.link.call(m.ReadLog(uid="lost"))
    executor.do(lifecycle.tick(time.monotonic()))
    with pytest.raises(Unavailable, match="lost-0 has no log to read now: it does not run now; waiting: no worker has 1 device"):
        await stage.link.call(m.ReadLog(uid="lost"))
    await until(lambda: lifecycle.known("lost").end == "FAILED")
    failed = await stage.status("lost")
    with pytest.raises(Unavailable) as raised:
        await stage.link.call(m.ReadLog(uid="lost"))
    assert raised.value.message == f"lost-0 has no log to read now: it never ran; the launch FAILED: {failed.error}"
