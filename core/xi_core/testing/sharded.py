"""`ShardedEngine`: a token engine for tests whose ranks find each other as the rendezvous says, and fail as its options say."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from xi_core.engine.base import LoadedModel, Progress, StepOutput
from xi_core.engine.rank_link import RankLink
from xi_core.engine.rank_socket import SocketLink, exactly
from xi_core.testing.fakes import CountingEngine
from xi_core.wire.plan import LaunchPlan

FOREVER = 3600.0


class ConfirmedLink(SocketLink):
    """A broadcast ends when all others have confirmed it: they take part in each step, as those of real libraries do."""

    def broadcast(self, message: bytes) -> bytes:
        found = super().broadcast(message)
        for peer in self._peers:
            if self._leads:
                exactly(peer, 1)
            else:
                peer.sendall(b"!")
        return found


class ShardedEngine(CountingEngine):
    """Every rank counts all tokens; what is sharded is only the blame. See `ShardedOptions`."""

    def __init__(self) -> None:
        super().__init__()
        self._link: ConfirmedLink | None = None
        self._taken: socket.socket | None = None
        self._fault = ""
        self._after = 0

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        model = super().load(plan, progress)
        where = plan.rendezvous
        rank = where.rank if where is not None else 0
        if rank == int(plan.options.get("fault_rank", 1)):
            self._fault, self._after = plan.options.get("fault", ""), int(plan.options.get("fault_after", 3))
        link = where.link if where is not None else ""
        print(f"rank {rank} of {len(where.world) if where else 1}, link {link}", flush=True)  # noqa: T201 - into its log
        if self._fault == "die":
            print("rank out of luck", flush=True)  # noqa: T201 - as above
            os._exit(7)
        if self._fault in ("slow", "deaf"):
            time.sleep(FOREVER)
        if self._fault == "taken" and where is not None and not (mark := Path(plan.artifact.path) / plan.replica_id).exists():
            mark.touch()
            self._taken = socket.create_server((where.own.host, where.own.ports[0]))
        if where is not None:
            self._link = ConfirmedLink(plan, 0, plan.limits.launch_timeout)
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
