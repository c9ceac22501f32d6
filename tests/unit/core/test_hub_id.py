"""Models that are named by their id at a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.models.catalog import candidates, default_uid, normalised, path_of
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef
from xi_core.models.hub_id import is_hub_id

FAMILY = ModelFamily(
    name="qwen",
    description="",
    specs=[
        ModelSpec(
            name="qwen",
            format="pytorch",
            source=SourceRef(source="huggingface", id="Qwen/Qwen-7B"),
            mirrors=(SourceRef(source="modelscope", id="scope/Qwen-7B"),),
            size_in_billions="7",
            tool_parser="hermes",
        )
    ],
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", ("pytorch", "0.5")),
        ("unsloth/Qwen3-8B-GGUF", ("ggufv2", "8")),
        ("mlx-community/Qwen2-7B-4bit", ("mlx", "7")),
        ("me/SmolLM2-135M", ("pytorch", "0.135")),
        ("TheBloke/Mixtral-8x7B-AWQ", ("awq", None)),
        ("me/m-GPTQ-Int4", ("gptq", None)),
        ("Qwen/Qwen3-30B-A3B-FP8", ("fp8", "30")),
    ],
)
def test_what_an_id_tells(name: str, found: tuple[str, str | None]) -> None:
    assert path_of(LaunchSpec(model_name=name), []) is None
    (spec,) = candidates(normalised(LaunchSpec(model_name=name)), [])
    assert (spec.format, spec.size_in_billions) == found
    assert (spec.source.source, spec.source.id, spec.abilities) == ("huggingface", name, ["generate", "chat"])


def test_the_launch_may_know_better() -> None:
    spec = normalised(LaunchSpec(model_name="me/m", model_type="embedding", model_format="gguf", quantization="Q4_K_M"))
    (found,) = candidates(spec, [])
    assert (found.format, found.quantization, found.model_type, found.abilities) == ("ggufv2", "Q4_K_M", "embedding", ["embed"])


@pytest.mark.parametrize("name", ["./m", "/m/n", "a/b/c", "~/m", "a/..", "../m", "a/m.gguf", "a//b", "-a/b", "m"])
def test_what_is_no_id(name: str) -> None:
    assert not is_hub_id(name)


def test_a_directory_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "m").mkdir(parents=True)
    assert path_of(LaunchSpec(model_name="me/m"), []) == "me/m"


@pytest.mark.parametrize("name", ["qwen/qwen-7b", "scope/Qwen-7B"])
def test_an_id_that_a_family_has_is_its_spec(name: str) -> None:
    assert candidates(LaunchSpec(model_name=name), [FAMILY]) == FAMILY.specs


def test_its_uid_is_the_name_at_the_hub() -> None:
    assert default_uid(LaunchSpec(model_name="Qwen/Qwen2.5-0.5B-Instruct")) == "Qwen2.5-0.5B-Instruct"
