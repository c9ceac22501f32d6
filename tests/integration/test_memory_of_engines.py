"""The estimates of memory beside what engines say that they hold, for a random model of 60 M parameters: within 15 %."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xi_core.models import memory
from xi_core.models.inspect import inspect

ROOT = Path(__file__).parents[2]
CONTEXT, SLOTS = 1024, 4
NEAR = 0.15
MIB = 2**20

LLAMA_CPP = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.n_gpu_layers = int(sys.argv[2]), int(sys.argv[3]), 0
params.warmup = params.fit_params = False
params.verbosity = 10
params.endpoint_metrics = True
server = xllamacpp.Server(params)
server.handle_metrics()  # its loop turns now: one that doesn't yet can't be let go
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The benchmarks' model of 60 M, as a Hugging Face directory and as GGUF."""
    for library in ("torch", "transformers", "gguf"):
        pytest.importorskip(library)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        return importlib.import_module("benchmarks.random_model").make(tmp_path_factory.mktemp("random"))


def near(estimate: int, real: float) -> bool:
    return abs(estimate / real - 1) < NEAR


def test_llama_cpp(model: Any) -> None:
    pytest.importorskip("xllamacpp")
    command = [sys.executable, "-c", LLAMA_CPP, str(model.gguf), str(CONTEXT * SLOTS), str(SLOTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    sizes = dict(re.findall(r"(model|KV|compute) buffer size =\s*([\d.]+) MiB", done.stdout + done.stderr))
    assert sizes.keys() >= {"model", "KV", "compute"}, done.stderr[-2000:]
    spec = inspect(model.gguf)
    figures = spec.architecture_figures
    assert figures is not None
    assert spec.weight_bytes is not None
    assert near(spec.weight_bytes, float(sizes["model"]) * MIB)
    assert near(memory.weight_bytes(figures, "ggufv2", spec.quantization), float(sizes["model"]) * MIB)
    assert near(memory.cache_bytes(figures, CONTEXT, sequences=SLOTS), float(sizes["KV"]) * MIB)


def test_transformers(model: Any) -> None:
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    runner_module = pytest.importorskip("xi_plugins.engines.transformers.runner")
    spec = inspect(model.hf)
    figures = spec.architecture_figures
    assert figures is not None
    assert spec.weight_bytes is not None
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model.hf, dtype=torch.bfloat16)
    weights = sum(weight.nbytes for weight in loaded.parameters())
    assert near(spec.weight_bytes, weights)
    assert near(memory.weight_bytes(figures, "pytorch", None), weights)
    runner = runner_module.Runner(loaded, SLOTS, CONTEXT, torch.device("cpu"))
    with torch.inference_mode():
        runner.cache.reserve(CONTEXT, [], SLOTS)
        runner.prefill(0, [[1, 2, 3]] * SLOTS, [0] * SLOTS)
    layers = runner.cache._layers
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert near(memory.cache_bytes(figures, CONTEXT, sequences=SLOTS), held)
