"""`@proves` and `ClaimsKit`, in small test files of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xi_core.engine.info import EngineInfo, Support
from xi_core.testing import proofs
from xi_core.testing.fake_plugin import full_manifest
from xi_core.wire.manifest import YES, no, of_fields

HEAD = """
import pytest
from xi_core.engine.info import EngineInfo, Support
from xi_core.hookspecs import hookimpl
from xi_core.serving.request import CHAT
from xi_core.testing.harness import plan_for
from xi_core.testing.proofs import ClaimsKit, proves
from xi_core.wire.manifest import YES, no, of_fields

@hookimpl
def xi_engines():
    yes = lambda *_: Support(ok=True, reason="toy 1.2")
    manifest = of_fields(chat={"n": YES, "seed": YES, "stop": no("never")})
    return [EngineInfo(name="Toy", engine="toy:Engine", formats=(), manifest=manifest, probe=yes, match=yes)]

class Kit:
    plugin = __name__
    plan = plan_for("toy:Engine", "", "toy")
    route = CHAT

class TestClaims(ClaimsKit):
    plugin = __name__
    engine = "toy:Engine"
    routes = (CHAT,)
"""
TESTS = """
class TestToy(Kit):
    @proves("n")
    def test_n(self): pass

    @proves("seed")
    @pytest.mark.parametrize("value", [1, 2])
    def test_seed(self, value): {seed}
"""


def run(folder: Path, tests: str, *arguments: str, claims: str = "") -> str:
    """What pytest says of a file with these tests; its claims are looked at last."""
    start, claims_class = HEAD.split("class TestClaims")
    (folder / "test_toy.py").write_text(start + tests + "\nclass TestClaims" + claims_class + claims)
    (folder / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--parity')\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-ra",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        ".",
        *arguments,
        "test_toy.py",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60).stdout


def test_all_claims_are_proven(tmp_path: Path) -> None:
    assert "4 passed" in run(tmp_path, TESTS.format(seed="pass"), "--parity", "results")
    assert json.loads((tmp_path / "results" / "toy.json").read_text()) == {
        "engine": "Toy", "version": "toy 1.2", "proven": {"/v1/chat/completions": ["n", "seed"]},
    }  # fmt: skip


@pytest.mark.parametrize("body", ["assert value == 1", "pytest.skip('no')"])
def test_a_claim_without_a_test_that_passes(tmp_path: Path, body: str) -> None:
    said = run(tmp_path, TESTS.format(seed=body))
    assert "claimed, and no test marked @proves(FIELD) passed, or one failed: [('/v1/chat/completions', 'seed')]" in said


def test_a_proof_that_is_not_claimed(tmp_path: Path) -> None:
    said = run(tmp_path, TESTS.format(seed="pass").replace('@proves("n")', '@proves("n", "stop")'))
    assert "proven, and the manifest doesn't claim it: [('/v1/chat/completions', 'stop')]" in said


def test_excuses(tmp_path: Path) -> None:
    excuse = '    unproven = {"seed": "why", "stop": "not claimed"}\n'
    assert "2 passed" in run(tmp_path, TESTS.format(seed="pytest.skip('no')"), "--parity", "results", claims=excuse)
    assert json.loads((tmp_path / "results" / "toy.json").read_text())["excused"] == {"/v1/chat/completions": {"seed": "why"}}
    assert "excused, and proven all the same" in run(tmp_path, TESTS.format(seed="pass"), claims='    unproven = {"seed": "why"}\n')


def test_part_of_a_file_says_nothing(tmp_path: Path) -> None:
    said = run(tmp_path, TESTS.format(seed="pass"), "-k", "test_n or Claims", "--parity", "results")
    assert "only part of the file's tests run, without TestToy::test_seed" in said
    assert not (tmp_path / "results").exists()


def info(version: str) -> EngineInfo:
    def support(*_: object) -> Support:
        return Support(ok=True, reason=version)

    return EngineInfo(name="Toy", engine="toy:Engine", formats=(), manifest=full_manifest(), probe=support, match=support)


def test_results_of_several_files_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "LEDGER", ledger := proofs.Ledger())
    ledger.note("Toy", "/a", ("n", "seed"), True)
    ledger.note("Toy", "/a", ("seed",), False)
    ledger.note("Toy", "/b", ("stop",), True)
    proofs.write(tmp_path, info("toy 1"), ("/a",), {})
    proofs.write(tmp_path, info("toy 1"), ("/b",), {})
    assert json.loads((tmp_path / "toy.json").read_text())["proven"] == {"/a": ["n"], "/b": ["stop"]}
    proofs.write(tmp_path, info("toy 2"), ("/b",), {})
    assert json.loads((tmp_path / "toy.json").read_text())["proven"] == {"/b": ["stop"]}


def test_claimed_leaves_out_what_is_refused() -> None:
    support = info("toy 1")
    support.manifest = of_fields(chat={"n": YES, "seed": no("never")})
    assert proofs.claimed(support, "/v1/chat/completions") == {"n"}
    assert proofs.claimed(support, "/v1/rerank") == set()
