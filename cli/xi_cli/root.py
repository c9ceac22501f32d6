"""`xi`: the group of commands. `main` imports it and runs it."""

from __future__ import annotations

import click

from xi_cli.group import BuiltIn, Commands
from xi_core import __version__
from xi_core.log_level import LOG_LEVELS

BUILT_IN = {
    "serve": BuiltIn("xi_cli.commands.serve:serve", "Start xi on this machine: supervisor, worker and gateway."),
    "launch": BuiltIn("xi_cli.commands.launch:launch", "Launch a model and wait until it is ready."),
    "list": BuiltIn("xi_cli.commands.list:list_", "List the models that are launched, and their LoRA modules."),
    "terminate": BuiltIn("xi_cli.commands.terminate:terminate", "End a model and free what it holds."),
    "scale": BuiltIn("xi_cli.commands.scale:scale", "Have N replicas of a model, while it serves."),
    "sleep": BuiltIn("xi_cli.commands.sleep:sleep", "Free the memory of a model's devices until it is woken."),
    "wake": BuiltIn("xi_cli.commands.sleep:wake", "Have a model that sleeps serve again."),
    "logs": BuiltIn("xi_cli.commands.logs:logs", "Show the end of a replica's log."),
    "supervisor": BuiltIn("xi_cli.commands.supervisor:supervisor", "Start the head of a cluster: supervisor and gateway."),
    "worker": BuiltIn("xi_cli.commands.worker:worker", "Let this machine run models for a cluster."),
    "gateway": BuiltIn("xi_cli.commands.gateway:gateway", "Serve a cluster's models from one more machine."),
    "join-token": BuiltIn("xi_cli.commands.join_token:join_token", "Make a token with which one more machine joins."),
    "cluster": BuiltIn(
        "xi_cli.commands.cluster:cluster", "Show the workers: devices, memory, load, versions, and in what they aren't alike."
    ),
    "drain": BuiltIn("xi_cli.commands.drain:drain", "Move everything that runs on WORKER to other workers."),
    "pull": BuiltIn("xi_cli.commands.pull:pull", "Download a model into the cache, where launches find it."),
    "cached": BuiltIn("xi_cli.commands.cached:cached", "List the downloaded models of all workers."),
    "remove-cache": BuiltIn("xi_cli.commands.cached:remove_cache", "Delete a downloaded model from all workers, unless something uses it."),
    "envs": BuiltIn("xi_cli.commands.envs:envs", "The environments that models run in, where a launch brought packages of its own."),
    "stop-cluster": BuiltIn(
        "xi_cli.commands.stop_cluster:stop_cluster", "Stop every worker with its models, every gateway and the supervisor."
    ),
    "chat": BuiltIn("xi_cli.commands.chat:chat", "Talk with a model."),
    "generate": BuiltIn("xi_cli.commands.generate:generate", "Let a model continue a text."),
    "batch": BuiltIn("xi_cli.commands.batch:batch", "Answer a file of requests in OpenAI's batch format."),
    "engines": BuiltIn("xi_cli.commands.engines:engines", "Show the engines, and which can run."),
    "registrations": BuiltIn(
        "xi_cli.commands.registrations:registrations",
        "List the models that can be launched by name: built-in ones, and those that were registered.",
    ),
    "register": BuiltIn(
        "xi_cli.commands.register:register", "Register a model of one's own, which can be launched by its name from then on."
    ),
    "unregister": BuiltIn("xi_cli.commands.register:unregister", "Take a registered model out again. What runs of it runs on."),
    "vllm-models": BuiltIn("xi_cli.commands.registrations:vllm_models", "List the models that vLLM is known to run, on Linux with a GPU."),
    "cal-model-mem": BuiltIn("xi_cli.commands.cal_model_mem:cal_model_mem", "Estimate the memory that a model takes."),
    "plan": BuiltIn("xi_cli.commands.plan:plan", "Tell which machines and layout a model needs."),
    "plugins": BuiltIn("xi_cli.commands.plugins:plugins", "Show the installed plugins, and what is wrong with any."),
}
"""Commands of this distribution, in the order of the help. The help stands here too so that showing it imports no command."""


@click.group(cls=Commands, built_in=BUILT_IN, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version", prog_name="xi")
@click.option("-H", "--host", metavar="HOST", help="Where xi listens (serve), or where it is (other commands).")
@click.option("-p", "--port", type=click.IntRange(0, 65535), metavar="PORT", help="Port of xi; 9997 where nothing else is said.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="How much the server's processes say.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks; the server's processes say all.")
def cli(**_common: object) -> None:
    """xi launches language models and serves them through the OpenAI API.

    \b
    First steps:
      xi serve                # in one terminal
      xi launch xi-tiny       # in another
      xi chat xi-tiny
    """
