"""Which source a launch's files come from: what it asks for, XI_MODEL_SRC, the model's own."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from xi_core.api.control import LaunchSpec
from xi_core.errors import UnknownModel
from xi_core.models.catalog import candidates, normalised
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef

HERE = SourceRef(source="huggingface", id="Owner/Model")
THERE = SourceRef(source="modelscope", id="owner/model-there")
BOTH = ModelSpec(name="both", format="pytorch", source=HERE, mirrors=(THERE,), quantization="none")
ONE = ModelSpec(name="both", format="pytorch", source=HERE, quantization="int4")
FAMILIES = [
    ModelFamily(name="both", description="", specs=[BOTH, ONE]),
    ModelFamily(name="single", description="", specs=[ModelSpec(name="single", format="pytorch", source=HERE)]),
]


def refs(default: str = "huggingface", **fields: str) -> list[SourceRef]:
    spec = normalised(LaunchSpec(**fields))  # type: ignore[arg-type]
    return [model.source for model in candidates(spec, FAMILIES, default_source=default)]


def test_the_launch_goes_before_the_setting_and_that_before_the_model() -> None:
    assert refs(model_name="both") == [HERE, HERE]
    assert refs(model_name="both", source="ModelScope") == [THERE], "the other isn't there"
    assert refs("modelscope", model_name="both") == [THERE, HERE]
    assert refs("modelscope", model_name="both", source="huggingface") == [HERE, HERE]


def test_a_path_goes_before_any_source() -> None:
    at = SourceRef(source="local", id="/w")
    inspected = ModelSpec(name="w", format="pytorch", source=at)
    for name in ("both", "single", "Someone/Some-7B"):
        asked = LaunchSpec(model_name=name, model_path="/w")
        for default in ("huggingface", "modelscope"):
            (found,) = candidates(normalised(asked), FAMILIES, inspected, default)
            assert (found.source, found.mirrors) == (at, ())
        asked = replace(asked, source="modelscope")
        with pytest.raises(UnknownModel, match="not known at source 'modelscope'; it is at: local"):
            candidates(normalised(asked), FAMILIES, inspected)


def test_the_source_that_isnt_taken_becomes_a_mirror() -> None:
    found = candidates(normalised(LaunchSpec(model_name="both", quantization="none", source="modelscope")), FAMILIES)
    assert found[0].mirrors == (HERE,)


def test_a_hub_id_is_looked_for_where_it_is_said_to_be() -> None:
    name = "Someone/Some-7B"
    assert refs(model_name=name) == [SourceRef(source="huggingface", id=name)]
    assert refs("modelscope", model_name=name) == [SourceRef(source="modelscope", id=name)]
    assert refs(model_name=name, source="modelscope") == [SourceRef(source="modelscope", id=name)]


def test_a_quantization_of_a_gguf_id_names_its_file() -> None:
    name = "Someone/Some-7B-GGUF"
    assert refs(model_name=name, quantization="q4_k_m") == [SourceRef(source="huggingface", id=name, files=("*q4_k_m*.gguf",))]
    assert refs(model_name=name) == [SourceRef(source="huggingface", id=name, files=("*.gguf",))]


def test_a_model_that_isnt_at_the_source_is_refused_with_those_where_it_is() -> None:
    with pytest.raises(UnknownModel, match="'single' is not known at source 'modelscope'; it is at: huggingface") as raised:
        refs(model_name="single", source="modelscope")
    assert raised.value.param == "source"
