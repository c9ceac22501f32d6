"""`xi pull`: download a model into this machine's cache, without a server and without a launch."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from xi_cli.options import one_of, say, verbose_option
from xi_core.config import settings

if TYPE_CHECKING:
    from xi_core.models.family import ModelSpec
    from xi_core.plugins import PluginHub

LINES = 5.0
"""Seconds between two lines of progress where there is no terminal."""


@click.command()
@click.argument("model", required=False)
@click.option("-n", "--model-name", metavar="NAME", help="A family's name or a hub id; as MODEL.")
@click.option("-s", "--size-in-billions", metavar="SIZE", help="Which size: 7, 0.5 or 0_5.")
@click.option("-f", "--model-format", metavar="FORMAT", help="Which format: pytorch, ggufv2, mlx, gptq, awq, fp8.")
@click.option("-q", "--quantization", metavar="NAME", help="Which quantization, such as q4_k_m.")
@click.option("--source", metavar="NAME", help="Where from: huggingface or modelscope. [env: XI_MODEL_SRC]")
@verbose_option
def pull(
    model: str | None,
    model_name: str | None,
    size_in_billions: str | None,
    model_format: str | None,
    quantization: str | None,
    source: str | None,
) -> None:
    """Download a model into this machine's XI_HOME, where launches find it.

    A model that is there already is brought up to date: its hub is asked, and what is new is downloaded. A download that was
    interrupted is gone on with. No server is needed; on a cluster, pull on each worker, or let the launch do it.

    \b
    Examples:
      xi pull qwen2.5-instruct -s 0_5 -f pytorch
      xi pull Qwen/Qwen2.5-0.5B-Instruct --source modelscope
    """
    from xi_core.plugins import PluginHub

    name = one_of(model_name, model, "model")
    if name is None:
        raise click.UsageError("name the model: xi pull NAME, or -n NAME")
    hub = PluginHub.load(settings().plugins)
    spec = _spec(hub, name, size_in_billions, model_format, quantization, source)
    click.echo(_pulled(hub, spec))


def _spec(hub: PluginHub, name: str, size: str | None, model_format: str | None, quantization: str | None, source: str | None) -> ModelSpec:
    """The one spec that the options mean. Raises `UsageError` where there are several, listing them."""
    from xi_core.api.control import LaunchSpec
    from xi_core.models.catalog import candidates, find_family, looks_like_path, normalised
    from xi_core.models.hub_id import is_hub_id

    if source:
        hub.sources.get(source, param="source")
    default = hub.sources.get(settings().model_src, param="XI_MODEL_SRC").name
    if looks_like_path(name) and not is_hub_id(name) and find_family(name, hub.families) is None:
        raise click.UsageError(f"'{name}' is a path: there is nothing to download. Give a family's name or a hub id (owner/name)")
    wanted = LaunchSpec(model_name=name, size_in_billions=size, model_format=model_format, quantization=quantization, source=source or None)
    found = candidates(normalised(wanted), hub.families, default_source=default)
    if len({(one.source.id, one.source.files) for one in found}) > 1:
        shown = "\n  ".join(
            f"-s {one.size_in_billions or '?'} -f {one.format} -q {one.quantization or 'none'}   {one.source.id}" for one in found[:40]
        )
        raise click.UsageError(f"'{name}' comes in several kinds; say which:\n  {shown}")
    return found[0]


def _pulled(hub: PluginHub, spec: ModelSpec) -> str:
    """Where the model is."""
    from xi_core.cluster.fetching import source_of
    from xi_core.models.hub import HubSource

    source, home = source_of(hub.sources, spec.source), settings().home_dir
    say(f"{spec.describe()}: {spec.source.id} from {spec.source.source}")
    with Shown() as shown:
        if isinstance(source, HubSource):
            return str(source.pull(spec.source, home, shown))
        return str(source.fetch(spec.source, home, shown))


class Shown:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere. A context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._live = sys.stderr.isatty()
        self._bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=Console(file=sys.stderr),
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=None)
        self._told_at, self._said = 0.0, ""

    def __enter__(self) -> Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, share: float | None) -> None:
        """Show it."""
        if self._live:
            self._bar.update(self._task, description=stage, total=None if share is None else 1.0, completed=share or 0.0)
            return
        kind, now = stage.partition(":")[0], time.monotonic()
        if kind != self._said or now - self._told_at >= LINES:
            self._said, self._told_at = kind, now
            say(stage)
