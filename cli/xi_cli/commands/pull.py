"""`xi pull`: download a model without a launch, into this machine's cache or into those of a server's workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from xi_cli.interrupts import held_interrupt
from xi_cli.options import client_options, connect, one_of, say, server_named
from xi_core.config import settings
from xi_core.errors import InvalidRequest

if TYPE_CHECKING:
    from xi_core.api.pulls import PullOrder, PullStatus
    from xi_core.client import Client


@click.command()
@click.argument("model", required=False)
@click.option("-n", "--model-name", metavar="NAME", help="A family's name or a hub id; as MODEL.")
@click.option("-s", "--size-in-billions", metavar="SIZE", help="Which size: 7, 0.5 or 0_5.")
@click.option("-f", "--model-format", metavar="FORMAT", help="Which format: pytorch, ggufv2, mlx, gptq, awq, fp8.")
@click.option("-q", "--quantization", metavar="NAME", help="Which quantization, such as q4_k_m.")
@click.option("--source", metavar="NAME", help="Where from: huggingface or modelscope. [env: XI_MODEL_SRC]")
@click.option("--trust-remote-code", is_flag=True, help="Download the model's Python code too, where the machine's operator allows it.")
@click.option("--worker-ip", metavar="NAMES", help="On a cluster: only these workers, by name or address, with commas between them.")
@click.option("--local", is_flag=True, help="Download to this machine, even where XI_ENDPOINT names a server.")
@client_options
def pull(
    model: str | None,
    model_name: str | None,
    size_in_billions: str | None,
    model_format: str | None,
    quantization: str | None,
    source: str | None,
    trust_remote_code: bool,
    worker_ip: str | None,
    local: bool,
    endpoint: str | None,
    api_key: str | None,
) -> None:
    """Download a model into the cache, where launches find it.

    Without a server, into this machine's XI_HOME. Where a server is named, by -e, XI_ENDPOINT or the group's -H and -p, or workers by
    --worker-ip, into that of its workers; Ctrl-C ends their download.

    A model that is there already is brought up to date: its hub is asked, and what is new is downloaded. A download that was
    interrupted is gone on with.

    \b
    Examples:
      xi pull qwen2.5-instruct -s 0_5 -f pytorch
      xi pull Qwen/Qwen2.5-0.5B-Instruct --source modelscope
      xi pull qwen2.5-instruct -s 7 -f pytorch -e http://10.0.0.1:9997 --worker-ip gpu-1
    """
    from xi_core.api.pulls import PullOrder

    name = one_of(model_name, model, "model")
    if name is None:
        raise click.UsageError("name the model: xi pull NAME, or -n NAME")
    order = PullOrder(
        model_name=name,
        model_format=model_format,
        size_in_billions=size_in_billions,
        quantization=quantization,
        source=source or None,
        worker_ip=worker_ip,
        trust_remote_code=trust_remote_code,
    )
    remote = worker_ip is not None or server_named(endpoint)
    if local and (worker_ip or endpoint):
        raise click.UsageError("--local downloads to this machine: leave out -e and --worker-ip")
    try:
        lines = _by_server(order, connect(endpoint, api_key)) if remote and not local else [_here(order)]
    except InvalidRequest as error:
        raise click.UsageError(error.message) from None
    click.echo("\n".join(lines))


def _here(order: PullOrder) -> str:
    """Where the model is on this machine."""
    from xi_cli.progress import Bars
    from xi_core.api.control import LaunchSpec
    from xi_core.cluster.fetching import permitted
    from xi_core.cluster.fetching import pull as download
    from xi_core.cluster.host import inspect_path
    from xi_core.cluster.remote_code import check_remote_code
    from xi_core.models.catalog import candidates, path_of
    from xi_core.models.pull_choice import as_launch, only_one
    from xi_core.models.registered import RegisteredFamilies
    from xi_core.plugins import PluginHub

    config = settings()
    hub = PluginHub.load(config.plugins)
    RegisteredFamilies(hub.families, config.home_dir)
    if order.source:
        hub.sources.asked(order.source, param="source")
    default = hub.sources.get(config.model_src, param="XI_MODEL_SRC").name
    launch = as_launch(order, hub.families)
    path = path_of(launch, hub.families)  # a registered family may be files of one's own
    inspected = inspect_path(hub.engines, path) if path else None
    found = candidates(launch, hub.families, inspected, default)
    spec = only_one(order.model_name, found)
    check_remote_code(LaunchSpec(model_name=order.model_name, trust_remote_code=order.trust_remote_code), config.allow_remote_code)
    ref = permitted(spec.source, config, code=order.trust_remote_code, pickles=True)
    say(f"{spec.describe()}: {ref.id} from {ref.source}")
    with Bars() as bars:
        return str(download(hub.sources, config.home_dir, ref, lambda *told: bars.show("", *told)))


def _by_server(order: PullOrder, client: Client) -> list[str]:
    """Where the model is on each worker. Ctrl-C waits until the server has told of the download: without its id it could not be ended."""
    from xi_cli.progress import Bars

    with Bars() as bars, held_interrupt("end the download") as interrupted:

        def show(status: PullStatus) -> None:
            if interrupted:
                raise KeyboardInterrupt
            for one in status.workers:
                bars.show(one.worker, one.stage if one.state == "RUNNING" else one.state.lower(), one.progress, one.download)

        status = client.pull(order, show)
    if len(status.workers) == 1:
        return [str(status.workers[0].path)]
    return [f"{one.worker}: {one.path}" for one in status.workers]
