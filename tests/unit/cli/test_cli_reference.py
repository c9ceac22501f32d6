"""docs/reference/cli.md is what the commands say."""

from pathlib import Path

from xi_cli.main import BUILT_IN
from xi_cli.reference import render

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"


def test_the_committed_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m xi_cli.reference > docs/reference/cli.md"


def test_every_command_is_on_it():
    page = render()
    for name in BUILT_IN:
        assert f"## `xi {name}`" in page
    assert "\b" not in page
