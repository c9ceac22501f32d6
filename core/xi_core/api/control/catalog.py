"""What can be launched, as the control API tells it: engines, model families by name, and which of their specs an engine runs."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct


class SpecVerdict(Struct, kw_only=True):
    """Whether an engine runs one spec of a model here."""

    model_format: str
    """Such as `pytorch`, `ggufv2` or `awq`."""
    model_size_in_billions: str | None
    """Billions of weights."""
    quantization: str | None
    """Such as `none`, `q4_k_m` or `Int4`."""
    runs: bool
    """Whether it does."""
    reason: str = ""
    """Why not, or what there is to say."""


class EngineStatus(Struct, kw_only=True):
    """One engine as `xi engines` shows it."""

    name: str
    """As `model_engine` of a launch takes it."""
    available: bool
    """Whether it runs on some worker."""
    reason: str
    """Version when available; else why not, with the pip line."""
    formats: list[str]
    """Formats of models that it can run."""
    plugin: str
    """The plugin that brings it."""
    model: str | None = None
    """When asked for one model: whether this engine takes it (`yes`, or the reason why not)."""
    specs: list[SpecVerdict] = msgspec.field(default_factory=list)
    """When asked for one model: each of its specs."""


class EngineModels(Struct, kw_only=True):
    """A format and size of a model that an engine runs here, in Xinference's form: part of the answer to `GET /v1/engines/{model_name}`."""

    model_name: str
    """As asked for."""
    model_format: str
    """Such as `pytorch`, `ggufv2` or `awq`."""
    model_size_in_billions: int | str | None
    """Billions of weights: 7, or `0_5`."""
    quantizations: list[str]
    """Those that run; `none` where there is none."""


class VllmModels(Struct, kw_only=True):
    """Answer to `GET /v1/models/vllm-supported`: names of models."""

    chat: list[str]
    """Those that chat."""
    generate: list[str]
    """Those that only go on with a text."""


class SpecInfo(Struct, kw_only=True, omit_defaults=True):
    """One spec of a registered model, in Xinference's words."""

    model_format: str
    """Such as `pytorch`, `ggufv2` or `awq`."""
    model_size_in_billions: str | None = None
    """Billions of weights."""
    quantization: str | None = None
    """Such as `none`, `q4_k_m` or `Int4`."""
    model_hub: str = ""
    """The source that it comes from, such as `huggingface`."""
    model_id: str = ""
    """Its id there."""
    model_revision: str | None = None
    """The commit, branch or tag there; null: its main branch."""
    files: list[str] = msgspec.field(default_factory=list)
    """Those of the repository that are the model; empty: all."""
    mirrors: dict[str, str] = msgspec.field(default_factory=dict)
    """Its id at other hubs."""


class Registration(Struct, kw_only=True):
    """A model family that can be launched by name: an entry of `GET /v1/model_registrations/{type}`."""

    model_name: str
    """As a launch takes it."""
    model_type: str
    """What it is for: `LLM`, `embedding` or `rerank`."""
    is_builtin: bool
    """Whether it comes with xi or a plugin, and can't be taken out."""
    model_description: str = ""
    """What its makers say of it, in short."""
    model_ability: list[str] = msgspec.field(default_factory=list)
    """What it can do, such as `chat` and `tools`: all that some spec of it can."""
    context_length: int | None = None
    """Most tokens of a prompt with its answer."""
    formats: list[str] = msgspec.field(default_factory=list)
    """Those of its specs."""
    sizes: list[str] = msgspec.field(default_factory=list)
    """Billions of weights."""
    aliases: list[str] = msgspec.field(default_factory=list)
    """Other names of it."""
    persistent: bool = True
    """False for one that ends with its supervisor."""
    model_path: str | None = None
    """Where it lies on the workers' machines; null where it is downloaded."""
    model_specs: list[SpecInfo] = msgspec.field(default_factory=list)
    """Empty in lists, unless they are asked for (`detailed=true`)."""


class RegisterOrder(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of `POST /v1/model_registrations/{type}`."""

    model: Annotated[str, Meta(min_length=2, max_length=1024 * 1024)]
    """The text of a family file, in xi's form or in Xinference's."""
    persist: bool = True
    """Keep it over restarts of the supervisor."""
    worker_ip: None = None
    """For Xinference's client: families are known to the whole cluster, so that it can only be null."""


class RegisterAnswer(Struct, kw_only=True):
    """What was registered."""

    model_name: str
    """As a launch takes it."""
    model_type: str
    """What it is for: `LLM`, `embedding` or `rerank`."""
    notes: list[str] = msgspec.field(default_factory=list)
    """What of the file xi does another way."""


class RegistrationRemoval(Struct, kw_only=True):
    """Answer to `DELETE /v1/model_registrations/{model_type}/{model_name}`."""

    model_name: str
    """The model that was taken out, as asked for."""
    deleted: bool = True
    """Always true: what can't be taken out is an error."""
