"""How much of a device's memory is kept for a launch, by what is known of its model and engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.cluster.reservation import CONTEXT, of_main_memory, reserved
from xi_core.engine.info import EngineInfo, Support
from xi_core.models.architecture import Architecture
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.models.memory import OVERHEAD, estimate
from xi_core.wire.manifest import Manifest
from xi_plugins.engines.transformers.plugin import Quantization

GIB = 2**30
FIGURES = Architecture.from_config(json.loads((Path(__file__).parents[2] / "data" / "architectures" / "llama-3.1-70b.json").read_text()))
assert FIGURES is not None
WEIGHTS = 141_107_412_992


def model(**fields: Any) -> ModelSpec:
    fields = {"format": "pytorch", "quantization": "none", "architecture_figures": FIGURES, "context_length": 131072} | fields
    return ModelSpec(name="m", source=SourceRef(source="local", id="/m"), **fields)


def engine(**fields: Any) -> EngineInfo:
    def yes(*_: Any) -> Support:
        return Support(ok=True)

    return EngineInfo(name="e", engine="e:E", formats=("pytorch",), manifest=Manifest(endpoints={}), probe=yes, match=yes, **fields)


def kept(spec: ModelSpec, info: EngineInfo | None = None, n_gpu: int = 1, n_worker: int = 1, **options: Any) -> int:
    return reserved(LaunchSpec(model_name="m", n_worker=n_worker, options=options), spec, info or engine(), n_gpu)


def test_weights_cache_activations_and_overhead() -> None:
    assert FIGURES is not None
    assert kept(model()) == estimate(FIGURES, WEIGHTS, CONTEXT).total
    assert 134 * GIB < kept(model()) < 140 * GIB


def test_over_several_devices_and_workers() -> None:
    quarter = kept(model(), n_gpu=2, n_worker=2)
    assert quarter == kept(model(), n_gpu=4)
    assert WEIGHTS / 4 < quarter < WEIGHTS / 4 + 4 * GIB


def test_options_that_make_the_cache_larger_or_smaller() -> None:
    one = kept(model())
    per_token = 327_680
    assert kept(model(), slots=3) - one >= 2 * CONTEXT * per_token
    assert kept(model(), batch_size=3) == kept(model(), slots=3)
    assert kept(model(), context_length=CONTEXT * 2) - one == CONTEXT * per_token
    assert one - kept(model(), cache_type_k="q8_0") == CONTEXT * per_token * (16 - 8.5) / 16
    assert kept(model(), slots="many", context_length=-4) == one


def test_layers_that_stay_in_main_memory_take_nothing_of_a_device() -> None:
    assert FIGURES is not None
    whole = estimate(FIGURES, WEIGHTS, CONTEXT)
    kept_always = whole.activations + whole.overhead
    assert FIGURES.layers == 80
    assert kept(model(), n_gpu_layers=20) - kept_always == pytest.approx((whole.weights + whole.cache) / 4, abs=1)
    assert kept(model(), n_gpu_layers=0) == kept_always
    for everything in (-1, 80, 999, "all", True):
        assert kept(model(), n_gpu_layers=everything) == whole.total


def test_files_tell_more_than_figures() -> None:
    assert kept(model(weight_bytes=7 * GIB)) - kept(model(weight_bytes=6 * GIB)) == GIB
    assert kept(model(architecture_figures=None, weight_bytes=6 * GIB)) == 6 * GIB + OVERHEAD


@pytest.mark.parametrize("unknown", [{"architecture_figures": None}, {"quantization": "of-tomorrow"}])
def test_what_nobody_knows_is_not_guessed(unknown: dict[str, Any]) -> None:
    assert kept(model(**unknown)) == 0


def test_nothing_is_kept_on_cpu() -> None:
    assert kept(model(), n_gpu=0) == 0


def test_main_memory_holds_the_weights() -> None:
    def asked(n_worker: int = 1, **options: Any) -> int:
        return of_main_memory(LaunchSpec(model_name="m", n_worker=n_worker, options=options), model())

    assert (asked(), asked(n_worker=2)) == (WEIGHTS, WEIGHTS / 2)
    assert asked(quantize="int8") == 0, "fewer stay than the files hold"
    assert of_main_memory(LaunchSpec(model_name="m"), model(architecture_figures=None)) == 0


def test_an_engine_that_takes_its_share_needs_room_for_the_weights() -> None:
    assert kept(model(), engine(memory_share=0.9), n_gpu=4) == WEIGHTS / 4
    assert kept(model(architecture_figures=None), engine(memory_share=0.9)) == 0


@pytest.mark.parametrize(("quantize", "bits"), [(name, 4.5 if "4" in name else 8.5) for name in get_args(Quantization)])
def test_weights_that_are_quantized_while_they_are_loaded_take_less_than_their_files(quantize: str, bits: float) -> None:
    files = model(weight_bytes=WEIGHTS)
    of_weights = WEIGHTS - (kept(files) - kept(files, quantize=quantize))
    assert of_weights < WEIGHTS * (bits / 16 + 0.03), "embeddings and the output layer stay as they are"
    assert kept(files, quantize=quantize) == kept(model(), quantize=quantize)
    assert kept(files, engine(memory_share=0.9), quantize=quantize) == of_weights


def test_four_bits_are_kept_for_where_sixteen_are_quantized() -> None:
    assert kept(model(weight_bytes=WEIGHTS), quantize="bitsandbytes-4bit") < kept(model(weight_bytes=WEIGHTS)) / 2
    assert kept(model(weight_bytes=WEIGHTS), quantize=None) == kept(model(weight_bytes=WEIGHTS))


@pytest.mark.parametrize("unknown", [{"architecture_figures": None}, {"of": "of-tomorrow"}])
def test_what_quantizing_leaves_is_not_guessed(unknown: dict[str, Any]) -> None:
    quantize = unknown.get("of", "bitsandbytes-4bit")
    fields = {name: value for name, value in unknown.items() if name != "of"}
    assert kept(model(weight_bytes=WEIGHTS, **fields), quantize=quantize) == 0


def test_what_generates_no_text_keeps_no_cache() -> None:
    assert kept(model()) - kept(model(model_type="embedding")) == CONTEXT * 327_680
