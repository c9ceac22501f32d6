"""`xi join-token`: let one more machine into the cluster."""

from __future__ import annotations

import math
import re

import click

from xi_cli.options import client_options, connect, json_option, print_json, say
from xi_core.api.control import MemberRole

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """`90s`, `15m`, `1h`, `2d`; seconds as a float."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value).strip().lower())
        seconds = float(found[1]) * UNITS[found[2]] if found is not None else math.inf
        if seconds == math.inf:
            self.fail(f"'{value}' is no duration: write 90s, 15m, 1h or 2d", param, ctx)
        return seconds


@click.command(name="join-token")
@click.option("--ttl", type=Duration(), default="1h", show_default=True, help="How long it is good.")
@click.option("--role", type=click.Choice(["worker", "gateway"]), default="worker", show_default=True, help="As what it lets in.")
@json_option
@client_options
def join_token(ttl: float, role: MemberRole, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Make a token with which one more machine joins.

    It is for one use. Whoever has it can join: pass it on in secret.

    \b
    Examples:
      xi join-token
      xi join-token --ttl 10m --role gateway
    """
    made = connect(endpoint, api_key).join_token(role, ttl)
    if as_json:
        print_json(made)
    else:
        say("On the other machine:\n")
        say(f"  {made.command}\n")
        click.echo(made.token)
