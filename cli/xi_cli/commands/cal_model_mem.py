"""`xi cal-model-mem`: what a model takes of memory on one device, as Xinference's command of this name tells it. Needs no server."""

from __future__ import annotations

import math
from typing import Any

import click

from xi_cli.measured_model import measured, model_options
from xi_cli.options import json_option, print_json, say, verbose_option

MIB = 2**20


@click.command()
@model_options
@json_option
@verbose_option
def cal_model_mem(kv_cache_dtype: str, as_json: bool, **model: Any) -> None:
    """Estimate the memory that a model takes.

    On one device: weights, the cache of one whole context, overhead, activations. With a size alone (-s), the figures of a well-known
    model of about that size stand in.

    \b
    Examples:
      xi cal-model-mem xi-tiny
      xi cal-model-mem -s 7 -f ggufv2 -q q4_k_m -c 8192
      xi cal-model-mem --path ./my-model -c 32768 -k 8
    """
    from xi_core.models.memory import estimate

    found = measured(**model)
    each = estimate(found.figures, found.weights, found.context, cache_bits=float(kv_cache_dtype), cached=found.cached)
    if as_json:
        print_json(
            {
                "model_name": found.name,
                "model_format": found.format,
                "quantization": found.quantization,
                "context_length": found.context,
                "kv_cache_dtype": int(kv_cache_dtype),
                "parameters_in_billions": round(found.billions, 3),
                "model_mem": each.weights,
                "kv_cache": each.cache,
                "overhead": each.overhead,
                "active": each.activations,
                "total": each.total,
            }
        )
        return
    click.echo(f"model_name: {found.name}\nkv_cache_dtype: {kv_cache_dtype}\nmodel size: {found.billions:.1f} B")
    click.echo(f"quant: {found.quantization}\ncontext: {found.context}\ngpu mem usage:")
    for name, size in (("model mem", each.weights), ("kv_cache", each.cache), ("overhead", each.overhead), ("active", each.activations)):
        click.echo(f"  {name}: {math.ceil(size / MIB)} MB")
    click.echo(f"  total: {math.ceil(each.total / MIB)} MB ({math.ceil(each.total / 2**30)} GB)")
    say(found.origin)
