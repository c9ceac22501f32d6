"""Checkpoints that are quantized already: what transformers' quantizer of each method asks for, said before anything is loaded.

After `validate_environment` of the quantizers of transformers 5.23 (`transformers/quantizers/quantizer_*.py`). Packages are looked at by
their metadata, devices by what the worker tells: nothing is imported. Used by plugin.py.
"""

from __future__ import annotations

import re

from msgspec import Struct

from xi_core.engine.info import HostInfo, Support
from xi_core.engine.installed import installed, version_of
from xi_core.models.family import ModelSpec

FORMATS = ("gptq", "awq", "fp8")
"""Formats of families that name a method."""
NOT_QUANTIZED = ("", "none", "bf16", "bfloat16", "fp16", "f16", "float16", "fp32", "float32")
FREE = 0.9
"""Part of the memory that weights may take."""
PACKAGES: dict[str, tuple[str, tuple[int, int]]] = {
    "accelerate": ("accelerate", (1, 1)),
    "amd-quark": ("quark", (0, 12)),
    "aqlm": ("aqlm", (0, 0)),
    "auto-round": ("auto_round", (0, 5)),
    "bitsandbytes": ("bitsandbytes", (0, 46)),
    "compressed-tensors": ("compressed_tensors", (0, 15)),
    "fbgemm-gpu": ("fbgemm_gpu", (0, 0)),
    "gptqmodel": ("gptqmodel", (1, 4)),
    "hqq": ("hqq", (0, 2)),
    "kernels": ("kernels", (0, 18)),
    "optimum": ("optimum", (1, 24)),
    "optimum-quanto": ("optimum", (0, 0)),
    "spqr_quant": ("spqr_quant", (0, 0)),
    "torchao": ("torchao", (0, 15)),
    "vptq": ("vptq", (0, 0)),
}
"""Distributions, each with its module and the oldest version that does."""
EXTRA = "'xi-inference[transformers-quantization]'"
OF_EXTRA = ("bitsandbytes", "torchao")
"""Those that the extra `transformers-quantization` brings."""


class Need(Struct, kw_only=True, frozen=True):
    """What a method asks for."""

    packages: tuple[str, ...] = ()
    on_gpu: tuple[str, ...] = ()
    """Packages that it needs on a GPU only."""
    gpu: bool = False
    """It has no kernels for a CPU."""
    expands: bool = False
    """On a CPU its weights become bfloat16 when they are loaded."""


METHODS = {
    "gptq": Need(packages=("optimum", "gptqmodel")),
    "awq": Need(packages=("gptqmodel",)),
    "compressed-tensors": Need(packages=("compressed-tensors",)),
    "bitsandbytes": Need(packages=("bitsandbytes",)),
    "torchao": Need(packages=("torchao",)),
    "quanto": Need(packages=("optimum-quanto",)),
    "auto-round": Need(packages=("auto-round",)),
    "hqq": Need(packages=("hqq",), gpu=True),
    "quark": Need(packages=("amd-quark",)),
    "aqlm": Need(packages=("aqlm",)),
    "vptq": Need(packages=("vptq",), gpu=True),
    "spqr": Need(packages=("spqr_quant",), gpu=True),
    "eetq": Need(packages=("kernels",), gpu=True),
    "fbgemm_fp8": Need(on_gpu=("fbgemm-gpu",), gpu=True),
    "fp8": Need(on_gpu=("kernels",), expands=True),
    "mxfp8": Need(on_gpu=("kernels",), expands=True),
    "mxfp4": Need(expands=True),
    "bitnet": Need(),
}
"""By the `quant_method` of a checkpoint's config.json."""
UNREADABLE = ("modelopt", "exl2", "exl3")
"""Methods of other libraries' own, which transformers leaves out with a warning: the model would write nonsense."""


def method_of(spec: ModelSpec) -> str:
    """How the checkpoint is quantized; empty where it isn't."""
    named = (spec.quantization or "").lower()
    known = sorted((name for name in METHODS if named == name or named.startswith(f"{name}-")), key=len)
    if known:
        return known[-1]
    if spec.format in FORMATS:
        return spec.format
    return "" if named in NOT_QUANTIZED else re.sub(r"-?\d+bit$", "", named) or named


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether transformers can read the checkpoint here, if it is quantized; a reason with a yes is a doubt."""
    method = method_of(spec)
    if not method:
        return Support(ok=True)
    if method in UNREADABLE:
        return Support(ok=False, reason=f"quantized by {method}, which transformers can't read")
    need = METHODS.get(method)
    if need is None:
        return Support(ok=True, reason=f"quantized by {method}, which is not in xi's list of what transformers reads")
    on_gpu = any(kind in ("cuda", "rocm") for kind in host.device_kinds)
    if need.gpu and not on_gpu:
        return Support(ok=False, reason=f"quantized by {method}, which runs on a GPU only, and this machine has none that it can use")
    packages = ("accelerate", *need.packages, *(need.on_gpu if on_gpu else ()))
    missing = [reason for name in packages if (reason := _missing(name, spec))]
    if missing:
        return Support(ok=False, reason=f"quantized by {method}: {'; '.join(missing)}")
    return _expanded(method, spec, host) if need.expands and not on_gpu else Support(ok=True)


def _missing(name: str, spec: ModelSpec) -> str:
    """Why a package isn't there as it must be; empty where it is, or where the model's own environment is to have it."""
    if any(_plain(re.split(r"[^A-Za-z0-9._-]", package, maxsplit=1)[0]) == _plain(name) for package in spec.packages):
        return ""
    module, oldest = PACKAGES[name]
    wanted = f"'{name}>={oldest[0]}.{oldest[1]}'" if any(oldest) else name
    line = f"pip install {EXTRA if name in OF_EXTRA else wanted}"
    if version_of((name,)) is None:  # `installed` asks for the module first, and one of this name may be another distribution's
        return f"{name} is not installed; install it with: {line}"
    found = installed(module, (name,), oldest, line)
    return "" if found.ok else found.reason


def _plain(name: str) -> str:
    """A distribution's name in its one form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _expanded(method: str, spec: ModelSpec, host: HostInfo) -> Support:
    """Whether the weights have room in this machine's memory once they are bfloat16, as far as their number is known."""
    try:
        needed = int(float(spec.size_in_billions) * 2e9) if spec.size_in_billions else 0
    except ValueError:  # a size that says nothing
        needed = 0
    if method != "mxfp4":
        needed = max(needed, 2 * (spec.weight_bytes or 0))
    if host.memory and needed > FREE * host.memory:
        return Support(
            ok=False,
            reason=f"quantized by {method}: on a CPU its weights become bfloat16, {needed / 1e9:.0f} GB, and this machine has "
            f"{host.memory / 1e9:.0f} GB",
        )
    return Support(ok=True, reason=f"quantized by {method}: on a CPU its weights become bfloat16")
