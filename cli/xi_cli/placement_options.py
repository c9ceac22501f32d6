"""The options of `xi launch` that say where replicas go, and the answer of a dry run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from xi_core.api.control import PlacementReport, ReplicaConfig

F = TypeVar("F", bound=Callable[..., Any])


def placement_options(command: F) -> F:
    """`--n-gpu`, `--gpu-idx`, `--n-worker` and the others; the command gets them under the names of the spec's fields."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _n_gpu(_ctx: click.Context, _param: click.Parameter, value: str) -> int | str | None:
    if value.lower() in ("auto", "none"):
        return "auto" if value.lower() == "auto" else None
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"'{value}' is neither 'auto', 'none' nor a number")


def _gpu_idx(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    words = value.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise click.BadParameter(f"'{value}' is no list of numbers, such as 0,1")
    return [int(word) for word in words]


def _replica_config(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[ReplicaConfig] | None:
    if value is None:
        return None
    import msgspec

    from xi_core.api.control import ReplicaConfig

    try:
        return msgspec.convert(json.loads(value), list[ReplicaConfig])
    except (ValueError, msgspec.ValidationError) as error:
        raise click.BadParameter(
            f"""{error}; write a JSON list with an object for each replica: '[{{"worker": "w1", "gpu_idx": [0]}}]'"""
        ) from None


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--n-gpu",
        default="auto",
        show_default=True,
        callback=_n_gpu,
        help="Devices per replica, on each of its workers: auto, none or a number.",
    ),
    click.option("--gpu-idx", metavar="LIST", callback=_gpu_idx, help="The devices to choose from: 0,1."),
    click.option(
        "--gpu-pool",
        type=click.IntRange(1),
        metavar="N",
        help="At most N devices for all replicas: -r 3 --gpu-pool 2 puts 2 on one and 1 on another.",
    ),
    click.option(
        "--n-worker",
        type=click.IntRange(1, 1024),
        default=1,
        show_default=True,
        help="Workers that share each replica, where the engine can.",
    ),
    click.option("--worker-ip", metavar="LIST", help="The workers to choose from, by name or address."),
    click.option(
        "--replica-config", metavar="JSON", callback=_replica_config, help="A place for each replica: a list with worker, gpu_idx, n_gpu."
    ),
    click.option(
        "--scheduler",
        metavar="NAME",
        help="What chooses the devices: idle_first, spread or a plugin's. [env of the server: XI_LAUNCH_STRATEGY]",
    ),
)


def show(reports: list[PlacementReport]) -> None:
    """Print where each replica would go and why."""
    from xi_cli.draw import table

    rows = [
        (number, candidate.worker, candidate.device or "CPU", "yes" if candidate.taken else "no", candidate.reason)
        for number, report in enumerate(reports)
        for candidate in report.candidates
    ]
    table(("REPLICA", "WORKER", "DEVICE", "TAKEN", "WHY"), rows)
