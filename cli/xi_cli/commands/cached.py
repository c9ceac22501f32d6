"""`xi cached` and `xi remove-cache`: the downloaded models."""

from __future__ import annotations

import time

import click

from xi_cli.options import client_options, confirm, connect, json_option, one_of, print_json, say
from xi_core.byte_size import in_words


@click.command()
@click.argument("model", required=False)
@click.option("-n", "--model-name", metavar="NAME", help="Only this model: a hub id or a family's name; as MODEL.")
@json_option
@client_options
def cached(model: str | None, model_name: str | None, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """List the downloaded models of all workers.

    Those that came in part, or are damaged, stand there as not complete.

    \b
    Examples:
      xi cached
      xi cached -n qwen2.5-instruct
    """
    found = connect(endpoint, api_key).cached(one_of(model_name, model, "model"), incomplete=True)
    if as_json:
        print_json(found)
        return
    if not found:
        say("No model is in the cache. A launch downloads what it needs; `xi pull MODEL` does without a launch.")
        return
    from xi_cli.draw import table

    rows = [
        (
            one.worker,
            one.model_name,
            one.source,
            one.model_version[:12],
            in_words(one.size),
            one.files,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.created)) if one.complete else "not complete",
        )
        for one in found
    ]
    table(("WORKER", "MODEL", "SOURCE", "COMMIT", "SIZE", "FILES", "COMPLETE SINCE"), rows)


@click.command("remove-cache")
@click.argument("model", required=False)
@click.option("-n", "--model-name", metavar="NAME", help="A hub id, or a family's name for all of its sizes; as MODEL.")
@click.option("--source", metavar="NAME", help="Only what came from this source.")
@click.option("--revision", metavar="COMMIT", help="Only this commit, in full.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@client_options
def remove_cache(
    model: str | None,
    model_name: str | None,
    source: str | None,
    revision: str | None,
    yes: bool,
    endpoint: str | None,
    api_key: str | None,
) -> None:
    """Delete a downloaded model from all workers, unless something uses it.

    \b
    Examples:
      xi remove-cache Qwen/Qwen2.5-0.5B-Instruct
      xi remove-cache -n qwen2.5-instruct --yes
    """
    name = one_of(model_name, model, "model")
    if name is None:
        raise click.UsageError("name the model: xi remove-cache NAME, or -n NAME")
    client = connect(endpoint, api_key)
    for one in client.cached(name, incomplete=True):
        if source in (None, one.source) and revision in (None, one.model_version):
            say(f"{one.worker}: {one.model_name} of {one.source}, {one.model_version[:12]}, {in_words(one.size)}")
    if not yes:
        confirm(f"Delete '{name}' from the cache?", "nothing was deleted")
    say(f"Removed: {name}; {in_words(client.remove_cached(name, source, revision))} are free")
