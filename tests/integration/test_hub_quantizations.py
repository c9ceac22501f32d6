"""A hub id with several GGUF files: which one a launch gets, from the hub and from the cache."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from xi_core.errors import ArtifactError
from xi_core.models.family import SourceRef
from xi_core.models.hub import HubSource
from xi_core.testing.hub_standin import HubModel, HubStandIn

ID = "people/small-model-GGUF"
WEIGHTS = random.Random(7).randbytes(30_000)


@pytest.fixture
def hub(model_hub: HubStandIn) -> HubStandIn:
    model_hub.models[ID] = HubModel(files={})
    return model_hub


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


def ref_of(source: HubSource, *files: str) -> SourceRef:
    return SourceRef(source=source.name, id=ID, files=files)


def test_one_file_of_many_is_chosen_by_its_quantization(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    hub.models[ID].files = {"m-Q4_K_M.gguf": WEIGHTS, "m-Q8_0.gguf": b"other" * 500}
    path = source.fetch(ref_of(source, "*q4_k_m*.gguf"), tmp_path, quiet)
    assert path.name == "m-Q4_K_M.gguf"
    assert path.read_bytes() == WEIGHTS
    assert not hub.gets("Q8_0")
    with pytest.raises(ArtifactError, match="say which by its quantization") as raised:
        source.fetch(ref_of(source, "*.gguf"), tmp_path / "b", quiet)
    assert raised.value.param == "quantization"
    other = source.fetch(ref_of(source, "*q8_0*.gguf"), tmp_path, quiet)
    assert other.read_bytes() == b"other" * 500
    assert path.read_bytes() == WEIGHTS, "the model that was there already still is"


def test_what_is_cached_is_taken_only_where_it_is_what_is_meant(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    hub.models[ID].files = {"m-Q6_K.gguf": WEIGHTS, "m-Q6_K_L.gguf": b"other" * 500}
    large, small = (ref_of(source, f"*{name}*.gguf") for name in ("q6_k_l", "q6_k"))
    assert source.fetch(large, tmp_path, quiet).name == "m-Q6_K_L.gguf"
    assert source.fetch(small, tmp_path, quiet).read_bytes() == WEIGHTS
    assert source.fetch(large, tmp_path, quiet).name == "m-Q6_K_L.gguf"
    hub.stop()
    with pytest.raises(ArtifactError, match="say which by its quantization"):
        source.fetch(ref_of(source, "*.gguf"), tmp_path, quiet)
