"""The commands that the documents show are run as they stand; only the port is another, and what installs or serves is done already."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xi_core.testing.server import RunningServer

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/tutorial.md",
    "docs/how-to/models.md",
    "docs/how-to/offline.md",
    "docs/how-to/tools-and-thinking.md",
    "docs/how-to/structured-output.md",
    "docs/how-to/lora.md",
    "docs/how-to/memory.md",
    "docs/how-to/python.md",
]
BLOCK = re.compile(r"<!-- run -->\n```(bash|python)\n(.*?)```", re.DOTALL)
DONE_ALREADY = ("pip install", "xi serve", "python3 -m venv")


def blocks() -> list[tuple[str, str, str]]:
    return [(page, language, code) for page in PAGES for language, code in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    with RunningServer(tmp_path_factory.mktemp("documented")) as server:
        yield server


@pytest.mark.parametrize("page", PAGES)
def test_the_page_works_from_top_to_bottom(documented: RunningServer, page: str) -> None:
    shown = [(language, code) for name, language, code in blocks() if name == page]
    assert shown, "the page shows something to run"
    environment = {**documented.environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, code in shown:
        code = code.replace("127.0.0.1:9997", f"127.0.0.1:{documented.port}")
        if language == "bash":
            lines = [line for line in code.splitlines() if not line.startswith(DONE_ALREADY)]
            command = ["bash", "-ec", "\n".join(lines)]
        else:
            command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        assert "error" not in done.stdout.lower(), f"{code}\n{done.stdout}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
