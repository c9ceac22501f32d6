"""`xi engines`: which engines there are and which can run; by the server's workers, or with `--local` by a look here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
import msgspec

from xi_cli.options import client_options, connect, json_option, one_of, print_json, say
from xi_core.config import settings
from xi_core.errors import Unavailable

if TYPE_CHECKING:
    from xi_core.api.control import EngineStatus, SpecVerdict


@click.command()
@click.argument("model", required=False)
@click.option("-n", "--model-name", metavar="NAME", help="A model's name, path or hub id; as MODEL.")
@click.option("-en", "--model-engine", metavar="ENGINE", help="Only this engine.")
@click.option("-f", "--model-format", metavar="FORMAT", help="Only specs of this format: pytorch, ggufv2, mlx, gptq, awq, fp8.")
@click.option("-s", "--size-in-billions", metavar="SIZE", help="Only specs of this size: 7, 0.5 or 0_5.")
@click.option("-q", "--quantization", metavar="NAME", help="Only specs of this quantization.")
@click.option("-t", "--model-type", metavar="TYPE", help="The type that the model must have: LLM, embedding or rerank.")
@click.option("--local", is_flag=True, help="Look at this environment, without a server.")
@json_option
@client_options
def engines(
    model: str | None,
    model_name: str | None,
    local: bool,
    as_json: bool,
    endpoint: str | None,
    api_key: str | None,
    **filters: str | None,
) -> None:
    """Show the engines, and which can run.

    The server is asked what its workers can run. With MODEL, each engine also says which formats, sizes and quantizations of it run here,
    and why the others don't. An engine that can't run says why, with the pip line where its library is missing.

    \b
    Examples:
      xi engines
      xi engines qwen2.5-instruct
      xi engines -n qwen2.5-instruct -s 0_5 -f ggufv2
      xi engines -n xi-tiny -en transformers
      xi engines --local
    """
    name = one_of(model_name, model, "model")
    if name is None and any(filters.values()):
        raise click.UsageError("name the model whose specs are asked for: xi engines NAME, or -n NAME")
    if local and endpoint:
        raise click.UsageError("--local looks at this environment: leave out -e")
    found = _probed(name, filters) if local else _asked(name, filters, endpoint, api_key)
    if as_json:
        print_json(found)
        return
    from xi_cli.draw import table

    if name is not None:
        rows = [row for engine in found for row in _spec_rows(engine)]
        table(("ENGINE", "RUNS", "FORMAT", "SIZES (B)", "QUANTIZATIONS", "DETAIL"), rows)
        return
    table(("ENGINE", "RUNS", "FORMATS", "PLUGIN", "DETAIL"), [_row(engine) for engine in found])
    if not found:
        say("No plugin offers an engine; `xi plugins` shows why.")


def _row(engine: EngineStatus) -> tuple[str, ...]:
    return (engine.name, "yes" if engine.available else "no", ", ".join(engine.formats), engine.plugin, engine.reason)


def _spec_rows(engine: EngineStatus) -> list[tuple[str, ...]]:
    """What runs, a row for each format and set of quantizations; then what doesn't, a row for each reason."""
    by_size: dict[tuple[str, str, str], list[str]] = {}
    refused: dict[str, list[SpecVerdict]] = {}
    for spec in engine.specs:
        if spec.runs:
            by_size.setdefault((spec.model_format, spec.reason, _size(spec)), []).append(_quantization(spec))
        else:
            refused.setdefault(spec.reason, []).append(spec)
    running: dict[tuple[str, str, str], list[str]] = {}
    for (model_format, reason, size), quantizations in by_size.items():
        running.setdefault((model_format, reason, ", ".join(quantizations)), []).append(size)
    rows: list[tuple[str, ...]] = []
    for (model_format, reason, names), sizes in running.items():
        rows.append((engine.name, "yes", model_format, ", ".join(sizes), names, reason))
    for reason, specs in refused.items():
        formats, names = _each(s.model_format for s in specs), _each(map(_quantization, specs))
        rows.append((engine.name, "no", formats, _each(map(_size, specs)), names, reason))
    return rows


def _each(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _size(spec: SpecVerdict) -> str:
    return spec.model_size_in_billions or "-"


def _quantization(spec: SpecVerdict) -> str:
    return spec.quantization or "none"


def _asked(model: str | None, filters: dict[str, str | None], endpoint: str | None, api_key: str | None) -> list[EngineStatus]:
    try:
        return connect(endpoint, api_key).engines(model, **filters)
    except Unavailable as error:
        raise Unavailable(f"{error.message}; `xi engines --local` looks at this environment without a server") from error


def _probed(model: str | None, filters: dict[str, str | None]) -> list[EngineStatus]:
    """What this environment's plugins say of this machine. Raises `UnknownModel`, `UnknownEngine`, `ArtifactError`."""
    from xi_core.api.control import LaunchSpec, model_type_of
    from xi_core.cluster.host import find_devices, host_info, inspect_path, match_engines, probe_engines
    from xi_core.cluster.matching import of_type, status
    from xi_core.models import catalog
    from xi_core.models.registered import RegisteredFamilies
    from xi_core.plugins import PluginHub

    hub = PluginHub.load(settings().plugins)
    host = host_info(find_devices(hub.devices, os.environ))
    given, kind = filters.pop("model_engine"), filters.pop("model_type")
    engines = [hub.engines.get(given, param="model_engine")] if given else list(hub.engines)
    specs = []
    if model is not None:
        RegisteredFamilies(hub.families, settings().home_dir)
        spec = catalog.normalised(msgspec.structs.replace(LaunchSpec(model_name=model), **filters))
        path = catalog.path_of(spec, hub.families)
        specs = catalog.candidates(spec, hub.families, inspect_path(hub.engines, path) if path else None)
        specs = of_type(specs, model_type_of(kind), model) if kind else specs
    runs, takes = probe_engines(engines, host), [match_engines(engines, spec, host) for spec in specs]
    return [status(hub, engine, runs[engine.name], specs, takes) for engine in engines]
