"""Makes `docs/reference/cli.md` from click: `python -m xi_cli.reference > docs/reference/cli.md`. A test compares them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from xi_cli.group import COMMANDS
from xi_cli.root import BUILT_IN, cli

PREFACE = f"""\
# Command-line reference

This page is made from the commands themselves: `python -m xi_cli.reference > docs/reference/cli.md`.

Results go to stdout, talk and errors to stderr. Exit status: 0 when it worked, 1 when it failed, 2 for a wrong command line, 130 after
Ctrl-C, and of `xi serve`, `xi supervisor`, `xi worker` and `xi gateway` 78 where a wrong setting keeps them from starting. Installed
plugins may add commands, by the entry-point group [`{COMMANDS}`](hooks.md#commands); `xi --help` lists them.
"""


def render() -> str:
    """The whole page. Commands of plugins are left out: the page is the same everywhere."""
    context = click.Context(cli, info_name="xi")
    sections = [PREFACE, *_section("xi", cli, context)]
    for name in BUILT_IN:
        sections.extend(_sections(cli, name, context))
    return "\n".join(sections)


def _sections(group: click.Group, name: str, above: click.Context) -> Iterator[str]:
    """A command's section, and after it those of the commands that it holds itself."""
    command = group.get_command(above, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=above)
    yield from _section(context.command_path, command, context)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from _sections(command, inner, context)


def _section(title: str, command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join([title, *command.collect_usage_pieces(context)])
    yield f"## `{title}`\n\n```text\n{usage}\n```\n"
    yield from _prose(command)
    options = [param for param in command.params if isinstance(param, click.Option)]
    rows = [f"| {_names(option)} | {_text(option)} |" for option in options]
    yield "| option | meaning |\n| --- | --- |\n" + "\n".join([*rows, "| `-h`, `--help` | Show the help and exit. |"]) + "\n"


def _prose(command: click.Command) -> Iterator[str]:
    r"""The docstring's paragraphs; those under click's `\b` are examples and become code."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            title, *lines = paragraph.removeprefix("\b\n").splitlines()
            code = "\n".join(line.removeprefix("  ") for line in lines)
            yield f"{title}\n\n```bash\n{code}\n```\n"
        else:
            yield f"{paragraph}\n"


def _names(option: click.Option) -> str:
    forms = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" `{option.metavar or _kind(option)}`"
    return forms + value.replace("|", "\\|")


def _kind(option: click.Option) -> str:
    kind = option.type
    return "|".join(str(choice) for choice in kind.choices) if isinstance(kind, click.Choice) else kind.name.split()[0].upper()


def _text(option: click.Option) -> str:
    default = f" Default: `{_default(option)}`." if option.show_default else ""
    return f"{option.help or ''}{default}".replace("|", "\\|")


def _default(option: click.Option) -> object:
    if option.secondary_opts:
        return (option.opts if option.default else option.secondary_opts)[0]
    return option.default


if __name__ == "__main__":
    click.echo(render(), nl=False)
