"""`xi launch`: ask for a model, show how it comes up, end with READY or the reason why not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xi_cli import INTERRUPTED, engine_options, lora_option
from xi_cli.group import Failure
from xi_cli.interrupts import held_interrupt
from xi_cli.options import client_options, connect, json_option, one_of, print_json, say
from xi_cli.placement_options import placement_options, show
from xi_core.errors import LaunchCancelled, LaunchError, ModelNotFound, UnknownModel, UnknownOption, XiError

STARTING = 5.0
"""Seconds in which `xi launch` waits for a server that may just be starting."""

if TYPE_CHECKING:
    from xi_core.api.control import LaunchSpec, ModelStatus
    from xi_core.client import Client


class LaunchCommand(click.Command):
    """A command that leaves options which it doesn't know in `ctx.meta["options"]`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known, ctx.meta["options"] = engine_options.part(self.params, lora_option.spread(args))
        return super().parse_args(ctx, known)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[--ENGINE-OPTION VALUE]..."]


@click.command(cls=LaunchCommand)
@click.argument("model", required=False)
@click.option("-n", "--model-name", metavar="NAME", help="A model's name, its directory or a .gguf file; as MODEL.")
@click.option("-t", "--model-type", default="LLM", show_default=True, help="The kind of model: LLM, embedding or rerank.")
@click.option("-en", "--model-engine", metavar="ENGINE", help="The engine that serves it; default: the best that can. See `xi engines`.")
@click.option("-u", "--model-uid", metavar="UID", help="What the launch is called; default: the model's name.")
@click.option("-s", "--size-in-billions", metavar="SIZE", help="Which size, in billions of parameters: 7, 0.5 or 0_5.")
@click.option("-f", "--model-format", metavar="FORMAT", help="Which format: pytorch, ggufv2, mlx.")
@click.option("-q", "--quantization", metavar="NAME", help="Which quantization, such as q4_k_m.")
@click.option("-r", "--replica", type=click.IntRange(1, 1024), default=1, show_default=True, help="How many copies to serve with.")
@placement_options
@click.option("--source", metavar="NAME", help="Where its files come from: huggingface or modelscope. [env: XI_MODEL_SRC]")
@click.option("-mp", "--model-path", metavar="PATH", help="Weights to take instead of the model's own.")
@click.option("--enable-thinking/--no-enable-thinking", default=None, help="Whether the model thinks where a request doesn't say.")
@click.option("--tool-parser", metavar="NAME", help="What reads tool calls from answers, or none; default: the model's own.")
@click.option("--reasoning-parser", metavar="NAME", help="What tells reasoning from answers, or none; default: the model's own.")
@click.option(
    "-lm", "--lora-modules", multiple=True, metavar="NAME=PATH", callback=lora_option.parsed,
    help="A LoRA adapter to serve beside the model, and the name that calls it; repeatable, or several after one flag.",
)  # fmt: skip
@click.option(
    "--enable-virtual-env/--disable-virtual-env", default=None, help="Packages of the model's own; by itself where some are named."
)
@click.option(
    "-vp", "--virtual-env-package", "virtual_env_packages", multiple=True, metavar="SPEC",
    help="A package with versions for the model's own environment: 'xllamacpp==2026.10.11549'; repeatable.",
)  # fmt: skip
@click.option(
    "--virtual-env-find-link", "virtual_env_find_links", multiple=True, metavar="DIR",
    help="A directory of the worker's machine in which packages may lie; repeatable.",
)  # fmt: skip
@click.option("--context-length", type=click.IntRange(1), metavar="N", help="Most tokens of prompt and answer together; of any engine.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code in the model's directory, where the server's operator allows it too."
)
@click.option("--env", nargs=2, multiple=True, metavar="NAME VALUE", help="An environment variable of the replicas; repeatable.")
@click.option("--explain", is_flag=True, help="Only show where each replica would go, and why not elsewhere; start nothing.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the model is ready.")
@json_option
@client_options
@click.pass_context
def launch(
    ctx: click.Context,
    /,
    model: str | None,
    model_name: str | None,
    env: tuple[tuple[str, str], ...],
    context_length: int | None,
    explain: bool,
    wait: bool,
    as_json: bool,
    endpoint: str | None,
    api_key: str | None,
    **fields: Any,
) -> None:
    """Launch a model and wait until it is ready.

    MODEL is a model's name, a directory with weights or a .gguf file. Options that are not listed here go to the engine, which checks
    them: --batch-size 8, --batch_size=8, bare --flags, and JSON values. Ctrl-C cancels the launch, unless it was there before.

    \b
    Examples:
      xi launch xi-tiny
      xi launch xi-tiny -en transformers -u tiny -r 2
      xi launch ./my-model --context-length 2048
      xi launch model.Q4_K_M.gguf --no-wait
      xi launch ./my-model -r 3 --gpu-pool 2 --explain
      xi launch ./my-model --lora-modules sql=./sql-adapter
    """
    from xi_core.api.control import LaunchSpec

    name = one_of(model_name, model, "model")
    if name is None:
        raise click.UsageError("no model: give its name before the engine's options (xi launch NAME --option VALUE) or with -n", ctx)
    fields["model_path"] = _absolute(fields["model_path"]) if fields["model_path"] else None
    for several in ("virtual_env_packages", "virtual_env_find_links"):
        fields[several] = list(fields[several])
    options = engine_options.joined(ctx.meta["options"], context_length=context_length)
    spec = LaunchSpec(model_name=_named(name), env=dict(env), options=options, **fields)
    client = connect(endpoint, api_key)
    _await_server(client)
    if explain:
        _explain(client, spec, as_json)
        return
    uid, begun = _start(ctx, client, spec, name)
    if not wait:
        print_json({"model_uid": uid}) if as_json else click.echo(f"Model uid: {uid}")
        return
    status = _watch(ctx, client, uid, begun)
    say(_told(status))
    print_json(status) if as_json else click.echo(f"Model uid: {uid}")


def _told(status: ModelStatus) -> str:
    """How the launch is that was waited for."""
    uid, asleep = status.model_uid, f", {status.asleep_replicas} asleep" if status.asleep_replicas else ""
    if status.state != "READY":
        serve = f"{status.ready_replicas} of {status.spec.replica} replicas serve{asleep}"
        return f"{uid} is launched already; {serve}: {status.hindrance()}{_logs(status)}"
    hint = f" Talk with it: xi chat {uid}" if status.spec.model_type == "LLM" else ""
    return f"{uid}: READY{_where(status)}.{hint}"


def _logs(status: ModelStatus) -> str:
    """How to read what a replica wrote that has ended; one may stand for all of them."""
    failing = next((replica.replica_id for replica in status.replicas if replica.error and replica.state != "READY"), None)
    if failing is None:
        return ""
    return f"\nWhat {failing} wrote: xi logs {status.model_uid} --replica {failing.removeprefix(f'{status.model_uid}-')}"


def _where(status: ModelStatus) -> str:
    """The engine, and where the launch named none, what xi has chosen."""
    if not status.engine:
        return ""
    size = f"{status.size_in_billions}B" if status.size_in_billions else ""
    chosen = ", ".join(part for part in (status.model_format, size, status.quantization or "") if part)
    return f" on {status.engine}" + (f" ({chosen}; xi's choice)" if chosen and status.spec.model_engine is None else "")


def _explain(client: Client, spec: LaunchSpec, as_json: bool) -> None:
    reports = client.explain(spec)
    if as_json:
        print_json(reports)
    else:
        show(reports)
    if not all(report.placed for report in reports):
        raise Failure(f"replica {len(reports)} of {spec.replica} would find no place: {reports[-1].reason}")


def _named(name: str) -> str:
    """The name, made an absolute path if it is one: a file, or a directory that is written as a path or holds a model."""
    path = Path(os.path.expanduser(name))
    written = os.sep in name or name.startswith((".", "~"))
    if path.is_file() or (path.is_dir() and (written or (path / "config.json").is_file())):
        return str(path.absolute())
    if name.startswith((".", "~")) or (name.endswith(".gguf") and not path.is_absolute() and not name.startswith("file:")):
        raise click.BadParameter(f"there is no file or directory '{name}'", param_hint="'MODEL'")
    return name


def _absolute(text: str) -> str:
    path = Path(os.path.expanduser(text))
    return str(path.absolute()) if path.exists() else text


def _await_server(client: Client) -> None:
    """A server that was started a moment ago (`xi serve &`) may not listen yet. Whatever else is wrong, the launch itself will say."""
    began = time.monotonic()
    told = False
    while not client.reachable() and (waited := time.monotonic() - began) < STARTING:
        if waited > 1.0 and not told:
            told = True
            say(f"Waiting for a server at {client.endpoint}…")
        time.sleep(0.05)


def _start(ctx: click.Context, client: Client, spec: LaunchSpec, name: str) -> tuple[str, bool]:
    """Send the launch. Answers its uid, and whether it is begun by this. Ctrl-C waits for that: without it nothing could be cancelled."""
    with held_interrupt("cancel the launch") as interrupted:
        try:
            answer = client.begin(spec)
        except UnknownOption as error:
            raise _with_hint(error, _meant_flag(ctx, error.param)) from error
        except UnknownModel as error:
            raise _with_hint(error, f"'{name}' is a directory here: write ./{name} to launch it" if Path(name).is_dir() else "") from error
    uid, begun = answer.model_uid, not answer.existed
    if interrupted:
        _cancel(ctx, client, uid, begun)
    return uid, begun


def _watch(ctx: click.Context, client: Client, uid: str, begun: bool) -> ModelStatus:
    try:
        from xi_cli.progress import LaunchProgress  # in here, for it takes a while, in which Ctrl-C cancels too

        with LaunchProgress() as progress:
            return client.wait_ready(uid, progress)
    except KeyboardInterrupt:
        _cancel(ctx, client, uid, begun)
        raise
    except LaunchCancelled:
        raise
    except LaunchError as error:
        say(f"{uid}: FAILED")
        raise Failure(error.message) from error


def _cancel(ctx: click.Context, client: Client, uid: str, begun: bool) -> None:
    """Take the launch back after Ctrl-C, say so and exit. What another command may have begun, and may serve, is left alone."""
    if not begun:
        say(f"\n{uid} goes on: it may have been launched before this command. To end it: xi terminate {uid}")
        ctx.exit(INTERRUPTED)
    say(f"\nCancelling the launch of {uid}…")
    try:
        client.terminate(uid)
    except ModelNotFound:
        pass  # somebody else ended it: the same outcome
    except XiError as error:
        raise Failure(f"the launch of {uid} could not be cancelled: {error.message}. Try `xi terminate {uid}`") from error
    say(f"The launch of {uid} is cancelled.")
    ctx.exit(INTERRUPTED)


def _meant_flag(ctx: click.Context, option: str | None) -> str:
    """A hint where an engine's option looks like a misspelt flag of this command."""
    from difflib import get_close_matches

    flags = [flag for param in ctx.command.params for flag in param.opts if flag.startswith("--")]
    close = get_close_matches(f"--{(option or '').replace('_', '-')}", flags, n=1, cutoff=0.8)
    return f"did you mean {close[0]}?" if close else ""


def _with_hint(error: XiError, hint: str) -> Failure:
    return Failure(f"{error.message}; {hint}" if hint else error.message)
