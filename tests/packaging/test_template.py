"""The template, as an author would use it: rendered, installed in a clean environment, its own tests passed, launched and talked to."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from xi_core.testing.server import RunningServer

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XI_", "PYTHON"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered plugin; beside it `env`, a clean environment with xi and the plugin in it."""
    folder = tmp_path_factory.mktemp("template")
    run(sys.executable, "-m", "cookiecutter", "--no-input", "-o", str(folder), str(ROOT / "cookiecutter-plugin"))
    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(ROOT))
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", f"{folder / 'xi-markov'}[test]")
    return folder / "xi-markov"


@pytest.mark.slow
def test_its_own_tests_pass(plugin: Path) -> None:
    output = run(str(plugin.parent / "env" / "bin" / "python"), "-m", "pytest", "-q", "-rs", cwd=plugin)
    assert " passed" in output
    skips = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    assert all("the manifest does not claim" in line for line in skips), skips


@pytest.mark.slow
def test_it_is_launched_and_talked_to_without_an_edit_of_xi(plugin: Path, tmp_path: Path) -> None:
    book = plugin / "tests" / "book.txt"
    with RunningServer(tmp_path / "home", command=plugin.parent / "env" / "bin" / "xi") as server:
        assert "markov" in server.xi("engines").stdout
        launched = server.xi("launch", str(book), "--model-engine", "markov", "--slots", "3")
        assert launched.returncode == 0, launched.stderr + server.log.read_text()
        assert launched.stdout.strip() == "Model uid: book"
        told = server.xi("generate", "book", "--prompt", "Once upon a time", "--max-tokens", "40", "--temperature", "0")
        assert told.returncode == 0, told.stderr
        assert "harbour" in told.stdout
        refused = server.xi("launch", str(book), "--model-engine", "markov", "--model-uid", "other", "--shelves", "3")
        assert refused.returncode == 1
        assert "slots" in refused.stderr, "the known options are listed"
