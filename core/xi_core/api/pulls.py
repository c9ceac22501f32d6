"""Downloads without a launch, on the workers' machines: the bodies and answers of `/v1/cache/models` (POST) and `/v1/cache/pulls`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from xi_core.api.transfer import ModelTransfer

Text = Annotated[str, Meta(min_length=1, max_length=4096)]
PullState = Literal["RUNNING", "DONE", "FAILED", "CANCELLED"]


class PullOrder(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of `POST /v1/cache/models`: a family's name or a hub id, and which of its specs."""

    model_name: Text
    model_type: str = "LLM"
    model_format: str | None = None
    size_in_billions: str | float | None = None
    quantization: str | None = None
    source: str | None = None
    """Where from; None: as a launch would."""
    worker_ip: Text | None = None
    """The workers that download it: a name or an address, or several with commas; None: all."""
    trust_remote_code: bool = False
    """Whether the repository's Python code comes too; the workers' operators must allow it (`XI_ALLOW_REMOTE_CODE`)."""


class WorkerPull(Struct, kw_only=True):
    """How far one worker is."""

    worker: str
    state: PullState = "RUNNING"
    stage: str = ""
    """What it does, in words."""
    progress: float | None = None
    """From 0 to 1; null while that isn't known."""
    download: ModelTransfer | None = None
    """In bytes, in all and of each file that is coming; null while none are."""
    path: str | None = None
    """Where the model is, once it is there."""
    error: str | None = None


class PullStatus(Struct, kw_only=True):
    """A download without a launch, on every worker that takes part. It is forgotten some time after its end."""

    pull_id: str
    model_name: str
    """The model's id at its source."""
    source: str
    workers: list[WorkerPull] = field(default_factory=list)

    def running(self) -> bool:
        """Whether some worker has still to end."""
        return any(worker.state == "RUNNING" for worker in self.workers)
