"""The replica's real process, started as a worker starts it, with the fake engines."""

import signal
from pathlib import Path
from typing import Any

import pytest

from xi_core.testing.harness import plan_for
from xi_core.testing.replica_process import replica
from xi_core.wire.plan import LaunchPlan, ServingLimits


def fake(folder: Path, engine: str = "xi_core.testing.fakes:CountingEngine", **options: Any) -> LaunchPlan:
    plan = plan_for(engine, "nowhere", "fake", **options)
    plan.endpoint = f"ipc://{folder}/r.sock"
    plan.limits = ServingLimits(grace=1.0, hang_timeout=0.5)
    return plan


def test_stages_then_ready_then_health(tmp_path: Path) -> None:
    with replica(fake(tmp_path)) as process:
        ready = process.until("ready")
        assert process.seen[:-1] == ["importing", "loading", "loading", "warming up"]
        assert ready["context_length"] == 512
        assert ready["slots"] == 4
        assert "/v1/chat/completions" in ready["manifest"]["endpoints"]
        health = process.until("health")
        assert health["healthy"] is True
        assert health["steps"] > 0, "READY means that a token was made"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_a_clean_exit(tmp_path: Path, how: signal.Signals) -> None:
    with replica(fake(tmp_path)) as process:
        process.until("ready")
        process.child.send_signal(how)
        assert process.child.wait(10) == 0
        assert not (tmp_path / "r.sock").exists()


def test_the_end_of_stdin_ends_it(tmp_path: Path) -> None:
    with replica(fake(tmp_path)) as process:
        process.until("ready")
        assert process.child.stdin is not None
        process.child.stdin.close()
        assert process.child.wait(2) == 3


BAD = """
import time
from xi_core.errors import ArtifactError
from xi_core.testing.fakes import CountingEngine

class Unloadable(CountingEngine):
    def load(self, plan, progress):
        raise ArtifactError("weights.bin is damaged")

class Crashing(CountingEngine):
    def load(self, plan, progress):
        raise ValueError("something else")

class Tokenless(CountingEngine):
    def step(self):
        raise RuntimeError("out of memory")

class Slow(CountingEngine):
    def load(self, plan, progress):
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("engine", "code", "words"),
    [
        ("bad_engine:Unloadable", "artifact_error", "weights.bin is damaged"),
        ("bad_engine:Crashing", "engine_error", "ValueError: something else"),
        ("bad_engine:Tokenless", "engine_error", "out of memory"),
        ("no_such_library:Engine", "engine_not_installed", "no_such_library"),
        ("bad_engine:Missing", "plugin_error", "has no 'Missing'"),
        ("pathlib:Path", "plugin_error", "no TokenEngine, ApiEngine or PoolingEngine"),
    ],
)
def test_what_can_not_be_brought_up_is_reported_and_ends(tmp_path: Path, engine: str, code: str, words: str) -> None:
    (tmp_path / "bad_engine.py").write_text(BAD)
    with replica(fake(tmp_path, engine), tmp_path) as process:
        error = process.until("failed")["error"]
        assert (error["code"], words in error["message"]) == (code, True), error
        assert process.child.wait(10) == 1


def test_a_stop_while_it_loads(tmp_path: Path) -> None:
    (tmp_path / "bad_engine.py").write_text(BAD)
    with replica(fake(tmp_path, "bad_engine:Slow"), tmp_path) as process:
        while process.until("stage")["stage"] != "loading":
            pass
        process.child.terminate()
        assert process.child.wait(5) == 0


COUNTED = """
import gc
from pathlib import Path
from xi_core.testing.fakes import CountingEngine

class Counted(CountingEngine):
    def check(self):
        Path(__file__).with_name("frozen").write_text(str(gc.get_freeze_count()))
"""


def test_what_start_up_made_is_none_of_the_collectors_business(tmp_path: Path) -> None:
    """A whole collection of what a library like PyTorch makes at its import holds the process for longer than a gateway waits."""
    (tmp_path / "counted_engine.py").write_text(COUNTED)
    with replica(fake(tmp_path, "counted_engine:Counted"), tmp_path) as process:
        process.until("ready")
        process.until("health")
        assert int((tmp_path / "frozen").read_text()) > 1000
