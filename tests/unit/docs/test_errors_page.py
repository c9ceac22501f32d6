"""The page of errors: each class's code, status, meaning, and whether to ask again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from xi_cli.root import BUILT_IN
from xi_core import errors
from xi_core.config import Settings
from xi_core.errors import XiError


def tree(root: type[XiError]) -> Iterator[type[XiError]]:
    yield root
    for cls in root.__subclasses__():
        if cls.__module__ == errors.__name__:
            yield from tree(cls)


@pytest.fixture
def shown(generator: Callable[[str], ModuleType]) -> dict[str, list[str]]:
    lines = [line for line in generator("errors_page").errors().splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines}


def test_every_error_is_on_it(shown: dict[str, list[str]]) -> None:
    assert {code: cells[1] for code, cells in shown.items()} == {cls.code: str(cls.status) for cls in tree(XiError)}


def test_each_has_a_meaning_and_says_whether_to_ask_again(shown: dict[str, list[str]]) -> None:
    for code, cells in shown.items():
        meaning, retry = cells[3:]
        assert meaning.endswith("."), code
        assert "Retry:" not in meaning, code
        assert retry.split()[0].strip(",:;") in ("yes", "no", "once", "only", "as"), code


def test_errors_that_pass_are_to_be_asked_again(shown: dict[str, list[str]]) -> None:
    for code in ("overloaded", "unavailable", "replica_lost"):
        assert shown[code][4] == "yes, after the seconds of `Retry-After`"
    for code in ("invalid_request", "model_not_found", "model_asleep"):
        assert shown[code][4].startswith("no, not")


def test_commands_and_settings_that_are_named_exist(shown: dict[str, list[str]]) -> None:
    text = " ".join(cells[3] for cells in shown.values())
    commands, settings = re.findall(r"`xi ([a-z-]+)", text), re.findall(r"`XI_([A-Z_]+)`", text)
    assert len(commands) > 8
    assert set(commands) <= set(BUILT_IN)
    assert {name.lower() for name in settings} <= set(Settings.__struct_fields__)


def test_kinds_of_a_class_name_it(shown: dict[str, list[str]]) -> None:
    assert shown["unknown_model"][2] == "`UnknownModel`, a kind of `LaunchError`"
    assert shown["launch_error"][2] == "`LaunchError`"


def test_an_error_that_does_not_say_is_an_error(generator: Callable[[str], ModuleType]) -> None:
    with pytest.raises(ValueError, match="Silent: its docstring doesn't say"):
        generator("errors_page").split_retry("Silent", "Something.")
