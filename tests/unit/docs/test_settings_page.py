"""The page of settings: what each means, in what unit, and who reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from xi_core.config import Settings

ROOT = Path(__file__).parents[3]
NAMES = [field.name for field in msgspec.structs.fields(Settings)]
PROCESSES = {
    "server/xi_server/": {"gateway"},
    "cli/xi_cli/commands/serve.py": {"head"},
    "cli/xi_cli/commands/gateway.py": {"gateway"},
    "cli/xi_cli/member_options.py": {"gateway", "worker"},
    "cli/xi_cli/server_command.py": {"head", "gateway", "worker"},
    "cli/xi_cli/": {"commands"},
    "core/xi_core/cluster/worker.py": {"worker"},
    "core/xi_core/cluster/pulls.py": {"worker"},
    "core/xi_core/cluster/cached_models.py": {"worker"},
    "core/xi_core/cluster/remote_code.py": {"worker"},
    "core/xi_core/cluster/fetching.py": {"worker", "commands"},
    "core/xi_core/cluster/envrules.py": {"head"},
    "core/xi_core/cluster/executor.py": {"head"},
    "core/xi_core/cluster/launcher.py": {"head"},
    "core/xi_core/cluster/registrations.py": {"head"},
    "core/xi_core/cluster/resolve.py": {"head"},
    "core/xi_core/cluster/supervisor.py": {"head"},
    "core/xi_core/models/hub.py": {"worker", "commands"},
    "plugins/xi_plugins/devices/fake.py": {"worker", "commands"},
    "core/xi_core/offline/": set(),
    "core/xi_core/testing/": set(),
}
"""Which processes a file that reads settings is part of; the first entry that fits counts."""
READS = re.compile(rf"\b(?:settings\(\)|_?settings|_?config|ours)\.({'|'.join(NAMES)}|home_dir)\b")


def rows(page: str) -> dict[str, list[str]]:
    """The page's cells by variable."""
    lines = [line for line in page.splitlines() if line.startswith("| `XI_")]
    return {line.split("`")[1]: [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines}


@pytest.fixture
def shown(generator: Callable[[str], ModuleType]) -> dict[str, list[str]]:
    return rows(generator("settings_page").settings())


def readers() -> dict[str, set[str]]:
    """Who reads each setting, by the source."""
    found: dict[str, set[str]] = {name: set() for name in NAMES}
    for folder in ("core", "server", "cli", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            place = path.relative_to(ROOT).as_posix()
            for name in READS.findall(path.read_text(encoding="utf-8")) if place != "core/xi_core/config.py" else ():
                processes = next((who for prefix, who in PROCESSES.items() if place.startswith(prefix)), None)
                assert processes is not None, f"{place} reads settings: say above which process it is part of"
                found["home" if name == "home_dir" else name] |= processes
    return found


def test_every_setting_has_a_row_and_a_meaning(shown: dict[str, list[str]]) -> None:
    assert list(shown) == [f"XI_{name.upper()}" for name in NAMES]
    assert all(cells[-1] and "Read by" not in cells[-1] for cells in shown.values())


def test_the_column_of_readers_is_what_the_source_does(shown: dict[str, list[str]]) -> None:
    order = ("head", "gateway", "worker", "commands")
    assert {name: cells[3] for name, cells in shown.items()} == {
        f"XI_{name.upper()}": ", ".join(process for process in order if process in who) for name, who in readers().items()
    }


def test_numbers_with_a_unit_name_it(shown: dict[str, list[str]]) -> None:
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.default, float):
            assert "Seconds" in shown[f"XI_{field.name.upper()}"][-1], field.name
    assert "Bytes" in shown["XI_MAX_BODY"][-1]


def test_home_names_its_folders(shown: dict[str, list[str]]) -> None:
    for folder in ("models", "families", "envs", "logs", "cluster", "state.db"):
        assert f"`{folder}`" in shown["XI_HOME"][-1]


def test_a_setting_without_readers_is_an_error(generator: Callable[[str], ModuleType]) -> None:
    with pytest.raises(ValueError, match="Read by"):
        generator("settings_page").split_readers("A meaning.")
