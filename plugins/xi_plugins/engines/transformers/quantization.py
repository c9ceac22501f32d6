"""Weights quantized while they are loaded, by the libraries that transformers knows for it. Used by loading.py.

https://huggingface.co/docs/transformers/quantization/overview
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from xi_core.errors import EngineNotInstalled, UnknownOption
from xi_plugins.engines.transformers.plugin import INSTALL_QUANTIZATION, Quantization

_NEEDS_GPU: tuple[Quantization, ...] = ("torchao-int4",)
"""Their kernels are for GPUs only."""


def configuration(name: Quantization, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The `quantization_config` of `from_pretrained`; layers compute in `dtype`.

    Raises `UnknownOption` where the checkpoint is quantized already or the device can't, `EngineNotInstalled` with the pip line.
    """
    stored = stored_method(config)
    if stored:
        raise UnknownOption(
            f"quantize {name}: this checkpoint is quantized already ({stored}); launch it without the option", param="quantize"
        )
    if name in _NEEDS_GPU and device.type == "cpu":
        raise UnknownOption(f"quantize {name} needs a GPU; on a CPU torchao-int8 and bitsandbytes-4bit work", param="quantize")
    library = name.partition("-")[0]
    if find_spec(library) is None:
        raise EngineNotInstalled(f"quantize {name} needs {library}, which is not installed: {INSTALL_QUANTIZATION}", param="quantize")
    return _MAKERS[name](dtype)


def stored_method(config: Any) -> str:
    """How a checkpoint is quantized by its own `config.json` (`gptq`, `awq`, `fp8`…); empty where it isn't."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return ""
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method) or "in a way that it doesn't name")


def _eight_bits(dtype: torch.dtype) -> Any:
    # It warns of the cast to float16 in every layer of every pass.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]


def _four_bits(dtype: torch.dtype) -> Any:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)  # type: ignore[no-untyped-call]


def _torchao(kind: str) -> Callable[[torch.dtype], Any]:
    def make(dtype: torch.dtype) -> Any:
        import torchao.quantization

        return TorchAoConfig(getattr(torchao.quantization, kind)())

    return make


_MAKERS: dict[Quantization, Callable[[torch.dtype], Any]] = {
    "bitsandbytes-8bit": _eight_bits,
    "bitsandbytes-4bit": _four_bits,
    "torchao-int8": _torchao("Int8WeightOnlyConfig"),
    "torchao-int8-dynamic": _torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao-float8": _torchao("Float8WeightOnlyConfig"),
    "torchao-int4": _torchao("Int4WeightOnlyConfig"),
}
