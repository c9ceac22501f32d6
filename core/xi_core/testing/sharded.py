"""`ShardedEngine`: a token engine for tests whose ranks find each other over TCP, as the rendezvous says, and fail as its options say."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

from xi_core.engine.base import LoadedModel, Progress, StepOutput
from xi_core.engine.rank_link import RankLink
from xi_core.errors import EngineError
from xi_core.testing.fakes import CountingEngine
from xi_core.wire.plan import LaunchPlan, Rendezvous

FOREVER = 3600.0
RETRY = 0.05


class TcpLink(RankLink):
    """Rank 0 listens at its first port. A broadcast ends when all others have confirmed it, as those of real libraries do."""

    def __init__(self, rendezvous: Rendezvous, patience: float) -> None:
        """Raises `EngineError` when not all have come within `patience` seconds."""
        self._leads = rendezvous.rank == 0
        head = rendezvous.head
        address, until = (head.host, head.ports[0]), time.monotonic() + patience
        self._peers = _accepted(address, len(rendezvous.world) - 1, until) if self._leads else [_connected(address, until)]

    def broadcast(self, message: bytes) -> bytes:
        if not self._leads:
            (peer,) = self._peers
            (size,) = struct.unpack(">I", _exactly(peer, 4))
            found = _exactly(peer, size)
            peer.sendall(b"!")
            return found
        for peer in self._peers:
            peer.sendall(struct.pack(">I", len(message)) + message)
        for peer in self._peers:
            _exactly(peer, 1)
        return message


def _accepted(address: tuple[str, int], count: int, until: float) -> list[socket.socket]:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        listening = socket.create_server(address, family=family)
    except OSError as error:
        raise EngineError(f"rank 0 can't listen at {address[0]}:{address[1]}: {error.strerror}") from None
    with listening:
        peers = []
        while len(peers) < count:
            listening.settimeout(max(0.01, until - time.monotonic()))
            try:
                peers.append(listening.accept()[0])
            except TimeoutError:
                raise EngineError(f"{count - len(peers)} of {count} other ranks did not come to {address[0]}:{address[1]}") from None
    return peers


def _connected(address: tuple[str, int], until: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection(address)
        except OSError as error:
            if time.monotonic() > until:
                raise EngineError(f"rank 0 does not listen at {address[0]}:{address[1]}: {error.strerror}") from None
            time.sleep(RETRY)


def _exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        if not part:
            raise ConnectionError("the other end has closed the connection")
        data += part
    return data


class ShardedEngine(CountingEngine):
    """Every rank counts all tokens; what is sharded is only the blame. See `ShardedOptions`."""

    def __init__(self) -> None:
        super().__init__()
        self._link: TcpLink | None = None
        self._fault = ""
        self._after = 0

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        model = super().load(plan, progress)
        where = plan.rendezvous
        rank = where.rank if where is not None else 0
        if rank == int(plan.options.get("fault_rank", 1)):
            self._fault, self._after = plan.options.get("fault", ""), int(plan.options.get("fault_after", 3))
        print(f"rank {rank} of {len(where.world) if where else 1}, link {where.link if where else ''}", flush=True)  # noqa: T201 - into its log
        if self._fault == "die":
            print("rank out of luck", flush=True)  # noqa: T201 - as above
            os._exit(7)
        if self._fault in ("slow", "deaf"):
            time.sleep(FOREVER)
        if self._fault == "taken" and where is not None and not (mark := Path(plan.artifact.path) / plan.replica_id).exists():
            mark.touch()
            self._taken = socket.create_server((where.own.host, where.own.ports[0]))
        if where is not None:
            self._link = TcpLink(where, plan.limits.launch_timeout)
        return model

    @property
    def rank_link(self) -> RankLink | None:
        return self._link

    def step(self) -> StepOutput:
        output = super().step()
        if self._fault and self._stats.steps > self._after:
            if self._fault == "hang":
                time.sleep(FOREVER)
            for token in output.tokens:
                token.token = (token.token + 1) % 256
        return output
