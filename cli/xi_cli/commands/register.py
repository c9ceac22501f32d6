"""`xi register` and `xi unregister`: models of one's own, launched by a name."""

from __future__ import annotations

import json
from typing import IO

import click

from xi_cli.options import client_options, connect, json_option, one_of, print_json, say

LARGEST = 1024 * 1024
MODEL_TYPES = ("LLM", "embedding", "rerank")


@click.command()
@click.option("-f", "--file", type=click.File(encoding="utf-8"), required=True, help="The model's file (JSON); - for stdin.")
@click.option("-t", "--model-type", metavar="TYPE", help="LLM, embedding or rerank; default: as the file says, else LLM.")
@click.option("-p", "--persist/--no-persist", default=True, show_default=True, help="Keep it over restarts, in the server's XI_HOME.")
@json_option
@client_options
def register(file: IO[str], model_type: str | None, persist: bool, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Register a model of one's own, which can be launched by its name from then on.

    FILE holds a family in xi's form (docs/how-to/models.md) or a custom model in Xinference's.

    \b
    Examples:
      xi register -f my-model.json
      xi register -t embedding -f my-embeddings.json --no-persist
    """
    try:
        text = file.read(LARGEST + 1)
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{file.name} is not UTF-8: {error.reason}", param_hint="'-f'") from None
    if len(text) > LARGEST:
        raise click.BadParameter(f"{file.name} is over {LARGEST} characters", param_hint="'-f'")
    if not text.strip():
        raise click.BadParameter(f"{file.name} is empty", param_hint="'-f'")
    answer = connect(endpoint, api_key).register(model_type or _type_in(text), text, persist=persist)
    for note in answer.notes:
        say(f"Note: {note}")
    print_json(answer) if as_json else click.echo(f"Registered: {answer.model_name}")


def _type_in(text: str) -> str:
    """The type that the file tells. What is wrong with the file, the server says."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return "LLM"
    told = found.get("model_type") if isinstance(found, dict) else None
    return told if told in MODEL_TYPES else "LLM"


@click.command()
@click.argument("name", required=False)
@click.option("-n", "--model-name", metavar="NAME", help="The model's name; as NAME.")
@click.option("-t", "--model-type", metavar="TYPE", default="LLM", show_default=True, help="Its type: LLM, embedding or rerank.")
@json_option
@client_options
def unregister(name: str | None, model_name: str | None, model_type: str, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Take a registered model out again. What runs of it runs on.

    \b
    Examples:
      xi unregister -n my-model
      xi unregister -t embedding my-embeddings
    """
    found = one_of(model_name, name, "name")
    if found is None:
        raise click.UsageError("no name: xi unregister NAME, or -n NAME")
    connect(endpoint, api_key).unregister(model_type, found)
    print_json({"model_name": found}) if as_json else click.echo(f"Unregistered: {found}")
