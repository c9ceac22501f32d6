"""`python -m xi_server`: one gateway process. Started by the launcher with a listening socket, or alone with an address."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import socket
import sys
from collections.abc import Callable
from functools import partial

from xi_core.access import allowed_origins, check_access
from xi_core.cluster.control_process import allow_many_files, announce, set_up_logging
from xi_core.cluster.membership import Identity, enter, token_of
from xi_core.cluster.sibling import CONFIG_STATUS
from xi_core.config import Settings, settings
from xi_core.errors import ConfigError, PluginError, XiError
from xi_core.transport.schemes import by_scheme


def main() -> None:
    """Serve until SIGTERM, SIGINT, or the end of stdin with `--watch-stdin`.

    What can't be started is told in words. Exit status: 78 (`CONFIG_STATUS`) where another start would end the same way, else 1.
    """
    arguments = _arguments()
    try:
        config = settings()
        set_up_logging("gateway", config.log_level)
        allow_many_files()
        if arguments.fd is None:  # a socket that was handed down is its owner's to judge
            check_access(arguments.host, config.api_key, arguments.no_auth)
        allowed_origins(config.allow_origins, config.api_key)  # told before it joins a cluster, not when the application is made
        listening = _listening(arguments)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(config, arguments, listening))
    except KeyboardInterrupt:  # while it was waiting to be let in
        sys.exit(130)
    except XiError as error:
        print(f"xi gateway: {error}", file=sys.stderr)  # noqa: T201 - logging may not be set up yet
        sys.exit(CONFIG_STATUS if isinstance(error, ConfigError | PluginError) else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m xi_server", description="One gateway of xi: all HTTP.")
    parser.add_argument("--supervisor", required=True, metavar="ENDPOINT", help="where it listens; with --join, or a gateway's URL")
    parser.add_argument("--join", action="store_true", help="be a member of a cluster of machines: known by a key, let in by a token")
    parser.add_argument("--name", default=socket.gethostname(), help="a member's name; default: the machine's")
    parser.add_argument("--fd", type=int, help="number of a listening socket that was handed down")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--no-auth", action="store_true", help="listen off loopback without a key")
    parser.add_argument("--watch-stdin", action="store_true", help="stop at once when stdin ends: the launcher is gone")
    return parser.parse_args()


def _listening(arguments: argparse.Namespace) -> socket.socket:
    if arguments.fd is not None:
        return socket.socket(fileno=arguments.fd)
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    try:
        return socket.create_server((arguments.host, arguments.port), family=family, backlog=2048)
    except OSError as error:
        raise XiError(f"can't listen on {arguments.host}:{arguments.port}: {error.strerror}; choose another --port") from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:  # not on Windows, nor on every Python
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop
    return factory


async def _serve(config: Settings, arguments: argparse.Namespace, listening: socket.socket) -> None:
    from xi_core.plugins import PluginHub
    from xi_server.app import create_app
    from xi_server.gateway import Gateway
    from xi_server.serve import HttpServer, stop_at_end_of_stdin

    token = token_of(os.environ)
    hub = PluginHub.load(config.plugins)
    if arguments.join:
        identity = Identity(config.home_dir, "gateway", arguments.name)
        found = await enter(identity, by_scheme(hub.transports, "tcp://x:0"), arguments.supervisor, token, config.api_key)
        gateway = Gateway(config, hub, found.endpoint, identity.name, found.security)
    else:
        gateway = Gateway(config, hub, arguments.supervisor)
    ready = _say_ready if arguments.join else partial(announce, "gateway")
    server = HttpServer(gateway, create_app(gateway), listening, announce=ready)
    gc.collect()
    gc.freeze()  # what start-up made stays: the collector need not look at it again
    if arguments.watch_stdin:
        stop_at_end_of_stdin(server)
    await server.run()


def _say_ready(url: str) -> None:
    sys.stderr.write(f"xi serves at {url}  (docs: {url}/docs)\n")


if __name__ == "__main__":
    main()
