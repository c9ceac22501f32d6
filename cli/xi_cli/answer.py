"""Streaming answers to the terminal, and the sampling options: what `xi chat` and `xi generate` share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xi_cli.options import finite

if TYPE_CHECKING:
    from xi_core.client import Deltas

F = TypeVar("F", bound=Callable[..., Any])

SAMPLING = (
    click.option("--max-tokens", type=click.IntRange(1), help="Most tokens of the answer."),
    click.option("--temperature", type=float, callback=finite, help="0 is greedy; higher is more random."),
    click.option("--top-p", type=float, callback=finite, help="Sample among the likeliest tokens that have this share of probability."),
    click.option("--top-k", type=int, help="Sample among the k likeliest tokens."),
    click.option("--min-p", type=float, callback=finite, help="Drop tokens less likely than this share of the likeliest."),
    click.option("--presence-penalty", type=float, callback=finite, help="Against tokens that occurred, -2 to 2."),
    click.option("--frequency-penalty", type=float, callback=finite, help="Against tokens by how often they occurred, -2 to 2."),
    click.option("--repetition-penalty", type=float, callback=finite, help="Against repetition; 1 is none."),
    click.option("--seed", type=int, help="The same seed gives the same answer."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text; repeatable."),
)


def sampling_options(command: F) -> F:
    """The API's sampling fields as options; the command gets them as `**sampling`, for `given`."""
    for option in reversed(SAMPLING):
        command = option(command)
    return command


def given(sampling: dict[str, Any]) -> dict[str, Any]:
    """The sampling fields that were given, as the API wants them: what is left out is the server's default."""
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in sampling.items()}
    return {name: value for name, value in fields.items() if value is not None and value != []}


def show(deltas: Deltas, pieces: list[str]) -> None:
    """Write an answer to stdout as it comes, and collect its text in `pieces`.

    Reasoning and tool calls go to stderr: they are talk. Leaving early, by Ctrl-C too, closes the stream, which stops the server's work.
    """
    calls: dict[int, dict[str, str]] = {}
    with closing(deltas):
        for delta in deltas:
            if delta.reasoning:
                click.secho(delta.reasoning, nl=False, err=True, dim=True)
            if delta.text:
                pieces.append(delta.text)
                sys.stdout.write(delta.text)
                sys.stdout.flush()
            for call in delta.tool_calls:
                _gather(calls, call)
    sys.stdout.write("\n")
    sys.stdout.flush()
    for call in calls.values():
        click.echo(f"[calls {call['name']}({call['arguments']})]", err=True)


def _gather(calls: dict[int, dict[str, str]], piece: dict[str, Any]) -> None:
    """Add a piece of a tool call: names and arguments come in parts."""
    whole = calls.setdefault(piece.get("index", 0), {"name": "", "arguments": ""})
    function = piece.get("function") or {}
    for part in whole:
        whole[part] += function.get(part) or ""
