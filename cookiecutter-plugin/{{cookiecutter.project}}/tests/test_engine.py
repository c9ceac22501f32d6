"""xi's conformance kit on this engine, and what is its own."""

from pathlib import Path

import pytest

from xi_core.errors import ArtifactError
from xi_core.serving.request import COMPLETIONS
from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import Harness, plan_for

BOOK = Path(__file__).parent / "book.txt"
ENGINE = "{{ cookiecutter.package }}.engine:MarkovEngine"


class TestConformance(EngineKit):
    plugin = "{{ cookiecutter.package }}.plugin"
    plan = plan_for(ENGINE, str(BOOK), "text", context_length=300)
    prompts = ("Once upon a time", "The sea", "A ship")


class TestConformanceOfCompletions(TestConformance):
    route = COMPLETIONS


def test_writes_in_the_style_of_the_book() -> None:
    with Harness(plan_for(ENGINE, str(BOOK), "text")) as harness:
        assert "sea" in harness.complete("Once upon a time there was a", max_tokens=200, temperature=0).text


def test_an_empty_book_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(ArtifactError, match="empty"), Harness(plan_for(ENGINE, str(empty), "text")):
        pass
