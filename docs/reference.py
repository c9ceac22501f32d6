"""Writes `docs/reference/` from the code (`make docs`); `--check` only tells whether the committed pages are current (`make check`)."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from capability_page import capabilities

from xi_cli import reference as commands
from xi_core import config, hookspecs
from xi_core.models import family_file
from xi_server import openapi

FOLDER = Path(__file__).parent / "reference"


def hooks() -> str:
    """Every hookspec with its signature and docstring."""
    parts = ["# Hooks\n\nMade from `xi_core/hookspecs.py`.\n", inspect.cleandoc(hookspecs.__doc__ or "") + "\n"]
    for name, function in vars(hookspecs).items():
        if name.startswith("xi_"):
            signature = str(inspect.signature(function)).replace("'", "")
            parts.append(f"## `{name}`\n\n```python\ndef {name}{signature}\n```\n\n{inspect.cleandoc(function.__doc__ or '')}\n")
    return "\n".join(parts)


def settings() -> str:
    """Every setting: variable, Xinference's name for it, default, meaning."""
    meanings = _attribute_docstrings(config.Settings)
    rows = [_setting(field, meanings[field.name]) for field in msgspec.structs.fields(config.Settings)]
    head = "# Settings\n\nMade from `xi_core/config.py`. Each is an environment variable, read once when a process starts.\n"
    return "\n".join([head, "| variable | Xinference's name | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _setting(field: msgspec.structs.FieldInfo, meaning: str) -> str:
    other = config.XINFERENCE_NAMES.get(field.name)
    return f"| `XI_{field.name.upper()}` | {_quoted(other)} | {_quoted(field.default)} | {meaning} |"


def _quoted(value: Any) -> str:
    return f"`{value}`" if value not in (None, "") else ""


def _attribute_docstrings(cls: type) -> dict[str, str]:
    """The texts under a class's fields."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def http() -> str:
    """Every route, with its request's fields."""
    document = openapi.document()
    parts = ["# HTTP API\n\nMade from the gateway's OpenAPI document: `/openapi.json` of a running server, shown at `/docs`.\n"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"## `{method.upper()} {path}`\n\n{operation.get('description') or operation.get('summary', '')}\n")
            parts.extend(_fields(document, operation))
    return "\n".join(parts)


def _fields(document: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    reference = content.get("schema", {}).get("$ref", "")
    schema = document.get("components", {}).get("schemas", {}).get(reference.rpartition("/")[2])
    if schema is None:
        return []
    required = set(schema.get("required", []))
    rows = [f"| `{name}` | {'yes' if name in required else ''} | {_type(field)} |" for name, field in schema["properties"].items()]
    return ["| field | required | type |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"]


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"] if value is not None)
    kind = field.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(one for one in kind if one != "null")
    limits = [f"{sign} {_number(field[key])}" for key, sign in _BOUNDS.items() if key in field]
    if kind == "array":
        kind = f"array of {_type(field.get('items', {}))}"
    return " ".join([kind, ", ".join(limits)]).strip()


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def family_schema() -> str:
    """The JSON schema of family files."""
    return msgspec.json.format(msgspec.json.encode(family_file.schema()), indent=2).decode() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "capabilities.md": capabilities,
    "cli.md": commands.render,
    "hooks.md": hooks,
    "settings.md": settings,
    "http.md": http,
    "family.schema.json": family_schema,
}


def main() -> int:
    """Write the pages, or compare them."""
    stale = [name for name, render in PAGES.items() if not _same(FOLDER / name, render())]
    if "--check" in sys.argv:
        if stale:
            sys.stderr.write(f"out of date: {', '.join(stale)}; run `make docs`\n")
        return len(stale)
    for name in stale:
        (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
    return 0


def _same(page: Path, text: str) -> bool:
    return page.is_file() and page.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
