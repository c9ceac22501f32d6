"""Launcher: a small parent of siblings. `python -m xi_core.cluster.launcher`: supervisor, worker and gateway (`xi serve`), or with
`--cluster-port` supervisor and gateway, which other machines join (`xi supervisor`).

It holds the HTTP port, so that a gateway that dies loses no connection that waits. A sibling that dies is started again, alone. When
the launcher is told to stop, they stop in order; when it is killed, each sees the end of its stdin and stops by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence

from xi_core import log_level
from xi_core.access import allowed_origins, check_access, is_loopback
from xi_core.cluster import addresses
from xi_core.cluster.runtime import RuntimeFolder, sweep
from xi_core.cluster.sibling import BACKOFF_MOST, CONFIG_STATUS, Sibling
from xi_core.config import settings
from xi_core.errors import ConfigError, Unavailable, XiError

BACKLOG = 2048
LOCAL_SOCKETS = hasattr(socket, "AF_UNIX")
"""Where there are none, the processes talk over loopback, which any user of the machine can reach."""
MARGIN = 4.0
"""Seconds beyond the grace in which everything must have stopped."""
TRIES = 3
"""So many deaths of a sibling before all were ready once end the launcher."""


class Launcher:
    """The siblings, in the order in which they start, and the listening socket."""

    def __init__(self, listening: socket.socket, siblings: Sequence[Sibling], grace: float, as_json: bool = False) -> None:
        self._siblings = siblings
        self._as_json = as_json
        self._grace = grace
        self._started = False
        self._signals = 0
        self._listening = listening
        self._selector = selectors.DefaultSelector()
        self._wake = self._catch_signals()

    def run(self) -> int:
        """Start all, keep them running until a signal, stop all. Answers the exit status."""
        status = 0
        try:
            for sibling in self._siblings:
                self._start(sibling)
            while not self._signals and not status and not any(s.stop_asked for s in self._siblings):
                self._wait(self._next_start())
                status = self._look()
        finally:
            self._stop()
        return status

    # ---- running --------------------------------------------------------------------------------

    def _catch_signals(self) -> socket.socket:
        """Let signals wake the selector: the handlers only count."""
        reading, writing = socket.socketpair()
        for end in (reading, writing):
            end.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        self._writing = writing
        self._selector.register(reading, selectors.EVENT_READ, None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup` wants it ignored
                signal.signal(number, self._count_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        return reading

    def _count_signal(self, *_: object) -> None:
        self._signals += 1

    def _start(self, sibling: Sibling) -> None:
        """Start one; where the system has no room for a process now, try again later. Raises `Unavailable` where nothing runs yet."""
        try:
            sibling.start()
        except OSError as error:
            if not self._started:
                raise Unavailable(f"{sibling.role} can't be started: {error}") from None
            say(f"{sibling.role:<11} can't be started now ({error}); trying again in {BACKOFF_MOST:g} s")
            sibling.start_at = time.monotonic() + BACKOFF_MOST
            return
        self._selector.register(sibling.stdout, selectors.EVENT_READ, sibling)

    def _wait(self, timeout: float | None) -> None:
        """Wait for a signal, a word or the end of a sibling, or the time to start one."""
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._wake.recv(4096)
            elif not key.data.hear():
                self._selector.unregister(key.fileobj)
                key.data.mute()

    def _look(self) -> int:
        """Tell who is ready, and start again who has died. Answers an exit status if that is of no use."""
        for sibling in self._siblings:
            if sibling.fresh:
                sibling.fresh = False
                say(f"{sibling.role:<11} pid {sibling.pid}  ready")
            if sibling.has_ended():
                if not self._started and (sibling.hopeless or sibling.deaths_in_row >= TRIES):
                    say(f"{sibling.role} could not be started: it {sibling.end}; the lines above say why")
                    return CONFIG_STATUS if sibling.hopeless else 1
                say(f"{sibling.role:<11} {sibling.end}; starting it again")
            elif sibling.due():
                self._start(sibling)
        if not self._started and all(s.ready for s in self._siblings):
            self._started = True
            self._say_endpoint(self._siblings[0].word)
        return 0

    def _say_endpoint(self, word: Mapping[str, object]) -> None:
        """All is ready. `word` is the supervisor's: it tells how others join."""
        url = url_of(self._listening)
        say(f"xi serves at {url}  (docs: {url}/docs)")
        if "join_command" in word:
            say(f"On each machine with models, within the hour, for one use; `xi join-token` makes more:\n\n  {word['join_command']}\n")
        if self._as_json:
            processes = [{"role": sibling.role, "pid": sibling.pid} for sibling in self._siblings]
            joining = {name: word[name] for name in ("cluster_endpoint", "join_token") if name in word}
            result(json.dumps({"endpoint": url, "processes": processes, **joining}))

    def _next_start(self) -> float | None:
        times = [s.start_at for s in self._siblings if s.start_at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    # ---- stopping -------------------------------------------------------------------------------

    def _stop(self) -> None:
        """The last first: the gateway drains before the others end. Another signal kills at once, and so does the end of the grace."""
        asked, until = self._signals, time.monotonic() + self._grace + MARGIN
        if asked:
            say("stopping; once more to stop at once")
        self._listening.close()
        for sibling in reversed(self._siblings):
            sibling.terminate()
            while sibling.runs() and self._signals <= max(1, asked) and time.monotonic() < until:
                self._wait(min(0.5, max(0.0, until - time.monotonic())))
        for sibling in self._siblings:
            sibling.kill()
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wake.close()
        self._writing.close()


def siblings_of(
    listening: socket.socket, runtime: RuntimeFolder, cluster: tuple[str, int] | None, *, restore: bool = True
) -> list[Sibling]:
    """Supervisor, worker and gateway; or with `cluster`, a host and a port for other machines, supervisor and gateway.

    `restore`: whether what was launched when they last ran is launched again.
    """
    endpoint = f"ipc://{runtime.path}/supervisor.sock" if LOCAL_SOCKETS else f"tcp://127.0.0.1:{_free_port()}"
    supervisor, first = ["xi_core.cluster.supervisor", "--endpoint", endpoint], ["--settle", "0"]
    if cluster is not None:
        supervisor += ["--cluster-host", cluster[0], "--cluster-port", str(cluster[1])]
        first = ["--invite"]
    if not is_loopback(listening.getsockname()[0]):
        supervisor.append("--exposed")
    if not restore:
        first.append("--no-restore")  # at the first start only: what is launched now outlives the supervisor
    found = [Sibling("supervisor", supervisor, first=first, secret=False)]
    if cluster is None:
        worker = ["xi_core.cluster.worker", "--supervisor", endpoint, "--runtime", str(runtime.path)]
        found.append(Sibling("worker", worker, secret=False))
    fd = listening.fileno()
    found.append(Sibling("gateway", ["xi_server", "--supervisor", endpoint, "--fd", str(fd)], pass_fds=(fd,), secret=True))
    return found


def listen(host: str, port: int) -> socket.socket:
    """The HTTP socket, listening. Raises `ConfigError` where the address can't be had, with what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigError(f"host '{host}' is no address of this machine: {error.strerror or error}; try --host 127.0.0.1") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise ConfigError(_why_not(host, port, error)) from None
    return found


def check_ports(port: int, cluster_port: int | None) -> None:
    """Raises `ConfigError` where HTTP is to have a port of the cluster; 0 is any port, None: there is no cluster."""
    if cluster_port and port in (cluster_port, cluster_port + 1):
        use = " for workers and gateways" if port == cluster_port else ", whose next one is where machines join"
        raise ConfigError(
            f"port {port} is asked for twice: by --port for HTTP, and by --cluster-port {cluster_port}{use}; choose another for one of them"
        )


def _free_port() -> int:
    """A port of loopback for the supervisor, whose address the others must know before it listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _why_not(host: str, port: int, error: OSError) -> str:
    import errno

    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: another xi or another program listens there; stop it, or choose another port with --port"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} needs more rights; choose a port from 1024 on with --port"
    return f"can't listen at {host}:{port}: {error.strerror or error}; choose others with --host and --port"


def url_of(listening: socket.socket) -> str:
    """The address as a client writes it."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def say(text: str) -> None:
    """One line on stderr. Nobody may read it any more (a closed terminal, `| head`): that must not keep the launcher from its task."""
    with contextlib.suppress(OSError):
        if sys.stderr is not None:  # Python's value where it was started with a closed one
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def result(line: str) -> None:
    """One line on stdout, for programs. Nobody may be reading it any more."""
    with contextlib.suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def hold_standard_streams() -> None:
    """Open descriptors 0 to 2 where whoever started this had closed them: else a socket gets such a number, and logs are written to it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def main(arguments: Sequence[str] | None = None) -> int:
    """The process's entry. Answers its exit status: `CONFIG_STATUS` where another start would end the same way."""
    parser = argparse.ArgumentParser(prog="python -m xi_core.cluster.launcher", description="Serve models on this machine.")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--cluster-port", type=int, help="take workers and gateways of other machines at this port and the next; 0: any")
    parser.add_argument("--no-restore", action="store_true", help="don't launch again what ran when this was stopped; forget it")
    parser.add_argument("--no-auth", action="store_true", help="listen off loopback without a key")
    parser.add_argument("--json", action="store_true", help="when all is ready, one JSON line on stdout: the endpoint and the processes")
    parser.add_argument("--log-level", help="how much all processes log; default: XI_LOG_LEVEL")
    given = parser.parse_args(arguments)
    hold_standard_streams()
    if given.log_level:
        os.environ["XI_LOG_LEVEL"] = given.log_level
    try:
        config = settings()
        log_level.checked(config.log_level)
        host = given.host or config.host
        check_access(host, config.api_key, given.no_auth)
        allowed_origins(config.allow_origins, config.api_key)
        port = config.port if given.port is None else given.port
        check_ports(port, given.cluster_port)
    except ConfigError as error:
        say(f"Error: {error.message}")
        return CONFIG_STATUS
    try:
        cluster = None
        if given.cluster_port is not None:
            cluster = host, addresses.neighbours(addresses.resolved(host), given.cluster_port)
        listening = listen(host, port)
        sweep()
        runtime = RuntimeFolder()
    except XiError as error:  # which the next start may not meet: a port is in use, or the network isn't up yet
        say(f"Error: {error.message}")
        return 1
    try:
        return Launcher(listening, siblings_of(listening, runtime, cluster, restore=not given.no_restore), config.grace, given.json).run()
    except XiError as error:
        say(f"Error: {error.message}")
        return 1
    finally:
        listening.close()
        runtime.remove()


if __name__ == "__main__":
    sys.exit(main())
