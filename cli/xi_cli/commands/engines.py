"""`xi engines`: which engines there are and which can run; by the server's workers, or with `--local` by a look here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from xi_cli.options import client_options, connect, json_option, print_json, say
from xi_core.config import settings
from xi_core.errors import Unavailable

if TYPE_CHECKING:
    from xi_core.api.control import EngineStatus
    from xi_core.engine.info import Support


@click.command()
@click.argument("model", required=False)
@click.option("--local", is_flag=True, help="Look at this environment, without a server.")
@json_option
@client_options
def engines(model: str | None, local: bool, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Show the engines, and which can run.

    The server is asked what its workers can run. With MODEL, each engine also says whether it takes that model. An engine that can't run
    says why, with the pip line where its library is missing.

    \b
    Examples:
      xi engines
      xi engines xi-tiny
      xi engines --local
    """
    found = _probed(model) if local else _asked(model, endpoint, api_key)
    if as_json:
        print_json(found)
        return
    from xi_cli.draw import table

    headers = ("ENGINE", "RUNS", "FORMATS", "PLUGIN", "DETAIL", *(["TAKES THE MODEL"] if model else []))
    table(headers, [_row(engine, model) for engine in found])
    if not found:
        say("No plugin offers an engine; `xi plugins` shows why.")


def _row(engine: EngineStatus, model: str | None) -> tuple[str | None, ...]:
    runs = "yes" if engine.available else "no"
    cells = (engine.name, runs, ", ".join(engine.formats), engine.plugin, engine.reason)
    return (*cells, engine.model) if model else cells


def _asked(model: str | None, endpoint: str | None, api_key: str | None) -> list[EngineStatus]:
    try:
        return connect(endpoint, api_key).engines(model)
    except Unavailable as error:
        raise Unavailable(f"{error.message}; `xi engines --local` looks at this environment without a server") from error


def _probed(model: str | None) -> list[EngineStatus]:
    """What this environment's plugins say of this machine. Raises `UnknownModel`."""
    from xi_core.api.control import EngineStatus
    from xi_core.cluster.host import find_devices, host_info, match_engines, probe_engines
    from xi_core.plugins import PluginHub

    hub = PluginHub.load(settings().plugins)
    host = host_info(find_devices(hub.devices, os.environ))
    runs = probe_engines(hub.engines, host)
    specs = hub.families.get(model, param="model").specs if model else []
    takes = [match_engines(hub.engines, spec, host) for spec in specs]
    return [
        EngineStatus(
            name=engine.name,
            available=runs[engine.name].ok,
            reason=runs[engine.name].reason,
            formats=list(engine.formats),
            plugin=hub.engines.taken_by(engine.name.lower()) or "",
            model=_taken([answers[engine.name] for answers in takes]) if model else None,
        )
        for engine in hub.engines
    ]


def _taken(answers: list[Support]) -> str:
    """`yes` if the engine takes any of the family's specs, else its reasons."""
    return "yes" if any(answer.ok for answer in answers) else "; ".join(dict.fromkeys(answer.reason for answer in answers))
