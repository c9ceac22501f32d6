"""Which model specs a launch spec can mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.errors import InvalidRequest, UnknownModel
from xi_core.models.catalog import candidates, default_uid, normalised, path_of, same_size
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef
from xi_core.models.family_file import expanded, read_family


def model(fmt: str, size: str | None, quantization: str | None = None, **more: Any) -> ModelSpec:
    return ModelSpec(
        name="qwen",
        format=fmt,
        source=SourceRef(source="hub", id=f"{fmt}-{size}"),
        size_in_billions=size,
        quantization=quantization,
        **more,
    )


FAMILIES = [
    ModelFamily(
        name="Qwen",
        description="",
        aliases=("qw",),
        specs=[
            model("pytorch", "0.5", tool_parser="hermes"),
            model("pytorch", "7"),
            model("ggufv2", "7", "q4_0"),
            model("ggufv2", "7", "Q8_0"),
        ],
    ),
    ModelFamily(name="xi-tiny", description="", specs=[model("pytorch", "0.001")]),
]


def found(**fields: Any) -> list[str]:
    return [s.source.id + (f"-{s.quantization}" if s.quantization else "") for s in candidates(LaunchSpec(**fields), FAMILIES)]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("0_5", "0.5"),
        ("0.50", "0.5"),
        ("7", "7"),
        ("7.0", "7"),
        ("7B", "7"),
        ("0_001", "0.001"),
        ("70", "70"),
        ("8x7", "8x7"),
        ("nan", "nan"),
        ("0", "0"),
        ("1e9999999", "1e9999999"),
        ("9e999999", "9e999999"),
        ("-9e-999999", "-9e-999999"),
        ("1e99999999999999999999", "1e99999999999999999999"),
    ],
)
def test_sizes_have_one_form(text: str, plain: str) -> None:
    assert same_size(text) == plain


def test_a_name_in_any_case_or_an_alias_means_all_of_its_specs() -> None:
    assert len(found(model_name="QWEN")) == len(found(model_name="qw")) == 4


def test_filters() -> None:
    assert found(model_name="qwen", model_format="GGUF") == ["ggufv2-7-q4_0", "ggufv2-7-Q8_0"]
    assert found(model_name="qwen", size_in_billions="0_5") == ["pytorch-0.5"]
    assert found(model_name="qwen", quantization="q8_0") == ["ggufv2-7-Q8_0"]
    assert found(model_name="qwen", quantization="none") == ["pytorch-0.5", "pytorch-7"]
    assert found(model_name="xi-tiny", size_in_billions="0_001") == ["pytorch-0.001"]


@pytest.mark.parametrize(
    ("fields", "param", "values"),
    [
        ({"model_format": "mlx"}, "model_format", "pytorch, ggufv2"),
        ({"size_in_billions": "3"}, "size_in_billions", "0.5, 7"),
        ({"model_format": "ggufv2", "quantization": "q5"}, "quantization", "q4_0, q8_0"),
        ({"model_format": "ggufv2", "size_in_billions": "0.5"}, "size_in_billions", "it has: 7"),
    ],
)
def test_a_filter_that_leaves_nothing_says_what_there_is(fields: dict[str, str], param: str, values: str) -> None:
    with pytest.raises(UnknownModel, match=values) as caught:
        found(model_name="qwen", **fields)
    assert caught.value.param == param


def test_an_unknown_model_lists_the_known_ones_and_guesses() -> None:
    with pytest.raises(UnknownModel, match=r"did you mean 'xi-tiny'.*known models: Qwen, xi-tiny"):
        found(model_name="xi-tny")
    with pytest.raises(UnknownModel, match="unknown model 'something else'; known models"):
        found(model_name="something else")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "xi-tiny").mkdir()
    assert path_of(LaunchSpec(model_name="mine"), FAMILIES) == "mine"
    assert path_of(LaunchSpec(model_name="/x/a.gguf"), FAMILIES) == "/x/a.gguf"
    assert path_of(LaunchSpec(model_name="a.GGUF"), FAMILIES) == "a.GGUF"
    assert path_of(LaunchSpec(model_name="xi-tiny"), FAMILIES) is None
    assert path_of(LaunchSpec(model_name="xi-tiny", model_path="/y"), FAMILIES) == "/y"
    assert path_of(LaunchSpec(model_name="other"), FAMILIES) is None


def test_a_path_alone_is_what_it_holds() -> None:
    inspected = model("ggufv2", None, "f16")
    assert candidates(LaunchSpec(model_name="/x/a.gguf"), FAMILIES, inspected) == [inspected]


def test_a_family_with_a_path_keeps_its_parsers_but_takes_the_files_word() -> None:
    inspected = ModelSpec(name="dir", format="pytorch", source=SourceRef(source="local", id="/y"), context_length=77, architecture="Q")
    (spec,) = candidates(LaunchSpec(model_name="qwen", model_path="/y", size_in_billions="7"), FAMILIES, inspected)
    assert (spec.name, spec.source, spec.tool_parser) == ("Qwen", SourceRef(source="local", id="/y"), "hermes")
    assert (spec.context_length, spec.architecture, spec.size_in_billions) == (77, "Q", None)
    with pytest.raises(UnknownModel, match="it has: pytorch"):
        candidates(LaunchSpec(model_name="qwen", model_path="/y", model_format="mlx"), FAMILIES, inspected)


def test_a_family_that_is_a_path_says_template_parsers_and_stops_of_what_is_there() -> None:
    text = '{"name": "mine", "path": "/y", "tool_parser": "hermes", "chat_template": "T", "stop": ["END"], "stop_token_ids": [7], "abilities": ["chat"]}'
    inspected = ModelSpec(
        name="dir", format="pytorch", source=SourceRef(source="local", id="/y"), context_length=77, model_type="embedding"
    )
    (spec,) = candidates(LaunchSpec(model_name="mine"), [expanded(read_family(text))], inspected)
    assert (spec.name, spec.format, spec.source.id, spec.context_length) == ("mine", "pytorch", "/y", 77)
    assert (spec.tool_parser, spec.chat_template, spec.stop, spec.stop_token_ids) == ("hermes", "T", ["END"], [7])
    assert (spec.abilities, spec.model_type) == (["chat", "generate"], "embedding"), "the type is what the files say"


@pytest.mark.parametrize(
    ("name", "uid"),
    [
        ("Qwen", "Qwen"),
        ("/m/My Model", "My-Model"),
        ("/m/a.b-f16.gguf", "a.b-f16"),
        ("~/x/", "x"),
        ("é漢a", "a"),
        ("file:///m/a.b-f16.gguf", "a.b-f16"),
    ],
)
def test_default_uids(name: str, uid: str) -> None:
    assert default_uid(LaunchSpec(model_name=name)) == uid


def test_the_default_uid_of_a_directory_is_its_name(tmp_path: Path) -> None:
    (tmp_path / "m-v1.5").mkdir()
    for name in (str(tmp_path / "m-v1.5"), (tmp_path / "m-v1.5").as_uri()):
        assert default_uid(LaunchSpec(model_name=name)) == "m-v1.5"


@pytest.mark.parametrize("name", ["漢", "/", ".."])
def test_no_uid(name: str) -> None:
    with pytest.raises(InvalidRequest, match="model_uid"):
        default_uid(LaunchSpec(model_name=name))


def test_specs_that_mean_the_same_are_equal() -> None:
    one = LaunchSpec(model_name="qwen", size_in_billions="0_5", model_format="GGUF", quantization="", model_engine="")
    other = LaunchSpec(model_name="qwen", model_uid="qwen", size_in_billions="0.5", model_format="ggufv2")
    assert normalised(one) == normalised(other)
