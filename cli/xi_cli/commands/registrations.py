"""`xi registrations`: the models that can be launched by name. `xi vllm-models`: those that vLLM runs."""

from __future__ import annotations

import click

from xi_cli.options import client_options, connect, json_option, print_json, say


@click.command()
@click.option("-t", "--model-type", metavar="TYPE", help="Only models of this type: LLM, embedding or rerank.")
@json_option
@client_options
def registrations(model_type: str | None, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """List the models that can be launched by name: built-in ones, and those that were registered.

    \b
    Examples:
      xi registrations
      xi registrations -t embedding
    """
    found = connect(endpoint, api_key).registrations(model_type)
    if as_json:
        print_json(found)
        return
    from xi_cli.draw import table

    table(
        ("NAME", "TYPE", "BUILT-IN", "ABILITIES", "FORMATS", "SIZES (B)", "CONTEXT"),
        [
            (
                one.model_name,
                one.model_type,
                "yes" if one.is_builtin else "no" if one.persistent else "no, not kept",
                ", ".join(one.model_ability),
                one.model_path or ", ".join(one.formats),
                ", ".join(one.sizes),
                one.context_length,
            )
            for one in found
        ],
    )


@click.command("vllm-models")
@json_option
@client_options
def vllm_models(as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """List the models that vLLM is known to run, on Linux with a GPU.

    They are told by the architectures that vLLM has code for, whether it is installed here or not; which of their specs run here is told
    by `xi engines NAME -en vLLM`.

    \b
    Examples:
      xi vllm-models
      xi vllm-models --json
    """
    client = connect(endpoint, api_key)
    found = client.registrations(engine="vLLM")
    vllm = next((engine for engine in client.engines() if engine.name == "vLLM"), None)
    if as_json:
        print_json(found)
    else:
        from xi_cli.draw import table

        rows = [(one.model_name, one.model_type, ", ".join(one.model_ability), ", ".join(one.sizes)) for one in found]
        table(("NAME", "TYPE", "ABILITIES", "SIZES (B)"), rows)
    if vllm is not None and not vllm.available:
        say(f"vLLM doesn't run here: {vllm.reason}")
