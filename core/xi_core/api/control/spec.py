"""What a launch is asked for by: names, model types, and the `LaunchSpec`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Uid = Annotated[str, Meta(pattern=r"^(?!\.+$)[A-Za-z0-9._-]{1,128}$(?!\n)")]
"""A launch's name, which names files too: no line break (Python's `$` lets one pass), and not dots alone."""

Name = Annotated[str, Meta(max_length=4096)]
"""A model's name or path: no longer than paths can be."""

MODEL_TYPES = ("LLM", "embedding", "rerank")
"""What a model is for: text, vectors, or rating documents."""


def model_type_of(text: str) -> str | None:
    """A model type in its one form, from any case; None for one that isn't served."""
    return next((known for known in MODEL_TYPES if known.lower() == text.lower()), None)


class ReplicaConfig(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where one replica goes, instead of what the launch says for all: `replica_config` holds one for each replica."""

    worker: Name | None = None
    """A worker's name or address, or several with commas."""
    gpu_idx: list[int] | None = None
    """The devices that it may use, by number from 0."""
    n_gpu: Annotated[int, Meta(ge=0)] | None = None
    """How many devices it gets on each of its workers; 0: none."""


class LaunchSpec(Struct, kw_only=True, omit_defaults=True):
    """What the user asked for, whole: two equal specs are the same launch."""

    model_name: Name
    """A family's name, a hub id, a directory or a `.gguf` file."""
    model_uid: Uid | None = None
    """What requests call the model; null: made of its name."""
    model_type: str = "LLM"
    """What it is for: `LLM`, `embedding` or `rerank`, in any case."""
    model_engine: str | None = None
    """The engine that runs it; null: the best one that can."""
    model_format: str | None = None
    """Which of its formats, such as `pytorch`, `ggufv2` or `awq`; null: the best that runs here."""
    size_in_billions: str | None = None
    """Which of its sizes, in billions of weights: 7, 0.5 or 0_5; null: the best that runs here."""
    quantization: str | None = None
    """Which of its quantizations, such as `none`, `q4_k_m` or `Int4`; null: the best that runs here."""
    model_path: Name | None = None
    """Where the model lies on the workers' machines: a directory or a `.gguf` file, instead of what would be downloaded."""
    source: Name | None = None
    """Where its files come from, `huggingface` or another source; null: `XI_MODEL_SRC` if it is there, else its first source."""
    replica: Annotated[int, Meta(ge=1, le=1024)] = 1
    """How many copies to serve with."""
    n_gpu: int | Literal["auto"] | None = "auto"
    """How many devices each replica gets on each of its workers; null or 0: none. `auto`: one where some worker has devices, else none."""
    gpu_idx: list[int] | None = None
    """The devices that may be used, by number from 0; null: any."""
    n_worker: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Workers that share each replica. Above 1 the engine shards the model over them, with `n_gpu` devices on each."""
    gpu_pool: Annotated[int, Meta(ge=1)] | None = None
    """Most devices that all replicas hold together; null: as many as there are."""
    worker_ip: Name | None = None
    """The workers to choose from: a name or an address, or several with commas; null: all."""
    replica_config: list[ReplicaConfig] | None = None
    """A place of its own for each replica."""
    scheduler: Name | None = None
    """What places the replicas; null: `XI_LAUNCH_STRATEGY`."""
    enable_thinking: bool | None = None
    """Whether the model thinks where a request doesn't say; null leaves it to its chat template."""
    tool_parser: Name | None = None
    """Parser of tool calls instead of the model's own; `none` for none."""
    reasoning_parser: Name | None = None
    """Parser of reasoning instead of the model's own; `none` for none."""
    lora_modules: dict[Uid, Name] = msgspec.field(default_factory=dict)
    """LoRA adapters to serve beside the model: the name that requests call each by, and its directory."""
    enable_virtual_env: bool | None = None
    """Whether the replicas get packages of their own; null: where `virtual_env_packages` names some."""
    virtual_env_packages: list[str] = msgspec.field(default_factory=list)
    """Packages with versions for the model's own environment, beside those that its engine needs."""
    virtual_env_find_links: list[str] = msgspec.field(default_factory=list)
    """Directories of the workers' machines in which packages may lie."""
    trust_remote_code: bool = False
    """Whether Python code in the model's directory may run; the server's operator must allow it too (`XI_ALLOW_REMOTE_CODE`)."""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    """Environment variables of the replicas' processes. Where other machines reach the server, only those that its operator allows. Answers
    don't tell their values."""
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    """The engine's own options, as `xi launch --help` tells them. They may stand beside the other fields as well."""


def has_environment(spec: LaunchSpec) -> bool:
    """Whether the launch's replicas run in an environment of their own."""
    return spec.enable_virtual_env if spec.enable_virtual_env is not None else bool(spec.virtual_env_packages)
