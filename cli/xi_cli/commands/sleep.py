"""`xi sleep`, `xi wake`: give back the memory of a model's devices, and take it again."""

from __future__ import annotations

import click

from xi_cli.options import client_options, connect, json_option, print_json, say


@click.command()
@click.argument("uid", metavar="MODEL")
@click.option("--level", type=click.IntRange(1, 2), default=1, show_default=True, help="1 keeps the weights in main memory, 2 drops them.")
@json_option
@client_options
def sleep(uid: str, level: int, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Free the memory of a model's devices until it is woken.

    It takes no new requests and finishes those that run; then all of its replicas sleep, and its processes and its place stay. The engine
    must be able to, and mostly be launched for it: vLLM with --enable-sleep-mode, SGLang with --enable-memory-saver.

    \b
    Examples:
      xi sleep my-model
      xi sleep my-model --level 2
    """
    connect(endpoint, api_key).sleep(uid, level)
    if as_json:
        print_json({"model_uid": uid, "level": level})
    else:
        say(f"Asleep: {uid}. Wake it: xi wake {uid}")


@click.command()
@click.argument("uid", metavar="MODEL")
@json_option
@client_options
def wake(uid: str, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Have a model that sleeps serve again.

    \b
    Examples:
      xi wake my-model
    """
    connect(endpoint, api_key).wake(uid)
    if as_json:
        print_json({"model_uid": uid, "level": 0})
    else:
        say(f"Awake: {uid}")
