"""How many bits a weight takes, by format and quantization. Used by `memory.py` where the files themselves aren't at hand.

Sources:
* GGUF: the bits per weight that llama.cpp measured on whole files of Llama 3.1 8B (`tools/quantize/README.md` in ggml-org/llama.cpp); for
  types that are not listed there the size of their blocks (`ggml-common.h`): block bytes x 8 / block weights.
* GPTQ (arXiv:2210.17323) and AWQ (arXiv:2306.00978), in groups of 128 weights: a scale of 16 bits and a zero of as many bits as a weight.
* FP8 (arXiv:2412.19437, section 3.3): a scale of 32 bits for each block of 128 x 128.
* MXFP4 (OCP Microscaling Formats 1.0): a scale of 8 bits for 32 weights. NF4 (arXiv:2305.14314) in bitsandbytes: 32 bits for 64 weights.
* MLX (`mlx.core.quantize`): a scale and a bias of 16 bits for 64 weights, embeddings included.
"""

from __future__ import annotations

import re

from msgspec import Struct

from xi_core.errors import InvalidRequest

GGUF = {
    "iq1_s": 2.0042, "iq1_m": 2.1460, "iq2_xxs": 2.3824, "iq2_xs": 2.5882, "iq2_s": 2.7403, "iq2_m": 2.9294, "iq3_xxs": 3.2548,
    "iq3_xs": 3.4977, "iq3_s": 3.6606, "iq3_m": 3.7628, "iq4_xs": 4.4597, "iq4_nl": 4.6818, "q2_k_s": 2.9697, "q2_k": 3.1593,
    "q3_k_s": 3.6429, "q3_k_m": 3.9960, "q3_k_l": 4.2979, "q4_k_s": 4.6672, "q4_k_m": 4.8944, "q5_k_s": 5.5704, "q5_k_m": 5.7036,
    "q6_k": 6.5633, "q8_0": 8.5008, "f16": 16.0005, "bf16": 16.0005, "f32": 32.0,
    "q4_0": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0, "mxfp4": 4.25, "tq1_0": 1.6875, "tq2_0": 2.0625,
}  # fmt: skip
"""Bits per weight of a whole file, by quantization."""

SUPER_BLOCK = 256
"""Weights in a block of a k- or i-quant; a row that isn't made of whole ones gets a simpler type (`llama-quant.cpp`):"""
SIMPLER = {1: 4.5, 2: 4.5, 3: 4.5, 4: 5.5, 5: 6.0, 6: 8.5}
"""Bits of that type, by those of the quantization's name (q4_0, q5_0, q5_1, q8_0)."""
OUTPUT = 6.5625
"""Bits of the output layer in a k- or i-quant (q6_k), and so of the embeddings where they are the output layer too."""

FULL = {"none": 16.0, "": 16.0, "bf16": 16.0, "bfloat16": 16.0, "fp16": 16.0, "f16": 16.0, "float16": 16.0, "fp32": 32.0, "float32": 32.0}
"""Weights that aren't quantized."""

GROUP = 128
CACHE_BITS = {
    "auto": 16.0, "f32": 32.0, "f16": 16.0, "bf16": 16.0, "fp8": 8.0, "fp8_e4m3": 8.0, "fp8_e5m2": 8.0, "q8_0": 8.5, "q5_1": 6.0,
    "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5, "iq4_nl": 4.5,
}  # fmt: skip
"""Bits of one cached value, by the names that engines have for its type."""


class WeightBits(Struct, frozen=True):
    """Bits of a weight in the layers' matrices, and of one elsewhere (embeddings, output, norms)."""

    matrices: float
    rest: float


def bits_of(model_format: str, quantization: str | None) -> WeightBits:
    """Bits per weight. Raises `InvalidRequest` for a quantization that isn't known in this format, listing those that are."""
    name = (quantization or "none").lower()
    if model_format == "ggufv2":
        if name not in GGUF:
            raise _unknown(name, model_format, GGUF)
        return WeightBits(GGUF[name], GGUF[name])
    if model_format == "mlx":
        number = _number(name)
        if number:
            return WeightBits(number + 0.5, number + 0.5)
    elif name in FULL and model_format == "pytorch":
        return WeightBits(FULL[name], FULL[name])
    elif (bits := _matrix_bits(model_format, name)) is not None:
        return WeightBits(bits, 16.0)
    if name in FULL:
        return WeightBits(FULL[name], FULL[name])
    raise _unknown(name, model_format, ("none", "fp8", "4bit", "8bit", "int4", "int8", "mxfp4"))


def gguf_bits(quantization: str | None, hidden: int, tied: bool) -> WeightBits:
    """Bits per weight of a GGUF file of a model with rows of `hidden` weights, `tied`: its embeddings are its output layer.

    Raises `InvalidRequest` as `bits_of`.
    """
    found, name = bits_of("ggufv2", quantization), (quantization or "").lower()
    if not (name.startswith("iq") or "_k" in name):
        return found
    if not hidden % SUPER_BLOCK:
        return WeightBits(found.matrices, OUTPUT if tied else found.rest)
    simpler = max(found.matrices, SIMPLER[int(name.removeprefix("iq").removeprefix("q")[0])])
    return WeightBits(simpler, 8.5 if tied else simpler)


def _matrix_bits(model_format: str, name: str) -> float | None:
    """Bits in the matrices of a Hugging Face directory, by the words in its format and quantization."""
    words = f"{model_format} {name}"
    if "mxfp4" in words:
        return 4.25
    if "fp8" in words or "float8" in words or "f8" in words:
        return 8.0 + 32 / GROUP**2
    bits = _number(name) or (4 if model_format in ("gptq", "awq") else 0)
    if not bits:
        return None
    if "gptq" in words or "awq" in words or "int" in name:
        return bits + (16 + bits) / GROUP
    return 4.5 if bits == 4 else float(bits)  # bitsandbytes


def _number(name: str) -> int:
    """The bits that a name tells: `4bit`, `gptq-4bit`, `Int8`, `torchao-int4`, `8-bit`, `w4a16`."""
    found = re.search(r"(\d+)[-_ ]?bit|int[-_]?(\d+)|\bw(\d+)a\d+", name)
    bits = int(next(group for group in found.groups() if group)) if found else 0
    return bits if 2 <= bits <= 8 else 0


def _unknown(name: str, model_format: str, known: object) -> InvalidRequest:
    names = ", ".join(known) if isinstance(known, (dict, tuple)) else ""
    return InvalidRequest(
        f"the size of a weight in quantization '{name}' of format {model_format} isn't known; known: {names}", param="quantization"
    )
