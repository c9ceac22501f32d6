"""`xi batch`: a file of requests in, a file of answers out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xi_cli.commands.launch import LaunchCommand
from xi_cli.group import Failure
from xi_cli.options import client_options, connect, say
from xi_core.errors import ChannelClosed, LaunchError, LaunchFailed, Unavailable

if TYPE_CHECKING:
    from xi_core import LLM
    from xi_core.batch import Ask, BatchRequest, Counts, Watch
    from xi_core.batch_results import Result, Results

KEPT = "The answers so far are in {}; the same command goes on from there."
SHOWN = 5
"""Failures whose reason is told; the output file has them all."""


@click.command(cls=LaunchCommand)
@click.option("-i", "--input", "source", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Requests, one per line.")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Where answers go.")
@click.option("-m", "--model", metavar="MODEL", help="The model for every request, whatever the file names.")
@click.option("--offline", is_flag=True, help="Use no server: start MODEL for this batch only.")
@click.option("-en", "--model-engine", metavar="ENGINE", help="With --offline: the engine that runs it.")
@click.option("-t", "--model-type", metavar="TYPE", help="With --offline: the kind of model: LLM, embedding or rerank.")
@click.option("--concurrency", type=click.IntRange(1, 1024), default=64, show_default=True, help="Requests at a time.")
@client_options
@click.pass_context
def batch(
    ctx: click.Context,
    source: Path,
    target: Path,
    model: str | None,
    offline: bool,
    model_engine: str | None,
    model_type: str | None,
    concurrency: int,
    endpoint: str | None,
    api_key: str | None,
) -> None:
    """Answer a file of requests in OpenAI's batch format.

    Each line of the input is {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}. Each line of the output has
    the answer to one custom_id, in any order. What the output file holds already isn't asked again: the same command goes on where it was
    interrupted, and tries again what failed. Exit status 1 if any request failed.

    With --offline, options that `xi batch` doesn't know go to the engine, as in `xi launch`.

    \b
    Examples:
      xi batch -i requests.jsonl -o answers.jsonl
      xi batch -i requests.jsonl -o answers.jsonl --offline -m xi-tiny --model-engine llama.cpp
    """
    from xi_core.batch import read_requests
    from xi_core.batch_results import Results

    if model_type:
        ctx.meta["options"]["model_type"] = model_type
    _check(ctx, source, target, model, offline, model_engine)
    requests = read_requests(source, model)
    with ExitStack() as open_things:
        results = open_things.enter_context(Results(target))
        if offline:
            from xi_core import LLM

            ask = _offline(open_things.enter_context(LLM(model or "", model_engine, **ctx.meta["options"])))
        else:
            ask = _server(endpoint, api_key, requests)
        counts, failures = _run(requests, ask, results, concurrency)
    _sum_up(ctx, target, counts, failures)


def _check(ctx: click.Context, source: Path, target: Path, model: str | None, offline: bool, engine: str | None) -> None:
    options: dict[str, Any] = ctx.meta["options"]
    if offline and not model:
        raise click.UsageError("--offline starts a model: name it with -m")
    if not offline and (engine or options):
        name = "--model-engine" if engine else f"--{next(iter(options)).replace('_', '-')}"
        raise click.UsageError(f"{name} is for a model that is started here: add --offline, or launch it with `xi launch`")
    for name, meant in (("engine", "--model-engine"), ("model", "--model")):
        if name in options:
            raise click.UsageError(f"No such option: --{name}; did you mean {meant}?")
    if target.exists() and source.exists() and target.samefile(source):
        raise click.UsageError("-i and -o are the same file")


def _offline(llm: LLM) -> Ask:
    """The model's answers. One that is closed ends the batch: the requests that are left would all fail in one moment."""

    def ask(url: str, body: bytes) -> bytes:
        try:
            return llm.ask(url, body)
        except ChannelClosed as error:
            raise LaunchFailed(error.message) from error

    return ask


def _server(endpoint: str | None, api_key: str | None, requests: list[BatchRequest]) -> Ask:
    """A server's answers. Raises `Failure` where it doesn't have the models that the requests name."""
    import msgspec

    from xi_core.config import settings
    from xi_core.endpoint import Endpoint

    client = connect(endpoint, api_key)
    launched = [model.id for model in client.models()]
    missing = sorted({request.model for request in requests} - set(launched))
    if missing:
        raise Failure(
            f"the requests name models that aren't launched: {', '.join(missing[:SHOWN])}; launched: {', '.join(launched) or 'none'}. "
            f"Launch them, or name one for all requests with -m"
        )
    server = Endpoint(client.endpoint, api_key or settings().api_key)
    return lambda url, body: bytes(server.call(msgspec.Raw, "POST", url, msgspec.Raw(body), client.timeout))


def _run(requests: list[BatchRequest], ask: Ask, results: Results, concurrency: int) -> tuple[Counts, list[str]]:
    from xi_core.batch import run

    failures: list[str] = []
    done = sum(request.custom_id in results.finished for request in requests)
    try:
        with _progress(len(requests), done, failures) as watch:
            return run(requests, ask, results, concurrency, watch), failures
    except KeyboardInterrupt:
        say(f"\nInterrupted. {KEPT.format(results.path)}")
        raise
    except (Unavailable, LaunchError) as error:
        raise Failure(f"{error.message}. {KEPT.format(results.path)}") from error
    except OSError as error:
        raise Failure(f"{results.path} can't be written: {error.strerror or error}; the answers so far are in it") from error


@contextmanager
def _progress(total: int, done: int, failures: list[str]) -> Iterator[Watch]:
    """A bar, where stderr is a terminal. The first failures are collected in words."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=total, completed=done)

        def watch(counts: Counts, result: Result) -> None:
            bar.update(task, advance=1, description=f"{counts.failed} failed" if counts.failed else "")
            if not result.ok and len(failures) < SHOWN:
                failures.append(f"{result.custom_id}: {result.reason}")

        yield watch


def _sum_up(ctx: click.Context, target: Path, counts: Counts, failures: list[str]) -> None:
    for failure in failures:
        say(failure)
    more = f", {counts.skipped} were there already" if counts.skipped else ""
    say(f"{counts.done} of {counts.total} requests answered{more}, {counts.failed} failed. Answers: {target}")
    if counts.failed:
        ctx.exit(1)
