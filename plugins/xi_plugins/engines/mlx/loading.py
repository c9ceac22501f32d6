"""Loads a directory as a model that mlx-lm's `BatchGenerator` can serve, or says why not. Used by engine.py."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as library_load

from xi_core.engine.hub_tokenizer import HubTokenizer
from xi_core.errors import ArtifactError, EngineError, LaunchFailed, UnknownOption, XiError
from xi_core.models import checkpoint
from xi_plugins.engines.mlx import rotary

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")


class MlxTokenizer(HubTokenizer):
    """xi's tokenizer over Hugging Face files of every kind that transformers, which mlx-lm brings along, reads."""

    @classmethod
    def convert(cls, directory: Path) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False).backend_tokenizer


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json`. Raises `ArtifactError`."""
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such directory; a directory in MLX's or Hugging Face's form is expected")
    config = checkpoint.read_json(directory / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ArtifactError(f"{directory}: config.json is missing or names no model_type; is it a Hugging Face model directory?")
    return config


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def context_length(config: dict[str, Any], wanted: int | None) -> int:
    """Most tokens of prompt and answer together. Raises `UnknownOption` if more is wanted than the model was made for."""
    places = (text_part(config), config)
    made_for = next((place[name] for place in places for name in _LENGTHS if isinstance(place.get(name), int)), None)
    if wanted is not None and made_for is not None and wanted > made_for:
        raise UnknownOption(f"context_length {wanted} is more than the {made_for} that this model was made for", param="context_length")
    return wanted or made_for or 4096


def check_devices(devices: list[str]) -> None:
    """Raises `UnknownOption` if the launch gives devices that mlx, as it is installed, can't compute on."""
    if len(devices) > 1:
        raise UnknownOption(f"engine mlx runs on one device, {len(devices)} were given: use --n-gpu 1, or --replica {len(devices)}")
    if devices and mx.default_device() == mx.Device(mx.cpu):
        raise UnknownOption(f"mlx {mx.__version__}, as it is installed here, computes on the CPU only: launch with --n-gpu none")


def load_model(directory: Path, config: dict[str, Any], part: Callable[[Any], None] | None = None) -> Any:
    """The model in memory, or what `part` leaves of it. Raises `ArtifactError`, `EngineError`, `LaunchFailed`."""
    checkpoint.check_weights(directory)
    try:
        model, _ = library_load(directory, lazy=part is not None, model_config=_completed(config), trust_remote_code=False)
        if part is not None:
            part(model)
        mx.eval(model)  # all of it, tables outside the weights too: what is left lazy would be made on another thread
    except LaunchFailed:
        raise
    except XiError as error:
        raise ArtifactError(f"{directory}: {error.message}") from error
    except MemoryError as error:
        raise LaunchFailed(f"{directory}: not enough memory for the weights: {error}") from error
    except Exception as error:  # the library raises many kinds; each means that it can't use this directory
        if "allocate" in str(error):
            raise LaunchFailed(f"{directory}: not enough memory for the weights: {error}") from error
        raise ArtifactError(f"{directory}: mlx-lm can't load this model: {error}") from error
    alone = sorted({type(cache).__name__ for cache in make_prompt_cache(model) if not hasattr(cache, "merge")})
    if alone:
        raise EngineError(
            f"engine mlx serves models in batches; mlx-lm can't batch the {', '.join(alone)} of this {config['model_type']} model"
        )
    return model


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """What `load_model` is to add to, or change in, the directory's configuration."""
    fields = _fields_read(config)
    rotary.check_base(config, fields)
    changed = rotary.complete(config, fields)
    inner = config.get("text_config")
    if isinstance(inner, dict) and "model_type" in inner:
        changed = {**changed, "text_config": rotary.complete(inner, _fields_read(inner))}
    return {name: value for name, value in changed.items() if config.get(name) != value}


def _fields_read(config: dict[str, Any]) -> dict[str, Any]:
    """What mlx-lm's class for this model reads of its configuration, each with its default; nothing if it has no such class."""
    find = inspect.signature(library_load).parameters["get_model_classes"].default
    try:
        _, arguments = find(config)
    except ValueError:  # `load_model` says it better, if it needs the class
        return {}
    return {field.name: None if field.default is dataclasses.MISSING else field.default for field in dataclasses.fields(arguments)}


def vocabulary_size(model: Any) -> int:
    """Ids are below this: the width of the model's answer, whose shape is known before anything is computed."""
    logits = model(mx.zeros((1, 1), dtype=mx.int32))
    return int(logits.shape[-1])
