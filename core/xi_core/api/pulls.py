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
    """A family's name, or a hub id."""
    model_type: str = "LLM"
    """What it is for: `LLM`, `embedding` or `rerank`, in any case."""
    model_format: str | None = None
    """Which of its formats, such as `pytorch`, `ggufv2` or `awq`; needed where there are several."""
    size_in_billions: str | float | None = None
    """Which of its sizes, in billions of weights: 7 or 0.5."""
    quantization: str | None = None
    """Which of its quantizations, such as `none`, `q4_k_m` or `Int4`."""
    source: str | None = None
    """Where from; null: as a launch would."""
    worker_ip: Text | None = None
    """The workers that download it: a name or an address, or several with commas; null: all."""
    trust_remote_code: bool = False
    """Whether the repository's Python code comes too; the workers' operators must allow it (`XI_ALLOW_REMOTE_CODE`)."""


class WorkerPull(Struct, kw_only=True):
    """How far one worker is."""

    worker: str
    """Its name."""
    state: PullState = "RUNNING"
    """CANCELLED: somebody stopped it."""
    stage: str = ""
    """What it does, in words."""
    progress: float | None = None
    """From 0 to 1; null while that isn't known."""
    download: ModelTransfer | None = None
    """In bytes, in all and of each file that is coming; null while none are."""
    path: str | None = None
    """Where the model is, once it is there."""
    error: str | None = None
    """Why it failed, or that it was stopped."""


class PullStatus(Struct, kw_only=True):
    """A download without a launch, on every worker that takes part. It is forgotten some time after its end."""

    pull_id: str
    """What it is watched and stopped by."""
    model_name: str
    """The model's id at its source."""
    source: str
    """Where it comes from, such as `huggingface`."""
    workers: list[WorkerPull] = field(default_factory=list)
    """Each that takes part."""

    def running(self) -> bool:
        """Whether some worker has still to end."""
        return any(worker.state == "RUNNING" for worker in self.workers)
