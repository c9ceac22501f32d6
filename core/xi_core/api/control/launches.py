"""Launches as the control API tells of them: their replicas and states, their logs, where they would go; scaling and ending them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from xi_core.api.control.spec import LaunchSpec
from xi_core.api.transfer import ModelTransfer
from xi_core.errors import ErrorBody, LaunchCancelled, LaunchError, LaunchFailed, Unavailable, XiError

LaunchState = Literal["PENDING", "PREPARING", "STARTING", "LOADING", "READY", "FAILED", "CANCELLED", "STOPPING"]
"""PENDING: accepted, not placed. PREPARING: files and environment. STARTING: process started, no word yet. LOADING: weights.
READY: every replica makes progress. FAILED and CANCELLED are ends; STOPPING leads to removal."""

STUCK = 15.0
"""Seconds for which a launch that is stuck is waited for though none of it serves: a server that has just started may not see its workers
yet."""


class LaunchAnswer(Struct, kw_only=True, omit_defaults=True):
    """Answer to `POST /v1/models`."""

    model_uid: str
    """What requests call the model."""
    existed: bool = False
    """Whether the same launch was there, or is begun by another request that came before. Where the gateway lost its supervisor and asked
    again, that may have been this very request. False isn't written."""


class RankStatus(Struct, kw_only=True):
    """One rank of a sharded replica, as last reported."""

    rank: int
    """Its number, from 0; 0 takes the requests."""
    state: LaunchState
    """How far it is, or how it ended."""
    stage: str = ""
    """What it does, in words."""
    worker: str = ""
    """The worker that it is on; empty while it has no place."""
    devices: list[str] = msgspec.field(default_factory=list)
    """Ids of that worker's devices that it holds."""
    pid: int | None = None
    """Its process on that machine."""


class ReplicaStatus(Struct, kw_only=True):
    """One replica of a launch, as last reported."""

    replica_id: str
    """The launch's uid, a dash and the replica's number."""
    state: LaunchState
    """How far it is, or how it ended."""
    stage: str = ""
    """What it does, in words."""
    progress: float | None = None
    """Share of the stage that is done, 0 to 1, where the stage can tell."""
    download: ModelTransfer | None = None
    """In bytes, in all and of each file that is coming; null while none are."""
    worker: str = ""
    """The worker that it is on; empty while it has no place."""
    devices: list[str] = msgspec.field(default_factory=list)
    """Ids of that worker's devices that it holds."""
    pid: int | None = None
    """Its process on that machine."""
    restarts: int = 0
    """How often it was started again after it had ended by its own fault."""
    moves: int = 0
    """How often it was started again as its worker went away, began anew or was stopped."""
    error: str | None = None
    """Why it last ended, or isn't there yet."""
    asleep: int = 0
    """The level at which it sleeps; 0: awake."""
    ranks: list[RankStatus] = msgspec.field(default_factory=list)
    """Of a replica that is sharded over several workers; else empty."""


class ModelStatus(Struct, kw_only=True):
    """One launch: answer to `GET /v1/models/{uid}`."""

    model_uid: str
    """What requests call the model."""
    spec: LaunchSpec
    """What was asked for."""
    state: LaunchState
    """How far its replicas are, or how it ended."""
    created: int
    """When it was launched, in seconds since 1970."""
    engine: str = ""
    """The engine that runs it."""
    model_format: str = ""
    """The format that was chosen."""
    size_in_billions: str | None = None
    """The size that was chosen, in billions of weights."""
    quantization: str | None = None
    """The quantization that was chosen."""
    context_length: int | None = None
    """Most tokens of a prompt with its answer: the least of its replicas', or the model's own before they tell."""
    replicas: list[ReplicaStatus] = msgspec.field(default_factory=list)
    """Each of them."""
    error: str | None = None
    """Why it failed."""
    ready_replicas: int = 0
    """How many replicas serve. The launch is READY when `spec.replica` serve or sleep."""
    asleep_replicas: int = 0
    """How many replicas sleep until the model is woken."""
    stuck: bool = False
    """Whether it was READY, and nothing of what is missing is likely to be there soon: it waits for a worker that is away or for room, or
    has ended again and again."""
    error_code: str | None = None
    """Code of the error that the replica named itself, such as `artifact_error`."""

    def hindrance(self) -> str:
        """Why it isn't READY: what it failed of, or what its replicas wait for or do; empty where nobody has told, and where it is."""
        if self.state == "READY":
            return ""
        if self.error:
            return self.error
        reasons: dict[str, list[str]] = {}
        for replica in self.replicas:
            told = replica.error if self.state == "FAILED" else ": ".join(text for text in (replica.stage, replica.error) if text)
            if told and replica.state != "READY":
                reasons.setdefault(told, []).append(replica.replica_id)
        if len(self.replicas) == 1:
            return next(iter(reasons), "")
        return "; ".join(f"{', '.join(names)}: {told}" for told, names in reasons.items())

    def is_ready(self) -> bool:
        """Whether the launch is READY. Raises a `LaunchError` with the reason, or `LaunchCancelled` if it ended otherwise."""
        if self.state == "FAILED":
            reasons = [self.error, *(replica.error for replica in self.replicas)]
            unknown = f"model '{self.model_uid}' failed; the replica's log says why"
            reason = next((reason for reason in reasons if reason), unknown)
            cause = XiError.from_body(ErrorBody(message=reason, code=self.error_code))
            raise cause if isinstance(cause, LaunchError) else LaunchFailed(reason)
        if self.state in ("CANCELLED", "STOPPING"):
            raise LaunchCancelled(f"model '{self.model_uid}' was terminated before it was ready")
        return self.state == "READY"

    def is_settled(self, stuck_for: float) -> bool:
        """Whether to wait for it no longer, where it has been stuck for so many seconds: it is READY, or a part of it serves or sleeps.

        Raises as `is_ready` does, and `Unavailable` where it has been stuck for long and nothing of it serves.
        """
        if self.is_ready() or not self.stuck:
            return self.state == "READY"
        serves = self.ready_replicas + self.asleep_replicas > 0
        if not serves and stuck_for > STUCK:
            raise Unavailable(f"none of the replicas of model '{self.model_uid}' serves: {self.hindrance()}", retry_after=5.0)
        return serves


class ModelRemoval(Struct, kw_only=True):
    """Answer to `DELETE /v1/models/{uid}`, in OpenAI's form."""

    id: str
    """The uid of the launch that has ended."""
    object: Literal["model"] = "model"
    """What was deleted."""
    deleted: bool = True
    """Always true: what can't be ended is an error."""


class ReplicaCount(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `PUT /v1/models/{uid}/replicas`."""

    replica: Annotated[int, Meta(ge=1, le=1024)]
    """How many replicas the launch is to have."""


class ScaleAnswer(Struct, kw_only=True):
    """Answer to it."""

    model_uid: str
    """The launch."""
    replica: int
    """How many replicas it is to have from now on."""


class LogPart(Struct, kw_only=True):
    """A part of a replica's log."""

    replica_id: str
    """Whose log it is."""
    rank: int
    """The rank whose log it is; 0 for a replica on one worker."""
    worker: str
    """The worker that has it."""
    text: str
    """The part, as text."""
    start: int
    """The byte of the log at which it begins."""
    next: int
    """Where to go on reading; it is `start` again while nothing is added."""
    previous: bool = False
    """Whether it is the log before the present one. An older worker shows the present one whatever was asked for."""


class DeviceVerdict(Struct, kw_only=True):
    """Why a device, or a worker where `device` is empty, was taken or not."""

    worker: str
    """The worker's name."""
    device: str = ""
    """The device's id."""
    taken: bool
    """Whether the replica would go there."""
    reason: str
    """Why, or why not."""


class PlacementReport(Struct, kw_only=True):
    """Where one replica would go, or why nowhere."""

    placed: bool
    """Whether there is a place for it."""
    reason: str = ""
    """Why there is none."""
    ranks: list[RankStatus] = msgspec.field(default_factory=list)
    """A worker for each rank, and its devices."""
    candidates: list[DeviceVerdict] = msgspec.field(default_factory=list)
    """Every worker and device that was looked at, each with the reason."""
