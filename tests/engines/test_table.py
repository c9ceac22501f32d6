"""The table that ends `make test-engines`."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

HEAD = '<?xml version="1.0"?><testsuites><testsuite name="pytest">'
TAIL = "</testsuite></testsuites>"
VERSION = '<properties><property name="engine" value="mlx-lm 0.32.2"/></properties>'
PASSED = '<testcase name="a"/>'
FAILED = '<testcase name="b"><failure message="no">trace</failure></testcase>'
BROKEN = '<testcase name="c"><error message="no">trace</error></testcase>'
SKIPPED = '<testcase name="d"><skipped type="pytest.skip" message="the manifest does not claim echo">x.py:1: the</skipped></testcase>'
LEFT_OUT = """<testcase name="e"><skipped type="pytest.skip" message="collection skipped">('x.py', 9, 'Skipped: it needs a GPU')</skipped></testcase>"""


@pytest.fixture(scope="module")
def table() -> ModuleType:
    import sys

    spec = spec_from_file_location("engines_table", Path(__file__).with_name("table.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["engines_table"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(folder: Path, *parts: str) -> Path:
    path = folder / "mlx.xml"
    path.write_text(HEAD + "".join(parts) + TAIL)
    return path


def test_a_run_that_passed(table: ModuleType, tmp_path: Path) -> None:
    row = table.read("mlx", report(tmp_path, VERSION, PASSED, PASSED, SKIPPED), 0)
    assert (row.version, row.passed, row.skipped, row.failed, row.bad) == ("mlx-lm 0.32.2", 2, 1, 0, False)


def test_failures_and_errors_count(table: ModuleType, tmp_path: Path) -> None:
    row = table.read("mlx", report(tmp_path, PASSED, FAILED, BROKEN), 1)
    assert (row.passed, row.failed, row.bad) == (1, 2, True)


def test_an_engine_that_can_not_run_here_says_why(table: ModuleType, tmp_path: Path) -> None:
    row = table.read("mlx", report(tmp_path, LEFT_OUT), 5)
    assert (row.note, row.bad) == ("can't run here: it needs a GPU", False)


def test_an_environment_that_was_not_built(table: ModuleType, tmp_path: Path) -> None:
    row = table.read("mlx", tmp_path / "nothing.xml", 2)
    assert row.bad
    assert "`make test-engine-mlx` ended with 2" in row.note


def test_a_run_that_ended_early(table: ModuleType, tmp_path: Path) -> None:
    row = table.read("mlx", report(tmp_path, PASSED), 3)
    assert (row.bad, row.note) == (True, "pytest ended with 3")


def test_one_that_fails_stops_none_of_the_others(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "make"
    fake.write_text(
        f"#!/bin/sh\ncase $1 in *-one) exit 2;; esac\nprintf '%s' '{HEAD}{VERSION}{PASSED}{TAIL}' > {tmp_path}/${{1#test-engine-}}.xml\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("sys.argv", ["table.py", str(tmp_path), "one", "two"])
    (tmp_path / "one.xml").write_text(HEAD + PASSED + TAIL)  # of an earlier run
    assert table.main() == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("one", "two"))]
    assert "no test ran" in lines[0]
    assert lines[1].split()[:4] == ["two", "mlx-lm", "0.32.2", "1"]
