"""The click group of `xi`: imports commands when they are used, so that `xi --help` is quick, and turns every error into a message."""

from __future__ import annotations

import errno
import importlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from xi_cli import INTERRUPTED
from xi_core.errors import AuthenticationFailed, XiError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

COMMANDS = "xi.commands"
"""Entry-point group of commands: `name = "module:click_command"`."""


@dataclass
class Common:
    """Options of the group, for the command that runs. None: not given."""

    host: str | None = None
    port: int | None = None
    log_level: str | None = None
    verbose: bool = False


@dataclass(frozen=True)
class BuiltIn:
    """A command of ours: where it is, and its line in `xi --help`."""

    path: str
    help: str


class Failure(click.ClickException):
    """A command failed: one line on stderr, status 1; the traceback only with `-v`."""

    verbose = False

    def show(self, file: IO[Any] | None = None) -> None:
        if self.verbose and self.__cause__ is not None:
            click.echo("".join(traceback.format_exception(self.__cause__)), err=True, nl=False)
        click.echo(f"Error: {self.message}", err=True)


class Commands(click.Group):
    """Built-in commands from a table, and other distributions' from entry points; both imported only when they run."""

    def __init__(self, *args: Any, built_in: Mapping[str, BuiltIn], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.built_in = built_in

    @cached_property
    def plugged_in(self) -> dict[str, EntryPoint]:
        """Commands of other distributions by name. A built-in name can't be taken."""
        from importlib.metadata import entry_points

        return {point.name: point for point in sorted(entry_points(group=COMMANDS)) if point.name not in self.built_in}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.built_in, *self.plugged_in]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.built_in:
            module, _, name = self.built_in[cmd_name].path.partition(":")
            return _checked(getattr(importlib.import_module(module), name), cmd_name)
        if cmd_name in self.plugged_in:
            return load_command(self.plugged_in[cmd_name])
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            self._unknown(ctx, name)
        return name, command, args[1:]

    def _unknown(self, ctx: click.Context, name: str) -> NoReturn:
        from difflib import get_close_matches

        close = get_close_matches(name.lower(), self.list_commands(ctx), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"commands: {', '.join(self.list_commands(ctx))}"
        raise click.UsageError(f"No such command '{name}'; {hint}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.built_in.items()])
        if self.plugged_in:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, f"From {origin(point)}.") for name, point in self.plugged_in.items()])

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt:  # while it reads options or shows help, which click would end with status 1
            raise click.exceptions.Exit(INTERRUPTED) from None

    def invoke(self, ctx: click.Context) -> Any:
        ctx.obj = Common(**ctx.params)
        try:
            return self._run(ctx)
        except Failure as failure:
            failure.verbose = ctx.obj.verbose
            raise

    def _run(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong comes out as one of click's exceptions."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except AuthenticationFailed as error:
            raise Failure(f"{error.message}; commands take the key from -ak/--api-key or XI_API_KEY") from error
        except XiError as error:
            raise Failure(error.message) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output left: click ends quietly
            more = "" if ctx.obj.verbose else "; `xi -v …` shows where"
            raise Failure(f"{type(error).__name__}: {error}{more}") from error


def origin(point: EntryPoint) -> str:
    """The distribution that an entry point comes from, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def load_command(point: EntryPoint) -> click.Command:
    """The command that an entry point names. Raises `Failure`, with the error itself as its cause."""
    try:
        found = point.load()
    except Exception as error:  # a plugin may fail in any way at all
        raise Failure(f"command '{point.name}' of {origin(point)} can't be loaded: {type(error).__name__}: {error}") from error
    return _checked(found, point.name)


def _checked(found: object, name: str) -> click.Command:
    if not isinstance(found, click.Command):
        raise Failure(f"command '{name}' is {type(found).__name__}, not a click command")
    return found
