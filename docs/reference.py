"""Writes `docs/reference/` from the code (`make docs`); `--check` only tells whether the committed pages are current (`make check`)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from capability_page import capabilities
from errors_page import errors
from http_page import http
from metrics_page import metrics
from settings_page import settings

from xi_cli import reference as commands
from xi_cli.group import COMMANDS
from xi_core import hookspecs
from xi_core.models import family_file
from xi_server import openapi

FOLDER = Path(__file__).parent / "reference"

COMMANDS_OF_PLUGINS = f"""## Commands

Commands of `xi` are no hook, for only the command line needs them: an entry point of group `{COMMANDS}` names a click command, which is
imported only when it is used. A built-in command's name can't be taken; `xi plugins` shows the others, and what is wrong with any.

```toml
[project.entry-points."{COMMANDS}"]
mycommand = "xi_myplugin.commands:mycommand"
```
"""


def hooks() -> str:
    """Every hookspec with its signature and docstring, and the other group of entry points."""
    parts = ["# Hooks\n\nMade from `xi_core/hookspecs.py`.\n", inspect.cleandoc(hookspecs.__doc__ or "") + "\n"]
    for name, function in vars(hookspecs).items():
        if name.startswith("xi_"):
            signature = str(inspect.signature(function)).replace("'", "")
            parts.append(f"## `{name}`\n\n```python\ndef {name}{signature}\n```\n\n{inspect.cleandoc(function.__doc__ or '')}\n")
    return "\n".join([*parts, COMMANDS_OF_PLUGINS])


def family_schema() -> str:
    """The JSON schema of family files."""
    return msgspec.json.format(msgspec.json.encode(family_file.schema()), indent=2).decode() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "capabilities.md": capabilities,
    "cli.md": commands.render,
    "hooks.md": hooks,
    "settings.md": settings,
    "http.md": lambda: http(openapi.document()),
    "errors.md": errors,
    "metrics.md": metrics,
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
