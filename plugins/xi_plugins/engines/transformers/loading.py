"""Loads a checkpoint as a model that `SlotCache` can serve, or says why not. Used by engine.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as library_logging

from xi_core.errors import ArtifactError, EngineError, EngineNotInstalled, LaunchFailed, UnknownOption
from xi_core.models import checkpoint
from xi_plugins.engines.transformers.devices import Layout
from xi_plugins.engines.transformers.plugin import Quantization
from xi_plugins.engines.transformers.quantization import configuration, stored_method

OWN_CODE_REFUSED = (
    "this model brings Python code of its own; to run it, launch it with --trust-remote-code, "
    "where the operator allows that (XI_ALLOW_REMOTE_CODE=1)"
)
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")


def choose_dtype(option: str, stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The type of weights and cache. `auto` keeps the checkpoint's, but float16 on a CPU, which is slow there, becomes float32."""
    if option != "auto":
        found: torch.dtype = getattr(torch, option)
        return found
    if stored not in (torch.float32, torch.bfloat16, torch.float16):
        return torch.float32
    return torch.float32 if stored == torch.float16 and device.type == "cpu" else stored


def own_code(config: Any, kind: str, trust: bool) -> bool:
    """Whether the model's class, found by the library as `kind` (`AutoModel`…), comes from its directory and may run."""
    return trust and kind in (getattr(config, "auto_map", None) or {})


def read_config(directory: Path, trust: bool) -> Any:
    """The library's configuration object; `trust`: code in the directory may run. Raises `ArtifactError`."""
    try:
        return AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=trust)
    except Exception as error:  # the library raises many kinds; each means that it can't use this directory
        if not trust and "trust_remote_code" in str(error):
            raise ArtifactError(f"{directory}: {OWN_CODE_REFUSED}", param="trust_remote_code") from error
        raise ArtifactError(f"{directory}: transformers {transformers.__version__} can't load this model: {error}") from error


def load_config(directory: Path, trust: bool = False) -> Any:
    """The model's configuration object. Raises `ArtifactError` for what isn't a text generation model that the library knows."""
    checkpoint.read_config(directory)
    config = read_config(directory, trust)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code(config, "AutoModelForCausalLM", trust):
        raise ArtifactError(f"{directory}: a model of type {config.model_type} is not a text generation model")
    return config


def context_length(config: Any, wanted: int | None) -> int:
    """Most tokens of prompt and answer together. Raises `UnknownOption` if more is wanted than the model was made for."""
    text = config.get_text_config(decoder=True)
    made_for = next((getattr(text, name) for name in _LENGTHS if isinstance(getattr(text, name, None), int)), None)
    if wanted is not None and made_for is not None and wanted > made_for:
        raise UnknownOption(f"context_length {wanted} is more than the {made_for} that this model was made for", param="context_length")
    return wanted or made_for or 4096


def check_attention(config: Any, length: int) -> None:
    """Raises `EngineError` for a model whose cache is more, or less, than the keys and values of all tokens of a sequence."""
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    others = kinds - {"full_attention", "sliding_attention"}
    if others or getattr(config, "is_encoder_decoder", False):
        what = ", ".join(sorted(others)) or "an encoder"
        raise EngineError(f"engine transformers serves decoder models with full attention; this {config.model_type} model has {what}")
    window = getattr(text, "sliding_window", None)
    uses_window = "sliding_attention" in kinds or not getattr(text, "layer_types", None)
    if isinstance(window, int) and uses_window and window < length:
        raise _too_long(f"this {config.model_type} model attends to a sliding window of {window} tokens", window)
    rope = getattr(text, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
    if rope.get("rope_type") in ("dynamic", "longrope") and isinstance(original, int) and original < length:
        # the library would change the positions of all rows as soon as one is longer
        raise _too_long(f"this {config.model_type} model reads positions otherwise beyond {original} tokens", original)


def _too_long(reason: str, length: int) -> EngineError:
    return EngineError(f"{reason}, which engine transformers serves only up to that length: launch it with --context-length {length}")


def _attention(config: Any) -> str:
    """`sdpa` where the model's class has it (some, such as Gemma 2, cap their scores and don't), else `eager`."""
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    classes = found if isinstance(found, tuple) else (found,)
    return "sdpa" if all(getattr(cls, "_supports_sdpa", False) for cls in classes) else "eager"


def load_model(
    directory: Path,
    config: Any,
    dtype: torch.dtype,
    layout: Layout,
    quantize: Quantization | None = None,
    part: dict[str, Any] | None = None,
    *,
    trust: bool = False,
    pickled: bool = False,
) -> Any:
    """The model in memory, in evaluation mode. `part`: arguments that load a part of it; `trust` and `pickled`: as in the plan.

    Raises `ArtifactError`, `LaunchFailed`, `UnknownOption`, `EngineNotInstalled`.
    """
    safe = checkpoint.check_weights(directory, pickled=pickled)
    library: Any = AutoModelForCausalLM  # its annotations leave out what `output_loading_info` returns
    library_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    placed = quantize is not None or bool(stored_method(config)) or len(layout.devices) > 1
    arguments: dict[str, Any] = layout.arguments() if placed else {}
    if part:
        placed, arguments = True, part
    if quantize is not None:
        arguments["quantization_config"] = configuration(quantize, config, dtype, layout.first)
    try:
        model, info = library.from_pretrained(
            str(directory),
            config=config,
            dtype=dtype,
            attn_implementation="eager" if own_code(config, "AutoModelForCausalLM", trust) else _attention(config),
            use_safetensors=safe,
            weights_only=True,
            local_files_only=True,
            trust_remote_code=trust,
            output_loading_info=True,
            **arguments,
        )
        missing = sorted(info["missing_keys"])
        model = _evened(model, dtype).eval() if placed else model.to(layout.first).eval()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LaunchFailed(f"{directory}: not enough memory on {_names(layout)} for the weights: {error}") from error
    except ImportError as error:  # of a library that reads the checkpoint's own quantization, most often
        raise EngineNotInstalled(f"{directory}: transformers needs a library more for this model: {error}") from error
    except Exception as error:  # as above
        raise ArtifactError(f"{directory}: the weights can't be loaded: {error}") from error
    if missing:
        raise ArtifactError(f"{directory}: the checkpoint lacks {len(missing)} weights of the model, the first is {missing[0]}")
    check_placement(model, layout)
    if getattr(model, "_is_stateful", False):
        raise EngineError(f"engine transformers serves models with full attention; this {config.model_type} model keeps a recurrent state")
    return model


def _evened(model: Any, dtype: torch.dtype) -> Any:
    """Quantized weights that were expanded while they were loaded have `dtype`; the library leaves the others in the file's."""
    return model.to(dtype) if getattr(model, "is_quantized", None) is False else model


def check_placement(model: Any, layout: Layout) -> None:
    """Raises `LaunchFailed` for a model of which a part found no room on the devices of its launch."""
    found = getattr(model, "hf_device_map", None) or {}
    outside = sorted(name for name, place in found.items() if place in ("disk", "cpu", "meta") and layout.first.type != "cpu")
    if outside:
        raise LaunchFailed(f"not enough memory on {_names(layout)} for the weights: no room for {outside[0]} and {len(outside) - 1} more")


def _names(layout: Layout) -> str:
    return ", ".join(map(str, layout.devices))
