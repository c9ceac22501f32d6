"""`xi plan`: whether a model fits on given machines, in which layout and why. Needs no server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from xi_cli.measured_model import Measured, measured, model_options
from xi_cli.options import json_option, print_json, say, verbose_option
from xi_core.config import settings

if TYPE_CHECKING:
    from xi_core.models.sharding_plan import Answer, Question

NETWORKS = ("fast", "slow")
GIB = 2**30


@click.command()
@model_options
@click.option("--workers", type=click.IntRange(1, 4096), default=1, show_default=True, help="Machines to be had.")
@click.option("--gpus-per-worker", type=click.IntRange(1, 64), help="Devices of each; default: as many as this machine has.")
@click.option("--gpu-memory", metavar="SIZE", help="Memory of a device, such as 80GiB or 80; default: that of this machine's.")
@click.option(
    "--network", type=click.Choice(NETWORKS), default="fast", show_default=True,
    help="Between machines: as fast as InfiniBand, or slow as Ethernet.",
)  # fmt: skip
@json_option
@verbose_option
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    workers: int,
    gpus_per_worker: int | None,
    gpu_memory: str | None,
    network: Any,
    kv_cache_dtype: str,
    as_json: bool,
    **model: Any,
) -> None:
    """Tell which machines and layout a model needs.

    The smallest layout that it fits in: machines, devices, tensor and pipeline parallelism, with reasons. A request must be able to have
    the whole context (-c). Exits with status 1 where nothing fits.

    \b
    Examples:
      xi plan xi-tiny --gpus-per-worker 1 --gpu-memory 80GiB
      xi plan -s 70 -f pytorch --workers 2 --gpus-per-worker 4 --gpu-memory 80GiB
      xi plan --path ./my-model -c 32768
    """
    from xi_core.models.sharding_plan import Question
    from xi_core.models.sharding_plan import plan as plan_layout

    found = measured(**model)
    gpus, memory = _devices(gpus_per_worker, gpu_memory)
    question = Question(
        architecture=found.figures,
        weights=found.weights,
        tokens=found.context,
        workers=workers,
        gpus=gpus,
        memory=memory,
        cache_bits=float(kv_cache_dtype),
        cached=found.cached,
        blocks=found.in_blocks,
        network=network,
    )
    answer = plan_layout(question)
    if as_json:
        print_json(_as_json(found, answer))
    else:
        _show(found, question, answer)
    if not answer.layout.fits:
        ctx.exit(1)


def _devices(gpus: int | None, memory: str | None) -> tuple[int, int]:
    """How many devices a machine has, and bytes of each: as told, else as this machine's."""
    from xi_core.byte_size import parse_bytes

    if memory is not None:
        return gpus or 1, parse_bytes(memory, "--gpu-memory")
    from xi_core.cluster.host import find_devices
    from xi_core.plugins import PluginHub

    devices = find_devices(PluginHub.load(settings().plugins).devices, os.environ)
    if not devices:
        raise click.UsageError(
            "this machine has no devices to reckon with; tell of those to be had: --gpus-per-worker 4 --gpu-memory 80GiB"
        )
    return gpus or len(devices), min(device.memory for device in devices)


def _show(found: Measured, question: Question, answer: Answer) -> None:
    layout, each = answer.layout, answer.layout.each
    click.echo(f"model: {found.name}, {found.format} {found.quantization}: {found.billions:.1f} B weights, {_gib(found.weights)}")
    click.echo(f"machines: up to {question.workers} x {question.gpus} devices of {_gib(question.memory)}")
    click.echo(f"fits: {'yes' if layout.fits else 'no'}")
    click.echo(f"layout: {_layout(answer)}")
    parts = f"weights {_gib(each.weights)}, cache {_gib(each.cache)}, activations {_gib(each.activations)}, overhead {_gib(each.overhead)}"
    click.echo(f"each device: {_gib(each.total)} of {_gib(layout.room)}: {parts}")
    if layout.fits:
        click.echo(f"largest batch at context {found.context}: {layout.batch}")
    click.echo(f"longest context of one request: {layout.context or 'none'}")
    click.echo("why:")
    for reason in answer.reasons:
        click.echo(f"  {reason}")
    if layout.fits:
        click.echo(f"launch: {_command(found, answer)}")
    say(found.origin)


def _layout(answer: Answer) -> str:
    layout = answer.layout
    machines = f"{layout.workers} machine{'s' if layout.workers > 1 else ''} x {layout.gpus} device{'s' if layout.gpus > 1 else ''}"
    return f"{machines}, tensor parallel {layout.sharding.tensor}, pipeline parallel {layout.sharding.pipeline}"


def _command(found: Measured, answer: Answer) -> str:
    """The launch that makes this layout; an engine that can't shard takes the first two options only."""
    layout = answer.layout
    words = ["xi launch", found.launched_as, f"--n-gpu {layout.gpus}"]
    words += [f"--n-worker {layout.workers}"] if layout.workers > 1 else []
    words += [f"--tensor-parallel-size {layout.sharding.tensor}"] if layout.sharding.devices > 1 else []
    words += [f"--pipeline-parallel-size {layout.sharding.pipeline}"] if layout.sharding.pipeline > 1 else []
    return " ".join(words)


def _as_json(found: Measured, answer: Answer) -> dict[str, Any]:
    layout, each = answer.layout, answer.layout.each
    return {
        "model_name": found.name,
        "weights": found.weights,
        "context_length": found.context,
        "fits": layout.fits,
        "workers": layout.workers,
        "gpus_per_worker": layout.gpus,
        "tensor_parallel_size": layout.sharding.tensor,
        "pipeline_parallel_size": layout.sharding.pipeline,
        "each_device": {"weights": each.weights, "cache": each.cache, "activations": each.activations, "overhead": each.overhead},
        "room": layout.room,
        "largest_batch": layout.batch,
        "longest_context": layout.context,
        "reasons": answer.reasons,
    }


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
