"""Open files: a shell's soft limit doesn't bound how many workers and clients the control processes can have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.testing.server import RunningServer

resource = pytest.importorskip("resource", reason="Windows has no such limit")
SHELL = 500


@pytest.fixture
def shell() -> Iterator[int]:
    """This process's hard limit; its soft one is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SHELL, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def limit(pid: int) -> int:
    """The soft limit of a process."""
    soft: int = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    return soft


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux tells of another process's limits")
def test_supervisor_and_gateway_raise_the_soft_limit_and_engines_keep_it(tmp_path: Path, shell: int) -> None:
    with RunningServer(tmp_path / "home") as server:
        found = {role: limit(server.pids(role)[0]) for role in ("supervisor", "gateway", "worker")}
    most = 65536 if shell == resource.RLIM_INFINITY else min(65536, shell)
    assert found == {"supervisor": most, "gateway": most, "worker": SHELL}
