"""The model that `xi cal-model-mem` and `xi plan` reckon with: found by name, path or size, without a server. And their shared options."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from xi_cli.group import Failure
from xi_cli.options import one_of
from xi_core.api.control import LaunchSpec
from xi_core.config import settings
from xi_core.models import catalog, memory, typical
from xi_core.models.architecture import Architecture
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.models.inspect import inspect, inspect_config, local_path

Found = tuple[ModelSpec, str, bool]
"""A spec, where its figures come from, and whether they are only those of a model of about its size."""
F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = (
    click.argument("model", required=False),
    click.option("-n", "--model-name", metavar="NAME", help="A model's name, its directory or a .gguf file; as MODEL."),
    click.option("-mp", "--model-path", "--path", "model_path", metavar="PATH", help="A directory with a config.json, or a .gguf file."),
    click.option("-s", "--size-in-billions", metavar="SIZE", help="Billions of parameters: 7, 0.5 or 0_5."),
    click.option("-f", "--model-format", metavar="FORMAT", help="pytorch, ggufv2, gptq, awq, fp8 or mlx."),
    click.option("-q", "--quantization", metavar="NAME", help="Such as none, q4_k_m, Int4 or 8bit."),
    click.option("-c", "--context-length", type=click.IntRange(1), help="Tokens of prompt and answer together; default: the model's own."),
    click.option(
        "-k", "--kv-cache-dtype", type=click.Choice(["8", "16", "32"]), default="16", show_default=True, help="Bits of a cached value."
    ),
)  # fmt: skip


def model_options(command: F) -> F:
    """Which model, and with which context and cache. The command gets `model_name` and so on, for `measured`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Measured:
    """A model of which the memory can be reckoned."""

    name: str
    figures: Architecture
    weights: int
    """Bytes."""
    format: str
    quantization: str
    context: int
    """Tokens: those asked for, else the model's own."""
    origin: str
    """Where the figures come from, for people."""
    billions: float
    """Its weights in billions."""
    cached: bool = True
    """It generates text, and so keeps a cache."""
    launched_as: str = "MODEL"
    """The words of `xi launch` that mean it."""

    @property
    def in_blocks(self) -> bool:
        """Whether its weights are FP8, in blocks that can't be split."""
        return "fp8" in f"{self.format} {self.quantization}".lower()


def measured(
    model: str | None,
    model_name: str | None,
    model_path: str | None,
    size_in_billions: str | None,
    model_format: str | None,
    quantization: str | None,
    context_length: int | None,
) -> Measured:
    """The model that the options mean. Raises `UsageError`, `Failure` or a kind of `XiError`, saying what is missing."""
    name = one_of(model_name, model, "model")
    if name is None and model_path is None and size_in_billions is None:
        raise click.UsageError("name a model (MODEL or -n), a path (--path) or a size (-s)")
    if name is not None and model_path is not None:
        raise click.UsageError("--path and a model's name (MODEL or -n): give one")
    if model_format:
        _check_format(model_format)
    spec, origin, stands_in = _spec(name, model_path, size_in_billions, model_format, quantization)
    figures = spec.architecture_figures
    if figures is None:
        raise Failure(f"{spec.name} doesn't tell the sizes of its layers, so that its memory can't be reckoned; give a size alone (-s)")
    wanted_format = catalog.FORMAT_ALIASES.get((model_format or spec.format).lower(), (model_format or spec.format).lower())
    wanted = quantization or (spec.quantization if wanted_format == spec.format else None) or "none"
    as_stored = wanted_format == spec.format and wanted == (spec.quantization or "none")
    stored = spec.weight_bytes if as_stored else None
    own = memory.parameters(figures).total / 1e9
    billions = _billions(spec.size_in_billions) if stands_in and spec.size_in_billions else own
    weights = stored if stored is not None else math.ceil(memory.weight_bytes(figures, wanted_format, wanted) * billions / own)
    given = {"-s": size_in_billions, "-f": model_format, "-q": quantization}
    chosen = [f"{flag} {value}" for flag, value in given.items() if value and (name or model_path)]
    return Measured(
        name=spec.name,
        figures=figures,
        weights=weights,
        format=wanted_format,
        quantization=wanted,
        context=context_length or spec.context_length or figures.context or 8192,
        origin=origin + ("" if stored is None else "; weights: the size of the files"),
        billions=billions,
        cached=spec.model_type == "LLM",
        launched_as=" ".join([model_path or name or "MODEL", *chosen]),
    )


def _spec(name: str | None, path: str | None, size: str | None, form: str | None, quantization: str | None) -> Found:
    """The spec with its figures."""
    if path is None and name is not None and catalog.looks_like_path(name) and local_path(name).exists():
        path = name
    if path is not None:
        return _of_path(path, size), f"figures: {path}", False
    if name is not None:
        return _of_family(name, size, form, quantization)
    return _of_size("a model", _billions(size or ""))


def _check_format(given: str) -> None:
    """Raises `BadParameter` for a format that neither an engine nor a family has."""
    from xi_core.plugins import PluginHub

    hub = PluginHub.load(settings().plugins)
    known = {form for engine in hub.engines for form in engine.formats} | {spec.format for family in hub.families for spec in family.specs}
    if catalog.FORMAT_ALIASES.get(given.lower(), given.lower()) not in known:
        words = ", ".join(sorted(known))
        raise click.BadParameter(f"'{given}' is no format that is known: {words}", param_hint="'-f' / '--model-format'")


def _of_path(path: str, size: str | None) -> ModelSpec:
    """The spec of files. Raises `UsageError` where a size is asked for too: they have the one that they have."""
    if size is not None:
        raise click.UsageError(f"the files at {path} tell the model's size: leave -s/--size-in-billions out")
    found = local_path(path)
    weights = any(found.glob("*.safetensors")) or any(found.glob("*.gguf")) if found.is_dir() else True
    return inspect(found) if weights else inspect_config(found)


def _of_family(name: str, size: str | None, form: str | None, quantization: str | None) -> Found:
    from xi_core.models.registered import RegisteredFamilies
    from xi_core.plugins import PluginHub

    families = PluginHub.load(settings().plugins).families
    RegisteredFamilies(families, settings().home_dir)
    family = catalog.find_family(name, families)
    if family is not None and family.path:
        return _of_path(family.path, size), f"figures: {family.path}", False
    asked = catalog.normalised(LaunchSpec(model_name=name, size_in_billions=size, model_format=form, quantization=quantization))
    found = catalog.candidates(asked, families)
    told = next((spec for spec in found if spec.architecture_figures is not None), None)
    if told is not None:
        return told, f"figures: the family {told.name}", False
    if found[0].size_in_billions is None:
        return found[0], "", False
    return _of_size(found[0].name, _billions(found[0].size_in_billions), found[0].context_length)


def _of_size(name: str, billions: float, context: int | None = None) -> Found:
    """A model of which only the size is known: figures of the well-known one that comes nearest, weights by the size itself."""
    alike, figures = typical.nearest(billions)
    spec = ModelSpec(name=name, format="pytorch", source=SourceRef(source="local", id=""), size_in_billions=str(billions))
    spec.architecture_figures, spec.context_length = figures, context
    return spec, f"figures: of {alike}, the well-known model nearest to {billions:g} B", True


def _billions(text: str) -> float:
    try:
        found = float(catalog.same_size(text))
    except ValueError:
        found = 0.0
    if not 0 < found < 1e5:
        raise click.BadParameter(f"'{text}' is no number of billions; write 7, 0.5 or 0_5", param_hint="'-s' / '--size-in-billions'")
    return found
