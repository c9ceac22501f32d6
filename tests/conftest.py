"""Fixtures that several folders of tests share."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("xi_core.testing")

from xi_core.testing.server import RunningServer  # noqa: E402

HERE = Path(__file__).parent
FAMILIES = HERE.parent / "plugins" / "xi_plugins" / "families"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity", metavar="FOLDER", help="write which request fields each engine is proven to honour (make test-engines)")


def pytest_configure() -> None:
    """Who starts the tests in a shell's background has Ctrl-C ignored, and who starts them by `nohup` the hanging up, in them and in all that
    they start; some of them send these signals."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def expected() -> dict[str, Any]:
    """Prompts, greedy answers and token ids of xi-tiny, and its tool calls."""
    found: dict[str, Any] = json.loads((HERE / "data" / "xi_tiny_expected.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="session")
def numbers() -> dict[str, Any]:
    """Log-probabilities of some of xi-tiny's answers, and vectors of some texts."""
    found: dict[str, Any] = json.loads((HERE / "data" / "xi_tiny_numbers.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="session")
def parity() -> dict[str, bytes]:
    """The parity suite's committed results: file names and their JSON."""
    return {path.name: path.read_bytes() for path in sorted((HERE / "data" / "parity").glob("*.json"))}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with xi-tiny on both engines: `xi-tiny` on llama.cpp, `xi-tiny-torch` on transformers."""
    with RunningServer(tmp_path_factory.mktemp("server")) as running:
        for uid, engine in (("xi-tiny", "llama.cpp"), ("xi-tiny-torch", "transformers")):
            done = running.xi("launch", "xi-tiny", "--model-uid", uid, "--model-engine", engine)
            assert done.returncode == 0, done.stderr + running.log.read_text()
        yield running
