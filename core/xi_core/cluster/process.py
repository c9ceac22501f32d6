"""A replica's process as its worker holds it: spawned in its own process group, its reports read, its end noticed, its group killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from xi_core.cluster import keeper
from xi_core.cluster.devices import real
from xi_core.wire import UNREADABLE
from xi_core.wire import report as wire
from xi_core.wire.order import Order
from xi_core.wire.order import encode as encode_order
from xi_core.wire.plan import LaunchPlan

log = logging.getLogger(__name__)

REPLICA_COMMAND = (sys.executable, "-P", "-m", "xi_core.replica")
"""`-P`: the directory in which `xi serve` was started may hold a `json.py`, which is none of ours."""
LONGEST_REPORT = 4 * 1024 * 1024
MOST_WAITING = 1000
"""Reports that may wait to be heeded; beyond them, those that only tell how it goes are dropped."""
SECRETS = ("XI_API_KEY", "XI_JOIN_TOKEN")
"""Settings that are no business of a replica."""


def environment(base: Mapping[str, str], plan: LaunchPlan, extra: Mapping[str, str], python: Path | None = None) -> dict[str, str]:
    """The environment of a replica: the worker's, less its secrets, with the launch's own variables, its devices and the tag.

    With `python`, an interpreter with packages of its own, the programs beside that come first in the PATH.

    CUDA and HIP show a replica its own devices only, numbered from 0; a CPU replica sees none.
    """
    found = {name: value for name, value in base.items() if name not in SECRETS}
    found.update(extra)
    found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver's own tools number them
    found["CUDA_VISIBLE_DEVICES"] = ",".join(name.partition(":")[2] for name in plan.devices if name.startswith(("cuda:", "rocm:")))
    if any(name.startswith("rocm:") for name in plan.devices):
        found["HIP_VISIBLE_DEVICES"] = found["CUDA_VISIBLE_DEVICES"]  # HIP heeds both, and both must say the same
        found.pop("ROCR_VISIBLE_DEVICES", None)  # HIP counts anew what that leaves; a worker's devices are numbered as the driver does
    found["PYTHONUNBUFFERED"] = "1"
    if python is not None:
        found["PATH"] = os.pathsep.join([str(python.parent), found.get("PATH", os.defpath)])
    found[keeper.TAG] = tag(plan)
    return found


def seen_by_engine(plan: LaunchPlan) -> LaunchPlan:
    """The plan as a replica's process gets it: devices that are made up are none to an engine, which then runs on the CPU."""
    rendezvous = plan.rendezvous
    if rendezvous is not None:
        world = tuple(msgspec.structs.replace(rank, devices=tuple(real(rank.devices))) for rank in rendezvous.world)
        rendezvous = msgspec.structs.replace(rendezvous, world=world)
    return msgspec.structs.replace(plan, devices=real(plan.devices), rendezvous=rendezvous)


def tag(plan: LaunchPlan) -> str:
    """The value of XI_REPLICA_ID: unique over all servers of a machine, and over the workers that share a replica on one."""
    rank = plan.rendezvous.rank if plan.rendezvous is not None else 0
    return f"{plan.replica_id}@{plan.incarnation}" + (f".rank{rank}" if rank else "")


class ReplicaProcess:
    """One process group. Made on the worker's main thread: the kernel's parent-death signal follows the thread that spawned."""

    def __init__(self, command: Sequence[str], plan: LaunchPlan, env: Mapping[str, str], log_to: IO[bytes]) -> None:
        """Raises `OSError` where the command can't be run."""
        self.reports: asyncio.Queue[wire.Report | None] = asyncio.Queue()
        """What the replica tells; None when it has closed the pipe."""
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._returncode: int | None = None
        self._reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, "--report-fd", str(writer)],
                stdin=subprocess.PIPE,
                stdout=log_to,
                stderr=log_to,
                env=dict(env),
                pass_fds=(writer,),
                start_new_session=True,
            )
        except OSError:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)
        self.pid = self._process.pid
        self._loop.add_reader(self._reader, self._readable)
        self._unsent = bytearray()
        data = msgspec.msgpack.encode(plan)
        self._send(struct.pack(">I", len(data)) + data)

    @property
    def returncode(self) -> int | None:
        """None while the process runs; then its exit status, or minus the signal that killed it.

        A process that has ended stays a zombie until `close`: as long as somebody may kill its group, no other gets that number.
        """
        if self._returncode is None:
            self._returncode = _looked_at(self._process)
        return self._returncode

    def order(self, order: Order) -> None:
        """Tell it something, once it is ready. A process that has ended since hears nothing, which its end tells."""
        self._send(encode_order(order))

    def terminate(self) -> None:
        """Ask the replica to drain and exit."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all of its process group. Not after `close`."""
        keeper.kill_group(self.pid)

    def close(self) -> None:
        """Free the pipes and the process's number, once the process has ended or was killed and nobody lists its group any more."""
        self._process.poll()
        self._close_reader()
        if self._process.stdin is not None:
            self._loop.remove_writer(self._process.stdin.fileno())
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _send(self, data: bytes) -> None:
        """Write without waiting for the reader; the pipe stays open as the replica's life line."""
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            return
        os.set_blocking(pipe.fileno(), False)
        self._unsent += data

        def writable() -> None:
            try:
                del self._unsent[: os.write(pipe.fileno(), self._unsent)]
            except BlockingIOError:
                return
            except OSError:  # it died before it read this, which its end tells
                self._unsent.clear()
            if not self._unsent:
                self._loop.remove_writer(pipe.fileno())

        self._loop.add_writer(pipe.fileno(), writable)

    def _readable(self) -> None:
        try:
            data = os.read(self._reader, 65536)
        except InterruptedError:
            return
        except OSError:
            data = b""
        if not data or len(self._buffer) > LONGEST_REPORT:
            self._close_reader()
            self.reports.put_nowait(None)
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            found = wire.decode(line)
        except UNREADABLE as error:
            log.warning("a report of process %d can't be read and is ignored: %s", self.pid, error)
            return
        if self.reports.qsize() < MOST_WAITING or not isinstance(found, wire.Stage | wire.Health):
            self.reports.put_nowait(found)

    def _close_reader(self) -> None:
        if self._reader >= 0:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1


def _looked_at(process: subprocess.Popen[bytes]) -> int | None:
    """As `process.poll()`, but leaves the process a zombie where the system can."""
    if sys.platform != "linux":
        return process.poll()
    try:
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # reaped already
        return process.poll()
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
