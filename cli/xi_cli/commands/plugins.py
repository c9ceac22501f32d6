"""`xi plugins`: what is installed here, what it offers, and what was wrong with what isn't loaded. Asks no server."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import click

from xi_cli.group import COMMANDS, Commands, Failure, load_command
from xi_cli.options import common, json_option, print_json, say, verbose_option
from xi_core.config import settings

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from xi_core.plugins import PluginRecord


@click.command()
@json_option
@verbose_option
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """Show the installed plugins, and what is wrong with any.

    A plugin that can't be loaded is quarantined: xi runs without it. The reason is shown here, with -v the traceback too. XI_PLUGINS
    allows some plugins only (a,b) or blocks some (-a,-b).

    \b
    Examples:
      xi plugins
      xi plugins -v
      xi plugins --json
    """
    from xi_core.plugins import PluginHub

    records = [*PluginHub.load(settings().plugins).records, *_command_records(ctx)]
    if as_json:
        print_json(records)
        return
    from xi_cli.draw import table

    table(
        ("NAME", "DISTRIBUTION", "VERSION", "STATE", "OFFERS"),
        [(r.name, r.distribution, r.version, r.state, _offers(r.offers)) for r in records],
    )
    verbose = common(ctx).verbose
    for record in records:
        if record.state == "quarantined":
            say(f"\n{record.name} ({record.distribution} {record.version}) is quarantined: {record.error}")
            if verbose and record.trace:
                say(record.trace.rstrip())
    if not verbose and any(record.trace for record in records):
        say("\n`xi plugins -v` shows the tracebacks.")


def _command_records(ctx: click.Context) -> list[PluginRecord]:
    """Other distributions' commands (group `xi.commands`); each is loaded to see whether it can be."""
    from importlib.metadata import entry_points

    from xi_core.plugins import DISTRIBUTION

    group = ctx.find_root().command
    built_in = group.built_in if isinstance(group, Commands) else {}
    points = [point for point in sorted(entry_points(group=COMMANDS)) if point.dist is None or point.dist.name != DISTRIBUTION]
    return [_command_record(point, point.name in built_in) for point in points]


def _command_record(point: EntryPoint, taken: bool) -> PluginRecord:
    from xi_core.plugins import PluginRecord

    dist = point.dist
    record = PluginRecord(
        point.name, point.value, dist.name if dist else "", dist.version if dist else "", offers={"commands": [point.name]}
    )
    try:
        if taken:
            raise Failure(f"'{point.name}' is a command of xi itself; choose another name")
        load_command(point)
    except Failure as error:
        record.state, record.offers, record.error = "quarantined", {}, error.message
        record.trace = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
    return record


def _offers(offers: dict[str, list[str]]) -> str:
    """`engines: a, b; routers: c`."""
    return "; ".join(f"{hook.removeprefix('xi_').replace('_', ' ')}: {', '.join(names)}" for hook, names in offers.items())
