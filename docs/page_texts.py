"""What the generated pages share: tables, and the texts that stand under a class's fields."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table with a line for each row. Cells hold no bare `|`: see `cell`."""
    heads = list(heads)
    return "\n".join(["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *rows)]) + "\n"


def cell(text: str) -> str:
    """`text` as it may stand in a table: on one line, with its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def code(value: str) -> str:
    """`value` as code; nothing where there is none."""
    return f"`{cell(value)}`" if value else ""


def field_texts(cls: type) -> dict[str, str]:
    """The texts under a class's fields, those of the classes that it inherits fields from included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("xi_"):
            found.update(_own_texts(base))
    return found


def _own_texts(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found
