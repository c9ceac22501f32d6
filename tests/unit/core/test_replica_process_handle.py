"""A replica's process as its worker holds it: its number stays its own until it is let go, and its reports are bounded."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import IO

import pytest

from xi_core.cluster import logs, process
from xi_core.cluster.process import ReplicaProcess
from xi_core.testing.waiting import until
from xi_core.wire import report
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PLAN = LaunchPlan(
    uid="m",
    replica_id="m-0",
    incarnation="e-1",
    engine=EngineRef(name="x", path="x:X"),
    artifact=Artifact(format="x", path=""),
    endpoint="",
)


def run(code: str, log_to: IO[bytes]) -> ReplicaProcess:
    return ReplicaProcess((sys.executable, "-c", code), PLAN, os.environ, log_to)


@pytest.fixture
def log_to(tmp_path: Path) -> IO[bytes]:
    return logs.open_log(tmp_path, "m-0")


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(7)", 7), (f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})", -signal.SIGKILL)]
)
async def test_a_dead_replica_keeps_its_number_until_it_is_closed(code: str, status: int, log_to: IO[bytes]) -> None:
    with log_to:
        held = run(code, log_to)
    await until(lambda: held.returncode is not None, 10.0)
    assert held.returncode == status
    assert exists(held.pid), "its group may still be on the keeper's list: nobody else may get the number"
    held.terminate()
    held.kill()
    held.close()
    assert not exists(held.pid)
    assert held.returncode == status


async def test_a_flood_of_reports_is_bounded_and_its_end_is_heard(log_to: IO[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST_WAITING", 10)
    code = (
        "import os, sys; fd = int(sys.argv[-1])\n"
        'for _ in range(500): os.write(fd, b\'{"type":"stage","stage":"x"}\\n\')\n'
        'os.write(fd, b\'{"type":"failed","error":{"message":"enough"}}\\n\')'
    )
    with log_to:
        held = run(code, log_to)
    try:
        await until(lambda: held.returncode is not None and held._reader < 0, 10.0)
        waiting = [held.reports.get_nowait() for _ in range(held.reports.qsize())]
        assert len(waiting) == 12
        assert isinstance(waiting[-2], report.Failed)
        assert waiting[-1] is None
    finally:
        held.kill()
        await asyncio.sleep(0)
        held.close()


async def test_a_report_that_cannot_be_read_costs_none_of_those_after_it(log_to: IO[bytes]) -> None:
    no_utf8, nested = b'{"type":"stage","stage":"\xff"}', b'{"type":"stage","z":' + b"[" * 2000
    lines = b"\n".join([b"nonsense", no_utf8, nested, b'{"type":"failed","error":{"message":"enough"}}', b""])
    code = f"import os, sys; os.write(int(sys.argv[-1]), {lines!r})"
    with log_to:
        held = run(code, log_to)
    try:
        await until(lambda: held.returncode is not None and held._reader < 0, 10.0)
        waiting = [held.reports.get_nowait() for _ in range(held.reports.qsize())]
        assert [type(one) for one in waiting] == [report.Failed, type(None)]
    finally:
        held.kill()
        await asyncio.sleep(0)
        held.close()


def test_a_log_that_is_written_to_stays_bounded(tmp_path: Path) -> None:
    path = logs.log_file(tmp_path, "m-0")
    with logs.open_log(tmp_path, "m-0") as file:
        for n in range(5):
            file.write(b"%d" % n * 600 + b"\n")
            logs.bound(path, largest=1000)
        file.write(b"the end\n")
    assert path.read_bytes() == b"4" * 600 + b"\nthe end\n"
    old = path.with_name("m-0.log.1")
    assert old.read_bytes() == b"2" * 600 + b"\n" + b"3" * 600 + b"\n"
    assert old.stat().st_mode & 0o777 == 0o600
    logs.bound(tmp_path / "none.log")
