"""What the tests of engines with parsers of their own share."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from xi_core.serving.parser import CallForm

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("look", {"city": 'Pa"r\\is {é}\n', "days": -3, "here": True, "kinds": [None, 0.5, {"a": "</x>"}]}),
    ("count", {}),
    ("look", {"city": "İstanbul 👨‍👩‍👧", "days": 0}),
]
"""As a grammar allows them: a name, and arguments."""


@pytest.fixture
def calls() -> list[tuple[str, dict[str, Any]]]:
    return CALLS


@pytest.fixture
def write() -> Callable[[CallForm], str]:
    """The calls in a form, as one answer."""

    def written(form: CallForm) -> str:
        def inner(arguments: dict[str, Any]) -> str:
            if not form.python:
                return json.dumps(arguments, ensure_ascii=False)
            return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())

        each = [form.before + name + form.middle + inner(arguments) + form.after for name, arguments in CALLS]
        return form.begin + form.between.join(each) + form.end

    return written
