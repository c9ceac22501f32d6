"""Options that several commands share, and the client that they make."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from xi_cli.group import Common, Failure
from xi_core.config import Settings, settings
from xi_core.errors import ConfigError

if TYPE_CHECKING:
    from xi_core.client import Client

F = TypeVar("F", bound=Callable[..., Any])

ENDED = ("FAILED", "CANCELLED", "STOPPING")
"""States of a launch that nobody can talk to any more."""


def common(ctx: click.Context) -> Common:
    """The group's options; empty ones where a command runs without its group."""
    root = ctx.find_root()
    if not isinstance(root.obj, Common):
        root.obj = Common()
    return root.obj


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        common(ctx).verbose = True


verbose_option = click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose, help="Show tracebacks of errors.")
allow_origin_option = click.option(
    "--allow-origin", "allow_origins", multiple=True, metavar="ORIGIN",
    help="Let web pages of this site use xi: https://chat.example.org, or with a key '*' for any; repeatable. [env: XI_ALLOW_ORIGINS]",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def client_options(command: F) -> F:
    """`-e/--endpoint`, `-ak/--api-key`, `-v`: for commands that talk to a server. The command gets `endpoint` and `api_key`."""
    command = verbose_option(command)
    command = click.option("-ak", "--api-key", metavar="KEY", help="The server's API key. [env: XI_API_KEY]")(command)
    return click.option(
        "-e", "--endpoint", metavar="URL", help="The server to talk to. [env: XI_ENDPOINT; default: http://127.0.0.1:9997]"
    )(command)


def connect(endpoint: str | None, api_key: str | None) -> Client:
    """A client of the server that the options name. Nothing is sent yet."""
    from xi_core.client import Client

    ours = settings()
    try:
        return Client(endpoint or _default_endpoint(ours), api_key or ours.api_key)
    except ConfigError as error:
        if endpoint and error.param == "endpoint":
            raise click.BadParameter(error.message, param_hint="'-e' / '--endpoint'") from None
        raise


def server_named(endpoint: str | None) -> bool:
    """Whether a server is named: by `-e`, by the group's `-H` and `-p`, or by `XI_ENDPOINT`."""
    group = common(click.get_current_context())
    return bool(endpoint) or group.host is not None or group.port is not None or settings().endpoint != Settings().endpoint


def _default_endpoint(ours: Settings) -> str:
    """Where no `-e` is given: the group's `-H`/`-p`, else `XI_ENDPOINT`, else `XI_HOST` and `XI_PORT`."""
    group, unset = common(click.get_current_context()), Settings()
    if group.host is None and group.port is None and ours.endpoint != unset.endpoint:
        return ours.endpoint
    host = group.host or ours.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a server on all addresses is reached on this one
    return f"http://{f'[{host}]' if ':' in host else host}:{ours.port if group.port is None else group.port}"


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """A float option's callback. JSON has no `nan` and no `inf`: sent as null, they would be the default."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"'{value}' is not a finite number.", ctx, param)
    return value


def print_json(value: Any) -> None:
    """A result as indented JSON on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def say(text: str) -> None:
    """Talk: a line on stderr."""
    click.echo(text, err=True)


def confirm(question: str, otherwise: str) -> None:
    """Ask on the terminal. Raises `Failure`, which says `otherwise`, unless the answer is yes; so where nobody is there to answer."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin is not None and sys.stdin.isatty():
            raise  # Ctrl-C
        say("")
        raise Failure(f"{otherwise}: nobody answered; --yes doesn't ask") from None
    if not agreed:
        raise Failure(otherwise)


def one_of(option: str | None, argument: str | None, noun: str) -> str | None:
    """A value that may be given as an option or by position, but not both differently."""
    if option and argument and option != argument:
        raise click.UsageError(f"two {noun}s: '{argument}' and '{option}'; give one")
    return option or argument


def pick_model(client: Client, name: str | None) -> str:
    """The model to talk to: the one named, else the only one that is launched and hasn't ended."""
    if name:
        return name
    uids = [model.id for model in client.models() if model.parent is None and model.state not in ENDED]
    if not uids:
        raise Failure("no model is launched: launch one with `xi launch xi-tiny`")
    if len(uids) > 1:
        raise click.UsageError(f"name one of the models that are launched: {', '.join(uids)}")
    return uids[0]


def read_prompt(prompt: str | None) -> str:
    """The prompt of a one-shot command: as given, else all of stdin."""
    if prompt is None:
        if sys.stdin.isatty():
            raise click.UsageError("no prompt: give it with -p/--prompt, or on stdin")
        prompt = sys.stdin.read()
    if not prompt:
        raise click.UsageError("the prompt is empty")
    return prompt
