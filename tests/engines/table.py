"""`make test-engines`: runs the parity suite on every engine, each in its own environment, and prints what came of it.

    python tests/engines/table.py FOLDER NAME…

Runs `make test-engine-NAME` for each name, which leaves pytest's report in `FOLDER/NAME.xml`. One that fails stops none of the others.
Ends with 1 when a test failed, or when an engine could not be tested for another reason than this machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

HEAD = ("engine", "version", "passed", "skipped", "failed", "minutes", "")


@dataclass
class Row:
    """One engine's run. `note` says why nothing ran, or that the engine's own tests were not all that there is."""

    engine: str
    version: str = ""
    passed: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0
    note: str = ""
    broken: bool = False

    @property
    def bad(self) -> bool:
        """Whether this run must not pass."""
        return self.broken or self.failed > 0

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        return (self.engine, self.version, str(self.passed), str(self.skipped), str(self.failed), f"{self.seconds / 60:.1f}", self.note)


def run(name: str, folder: Path) -> Row:
    """Test one engine by its target of the Makefile."""
    report = folder / f"{name}.xml"
    report.unlink(missing_ok=True)
    began = time.monotonic()
    code = subprocess.run(["make", f"test-engine-{name}"], check=False).returncode
    row = read(name, report, code)
    row.seconds = time.monotonic() - began
    return row


def read(name: str, report: Path, code: int) -> Row:
    """What a run's report and exit code say."""
    if not report.is_file():
        return Row(name, note=f"no test ran: `make test-engine-{name}` ended with {code}; what it said stands above", broken=True)
    cases = list(ElementTree.parse(report).iter("testcase"))
    row = Row(name, version=_version(report))
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            row.failed += 1
        elif case.find("skipped") is not None:
            row.skipped += 1
        else:
            row.passed += 1
    if not row.passed and not row.failed:
        row.note = f"can't run here: {_reason(cases)}"
    elif code and not row.failed:
        row.note, row.broken = f"pytest ended with {code}", True
    return row


def _version(report: Path) -> str:
    """As the engine's `probe` gave it to the suite's last test, which puts it into the report."""
    found = [element.get("value", "") for element in ElementTree.parse(report).iter("property") if element.get("name") == "engine"]
    return found[0] if found else ""


def _reason(cases: list[ElementTree.Element]) -> str:
    """The reason of the first test that was skipped."""
    skips = [element for case in cases if (element := case.find("skipped")) is not None]
    if not skips:
        return "it has no tests"
    said = skips[0].get("message", "")
    # Of a file that is skipped as a whole, pytest tells the reason at the end of a tuple.
    return said if said != "collection skipped" else (skips[0].text or "").partition("Skipped: ")[2].rstrip("'\")")


def draw(rows: list[Row]) -> str:
    """The table as text."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([texts[0], "  ".join("-" * width for width in widths[:-1]), *texts[1:]])


def main() -> int:
    """Test the engines that the command line names."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [run(name, folder) for name in names]
    print(f"\n{draw(rows)}\n")
    return int(any(row.bad for row in rows))


if __name__ == "__main__":
    sys.exit(main())
