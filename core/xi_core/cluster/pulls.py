"""Downloads without a launch, on one worker: they go on while the supervisor is away, and end with the worker, which keeps what came."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from xi_core.api.control import LaunchSpec
from xi_core.api.pulls import PullStatus, WorkerPull
from xi_core.api.transfer import ModelTransfer
from xi_core.cluster.fetching import permitted, pull
from xi_core.cluster.messages import FetchModel, GetPull, StopPull
from xi_core.cluster.remote_code import check_remote_code
from xi_core.cluster.threads import in_thread
from xi_core.config import Settings
from xi_core.errors import Conflict, LaunchCancelled, NotFound, XiError
from xi_core.models.family import SourceRef
from xi_core.models.source import SourceInfo
from xi_core.plugins import Registry
from xi_core.transport.rpc import Calls

log = logging.getLogger(__name__)

MOST_RUNNING = 16
"""Downloads without a launch that one worker does at once."""
MOST_KEPT = 64
"""Those that it remembers, with the ended ones."""


class Pulls:
    """The downloads without a launch of one worker."""

    def __init__(self, worker: str, sources: Registry[SourceInfo], config: Settings) -> None:
        self._worker, self._sources, self._settings = worker, sources, config
        self._kept: dict[str, _Pull] = {}

    def calls(self) -> Calls:
        """What it answers."""
        return {FetchModel: self._fetch, GetPull: self._get, StopPull: self._stop}

    async def _fetch(self, command: FetchModel) -> PullStatus:
        check_remote_code(LaunchSpec(model_name=command.model.name, trust_remote_code=command.code), self._settings.allow_remote_code)
        running = [one for one in self._kept.values() if one.status.running()]
        if len(running) >= MOST_RUNNING:
            raise Conflict(f"worker {self._worker} has {len(running)} downloads to do; wait until one has ended")
        for old in list(self._kept)[: max(0, len(self._kept) + 1 - MOST_KEPT)]:
            if not self._kept[old].status.running():
                del self._kept[old]
        ref = permitted(command.model.source, self._settings, code=command.code, pickles=True)
        found = self._kept[command.pull_id] = _Pull(command.pull_id, self._worker, ref)
        found.task = asyncio.ensure_future(found.run(lambda: str(pull(self._sources, self._settings.home_dir, ref, found.progress))))
        return found.status

    async def _get(self, command: GetPull) -> PullStatus:
        return self._find(command.pull_id).status

    async def _stop(self, command: StopPull) -> PullStatus:
        found = self._find(command.pull_id)
        found.stopped.set()
        return found.status

    def _find(self, pull_id: str) -> _Pull:
        found = self._kept.get(pull_id)
        if found is None:
            raise unknown_pull(pull_id)
        return found


class _Pull:
    """One of them."""

    def __init__(self, pull_id: str, worker: str, ref: SourceRef) -> None:
        self.own = WorkerPull(worker=worker, stage="beginning")
        self.status = PullStatus(pull_id=pull_id, model_name=ref.id, source=ref.source, workers=[self.own])
        self.stopped = threading.Event()
        self.task: asyncio.Future[None] | None = None

    def progress(self, stage: str, share: float | None, download: ModelTransfer | None = None, /) -> None:
        """From the fetching thread. Raises `LaunchCancelled` once it is stopped."""
        if self.stopped.is_set():
            raise LaunchCancelled("the download was stopped; what came is kept")
        self.own.stage, self.own.progress = stage, self.own.progress if share is None else share
        self.own.download = download

    async def run(self, work: Callable[[], str]) -> None:
        """To its end; never raises."""
        own = self.own
        try:
            own.path = await in_thread(work)
            own.state, own.stage, own.progress = "DONE", "done", 1.0
        except LaunchCancelled as error:
            own.state, own.error = "CANCELLED", error.message
        except XiError as error:
            own.state, own.error = "FAILED", error.message
        except Exception as error:  # a source is a plugin: it may fail in any way
            log.exception("download of %s", self.status.model_name)
            own.state, own.error = "FAILED", f"{type(error).__name__}: {error}"
        finally:
            own.download = None


def unknown_pull(pull_id: str) -> NotFound:
    """Nobody knows it."""
    return NotFound(f"no worker here knows a download '{pull_id[:100]}'; it ended long ago, or its worker has", param="pull_id")
