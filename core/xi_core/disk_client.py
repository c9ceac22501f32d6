"""The base of the client: what the server says of itself, and what lies on the disks of its machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from xi_core.api.control import (
    CachedModelList,
    CachedModelStatus,
    CacheRemoval,
    EnvironmentStatus,
)
from xi_core.api.pulls import PullOrder, PullStatus
from xi_core.endpoint import Endpoint
from xi_core.errors import ArtifactError, ChannelClosed, LaunchCancelled, NotFound, Unavailable, XiError

CONTROL_TIMEOUT = 60.0
"""Longest silence of the server on anything but generation, in seconds."""

PULL_INTERVAL = 0.2
PULL_PATIENCE = 15.0
"""Seconds for which a worker, or the server, may be away while a download is watched."""

T = TypeVar("T")


class DiskClient:
    """A client of the xi server at `endpoint` (`http://host:port`). `timeout`: longest silence while it generates, in seconds.

    Every method raises the server's own error by its class (`ModelNotFound`, `InvalidRequest`, …), `Unavailable` if nobody answers at the
    endpoint, `ProtocolMismatch` if something answers that isn't xi, and `DeadlineExceeded` after the timeout.
    """

    def __init__(self, endpoint: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        self._server = Endpoint(endpoint, api_key)
        self.endpoint = self._server.url
        self.timeout = timeout

    # ---- what lies on the machines' disks -----------------------------------------------------------------

    def environments(self) -> list[EnvironmentStatus]:
        """The environments of models, on all workers."""
        return self._call(list[EnvironmentStatus], "GET", "/v1/virtualenvs")

    def remove_environment(self, name: str) -> None:
        """Delete an environment from every worker that has it. Raises `NotFound`, `Conflict` where it is used."""
        self._call(msgspec.Raw, "DELETE", f"/v1/virtualenvs/{quote(name, safe='')}")

    def cached(self, model: str | None = None, *, incomplete: bool = False) -> list[CachedModelStatus]:
        """The downloaded models on all workers; with `model`, a hub id or a family's name, only its.

        `incomplete`: also what came in part, or is damaged.
        """
        given = {"model_name": model or "", "incomplete": "true" if incomplete else ""}
        query = query_of({name: value for name, value in given.items() if value})
        return self._call(CachedModelList, "GET", f"/v1/cache/models{query}").models

    def remove_cached(self, model: str, source: str | None = None, revision: str | None = None) -> int:
        """Delete a downloaded model from every worker. Answers the bytes that are free now. Raises `NotFound`, `Conflict` (in use)."""
        given = {name: value for name, value in {"model_name": model, "source": source, "revision": revision}.items() if value}
        return self._call(CacheRemoval, "DELETE", f"/v1/cache/models{query_of(given)}").freed

    def start_pull(self, order: PullOrder) -> PullStatus:
        """Have the workers download a model, without a launch; returns at once. Raises `UnknownModel`, `InvalidRequest`, `NotFound`."""
        return self._call(PullStatus, "POST", "/v1/cache/models", order)

    def pull_status(self, pull_id: str) -> PullStatus:
        """How far a download is. Raises `NotFound`."""
        return self._call(PullStatus, "GET", f"/v1/cache/pulls/{quote(pull_id, safe='')}")

    def stop_pull(self, pull_id: str) -> PullStatus:
        """End a download; what came is kept. Raises `NotFound`."""
        return self._call(PullStatus, "DELETE", f"/v1/cache/pulls/{quote(pull_id, safe='')}")

    def pull(self, order: PullOrder, on_progress: Callable[[PullStatus], None] | None = None) -> PullStatus:
        """As `start_pull`, and wait for the end; leaving early (Ctrl-C) ends the download.

        Raises `ArtifactError` with every worker's reason where one failed, `LaunchCancelled` where it was stopped by others.
        """
        status = self.start_pull(order)
        try:
            status = self._waited(status, on_progress)
        except BaseException:
            with suppress(XiError):
                self.stop_pull(status.pull_id)
            raise
        failed = [f"{one.worker}: {one.error}" for one in status.workers if one.state == "FAILED"]
        if failed:
            raise ArtifactError("; ".join(failed))
        if any(one.state == "CANCELLED" for one in status.workers):
            raise LaunchCancelled(f"the download of {status.model_name} was stopped; what came is kept")
        return status

    def _waited(self, status: PullStatus, on_progress: Callable[[PullStatus], None] | None) -> PullStatus:
        """The status once all workers of the first one have ended. One that isn't there, or answers nothing, is waited for a while.

        One that refused knows nothing of the download: what the first status says of it is in each. Raises `Unavailable` for one that
        stays away, once the others have ended.
        """
        refused = [one for one in status.workers if one.state == "FAILED"]
        workers = {one.worker for one in status.workers if one not in refused}
        missing, lost, heard = set[str](), set[str](), time.monotonic()
        while True:
            if on_progress is not None:
                on_progress(status)
            if not missing and not status.running():
                if lost:
                    raise Unavailable(_told_of(lost, status))
                return status
            time.sleep(PULL_INTERVAL)
            late = time.monotonic() - heard > PULL_PATIENCE
            try:
                status = self.pull_status(status.pull_id)
            except (Unavailable, ChannelClosed, NotFound):  # it may be starting again
                if late:
                    raise
                continue
            there = {one.worker for one in status.workers}
            status.workers += [one for one in refused if one.worker not in there]
            missing = workers - lost - there
            if missing and late:
                lost |= missing
                missing = set()
            if not missing:
                heard = time.monotonic()

    # ---- the server -------------------------------------------------------------------------------

    def health(self) -> bool:
        """Whether the server says that it is well. Raises `Unavailable` only if nobody answers."""
        return self._server.status("/health", self._patience()) == 200

    def reachable(self) -> bool:
        """Whether something accepts connections at the endpoint; False only where they are refused."""
        return self._server.reachable()

    def _call(self, wanted: type[T], method: str, path: str, body: Any = None) -> T:
        return self._server.call(wanted, method, path, body, self._patience())

    def _patience(self) -> float:
        return min(self.timeout, CONTROL_TIMEOUT)


def _told_of(lost: set[str], status: PullStatus) -> str:
    """That workers went away, and what became of the others."""
    ends = [f"{one.worker} has it now" if one.state == "DONE" else f"{one.worker}: {one.error}" for one in status.workers]
    return f"worker {', '.join(sorted(lost))} went away while it downloaded {status.model_name}; {'; '.join(ends)}"


def query_of(given: dict[str, str]) -> str:
    return f"?{urlencode(given)}" if given else ""
