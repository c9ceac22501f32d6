"""docs/reference/cli.md is what the commands say."""

from collections.abc import Iterator
from pathlib import Path

import click

from xi_cli.group import COMMANDS
from xi_cli.reference import render
from xi_cli.root import BUILT_IN, cli

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"


def commands_of(group: click.Group, name: str, names: list[str]) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for short in names:
        command = group.get_command(context, short)
        assert command is not None
        yield f"{name} {short}", command
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{name} {short}", command.list_commands(context))


def test_the_committed_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m xi_cli.reference > docs/reference/cli.md"


def test_every_command_is_on_it():
    page = render()
    found = [name for name, _ in commands_of(cli, "xi", list(BUILT_IN))]
    assert {"xi cluster members", "xi cluster remove", "xi cluster rotate-gateway-keys", "xi envs list", "xi envs remove"} < set(found)
    for name in found:
        assert page.count(f"\n## `{name}`\n") == 1
    assert "\b" not in page


def test_options_of_a_command_in_a_group_are_on_it():
    section = render().split("\n## `xi cluster remove`\n")[1].split("\n## ")[0]
    assert "xi cluster remove [OPTIONS] NAME" in section
    assert "| `--force` |" in section


def test_the_preface_says_how_plugins_add_commands():
    assert f"[`{COMMANDS}`](hooks.md#commands)" in render().split("\n## ")[0]
    hooks = PAGE.with_name("hooks.md").read_text(encoding="utf-8")
    assert "\n## Commands\n" in hooks
    assert f'[project.entry-points."{COMMANDS}"]' in hooks
