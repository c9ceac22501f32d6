"""`xi generate`: one text in, its continuation out."""

from __future__ import annotations

from typing import Any

import click

from xi_cli.answer import given, sampling_options, show
from xi_cli.options import client_options, connect, json_option, one_of, pick_model, print_json, read_prompt


@click.command()
@click.argument("model", required=False)
@click.option("-n", "--model", "model_option", metavar="UID", help="The model's uid; as MODEL.")
@click.option("-p", "--prompt", metavar="TEXT", help="The text to continue; default: all of stdin.")
@sampling_options
@json_option
@client_options
def generate(
    model: str | None,
    model_option: str | None,
    prompt: str | None,
    as_json: bool,
    endpoint: str | None,
    api_key: str | None,
    **sampling: Any,
) -> None:
    """Let a model continue a text.

    The continuation is streamed to stdout. MODEL may be left out if only one model is launched.

    \b
    Examples:
      xi generate xi-tiny --prompt "The capital of France is" --max-tokens 8
      cat story.txt | xi generate xi-tiny --temperature 0.8 --seed 1
    """
    text = read_prompt(prompt)
    client = connect(endpoint, api_key)
    uid = pick_model(client, one_of(model_option, model, "model"))
    if as_json:
        print_json(client.complete(uid, text, **given(sampling)))
    else:
        show(client.complete(uid, text, stream=True, **given(sampling)), [])
