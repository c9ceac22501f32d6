"""Which files of a hub's repository a launch gets: no code and no pickles, unless it may have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xi_core.config import Settings
from xi_core.errors import ArtifactError
from xi_core.models.family import SourceRef
from xi_core.models.hub_files import HubFile, check_cached, chosen, lacks_code, named, naming
from xi_core.models.hub_id import spec_of_hub

SAFE = ("config.json", "model.safetensors", "modeling_own.py", "pytorch_model.bin", "README.md", "training_args.bin", "sub/code.py")
PICKLED = ("config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "x.bin")


def ref(*files: str, code: bool = False, pickled: bool = False) -> SourceRef:
    return SourceRef(source="hub", id="a/b", files=files, code=code, pickled=pickled)


def names(listed: tuple[str, ...], wanted: SourceRef) -> list[str]:
    return [file.name for file in chosen([HubFile(name=name, size=1) for name in listed], wanted)]


def test_a_plain_launch_gets_neither_code_nor_pickles() -> None:
    assert names(SAFE, ref()) == ["config.json", "model.safetensors"]


def test_a_file_that_is_listed_twice_comes_once() -> None:
    assert names((*SAFE, *SAFE), ref()) == ["config.json", "model.safetensors"]
    assert names((*SAFE, *SAFE), ref("*.safetensors")) == ["model.safetensors"]


def test_code_comes_where_it_may() -> None:
    assert names(SAFE, ref(code=True)) == ["config.json", "model.safetensors", "modeling_own.py", "sub/code.py"]


def test_pickled_weights_come_where_they_may_and_there_are_no_others() -> None:
    assert names(SAFE, ref(pickled=True)) == ["config.json", "model.safetensors"]
    assert names(PICKLED, ref(pickled=True)) == [name for name in PICKLED if name != "x.bin"]


@pytest.mark.parametrize(
    ("listed", "quantization", "found"),
    [
        (("m-Q6_K.gguf", "m-Q6_K_L.gguf"), "q6_k", ["m-Q6_K.gguf"]),
        (("m-Q6_K.gguf", "m-Q6_K_L.gguf"), "Q6_K_L", ["m-Q6_K_L.gguf"]),
        (("m-bf16.gguf", "m.f16.gguf"), "f16", ["m.f16.gguf"]),
        (("m-IQ4_XS.gguf", "m_q4_xs.gguf"), "q4_xs", ["m_q4_xs.gguf"]),
        (
            ("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"),
            "q8_0",
            ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"],
        ),
        (("q4_0.gguf", "Q4_0_4_4.gguf"), "q4_0", ["q4_0.gguf"]),
        (("Q4_0/m.gguf", "x/m-Q4_1.gguf"), "q4_0", ["Q4_0/m.gguf"]),
        (("m-UD-Q4_K_XL.gguf",), "ud-q4_k_xl", ["m-UD-Q4_K_XL.gguf"]),
        (("m-Q6_K_L.gguf", "m-Q6_K.txt"), "q6_k", []),
        (("m-w[4].gguf", "m-w4.gguf"), "w[4]", ["m-w[4].gguf"]),
    ],
)
def test_a_quantization_is_a_whole_word_of_a_file_s_name(listed: tuple[str, ...], quantization: str, found: list[str]) -> None:
    wanted = spec_of_hub("a/b", "LLM", "ggufv2", quantization).source.files
    assert named(listed, wanted) == found


def test_a_part_of_a_quantization_is_refused_with_what_there_is() -> None:
    with pytest.raises(ArtifactError, match=r"has no file \*q6\*\.gguf.*q4_k_m, not q4.*; it has m-Q6_K\.gguf"):
        names(("m-Q6_K.gguf",), ref("*q6*.gguf"))
    with pytest.raises(ArtifactError, match=r"'a/b' has no file other\.gguf; it has m-Q6_K\.gguf"):
        names(("m-Q6_K.gguf",), ref("other.gguf"))


def test_several_files_in_the_cache_are_refused_as_those_of_the_hub_are() -> None:
    with pytest.raises(ArtifactError, match=r"several files \*\.gguf: m-Q4_0\.gguf, m-Q8_0\.gguf; say which") as raised:
        check_cached(("m-Q4_0.gguf", "m-Q8_0.gguf"), ref("*.gguf"))
    assert raised.value.param == "quantization"
    check_cached(("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"), ref("*.gguf"))
    check_cached(("m-Q4_0.gguf", "m-Q8_0.gguf"), ref("*q8_0*.gguf"))


VISION = ("mmproj-m-Q8_0.gguf", "m-Q8_0.gguf", "m-mmproj-f16.gguf")


@pytest.mark.parametrize("pattern", ["*q8_0*.gguf", "*.gguf"])
def test_a_pattern_means_the_model_and_not_its_projector_of_images(pattern: str) -> None:
    assert names(VISION, ref(pattern)) == ["m-Q8_0.gguf"]
    check_cached(VISION, ref(pattern))


def test_a_projector_of_images_comes_by_its_full_name_alone() -> None:
    assert names(VISION, ref("mmproj-m-Q8_0.gguf")) == ["mmproj-m-Q8_0.gguf"]
    with pytest.raises(ArtifactError, match=r"has no file \*f16\*\.gguf.*; it has m-Q8_0\.gguf$"):
        names(VISION, ref("*f16*.gguf"))


@pytest.mark.parametrize(
    ("listed", "wanted", "message"),
    [
        (PICKLED, ref(), r"\(pytorch_model-00001-of-00002\.bin, .*are pickles.*XI_ALLOW_PICKLED_WEIGHTS=1.*engine transformers"),
        (("config.json", "weights.pt"), ref(), r"\(weights\.pt\) are pickles.*with \.safetensors or \.gguf files$"),
        (("config.json", "weights.pt"), ref(pickled=True), r"\(weights\.pt\) are pickles"),
        (("config.json",), ref(pickled=True), "it has no weights"),
        (("config.json", "onnx/model.safetensors"), ref(pickled=True), "it has no weights"),
        (SAFE, ref("modeling_own.py"), r"modeling_own\.py is code.*--trust-remote-code.*XI_ALLOW_REMOTE_CODE=1"),
        (SAFE, ref("*.py"), "several files"),
        (SAFE, ref("pytorch_model.bin"), r"pytorch_model\.bin is a pickle"),
        (SAFE, ref("training_args.bin", pickled=True), r"training_args\.bin is a pickle"),
    ],
)
def test_refused_with_what_is_there_and_what_to_do(listed: tuple[str, ...], wanted: SourceRef, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        names(listed, wanted)


def test_what_is_named_comes_where_it_may() -> None:
    assert names(SAFE, ref("pytorch_model.bin", pickled=True)) == ["pytorch_model.bin"]
    assert names(SAFE, ref("modeling_own.py", code=True)) == ["modeling_own.py"]


def test_pickles_that_an_earlier_launch_put_into_the_cache_are_refused() -> None:
    with pytest.raises(ArtifactError, match="are pickles"):
        check_cached(PICKLED, ref())
    check_cached(PICKLED, ref(pickled=True))
    check_cached(SAFE, ref())
    with pytest.raises(ArtifactError, match="is a pickle"):
        check_cached(SAFE, ref("pytorch_model.bin"))


@pytest.mark.parametrize(
    ("auto_map", "files", "lacks"),
    [
        ({"AutoModel": "modeling.Own"}, [], True),
        ({"AutoTokenizer": ["tokens.Slow", None]}, [], True),
        ({"AutoModel": "modeling.Own"}, ["modeling.py"], False),
        ({"AutoModel": "other/repository--modeling.Own"}, [], False),
        (None, [], False),
        ("strange", [], False),
    ],
)
def test_whether_code_was_left_out(tmp_path: Path, auto_map: object, files: list[str], lacks: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto_map} if auto_map else {}))
    assert lacks_code(tmp_path, ["config.json", *files]) is lacks


def test_an_error_names_its_file_once() -> None:
    file = HubFile(name="model.safetensors", size=1)
    named = naming(ArtifactError("the hub answers 500", param="source"), ref(), file)
    assert (named.message, named.param) == ("a/b: model.safetensors: the hub answers 500", "source")
    assert naming(named, ref(), file) is named


@pytest.mark.parametrize(("config", "allowed"), [(Settings(), False), (Settings(allow_remote_code=True, allow_pickled_weights=True), True)])
def test_what_a_worker_permits_is_for_its_operator_to_say(config: Settings, allowed: bool) -> None:
    from xi_core.cluster.fetching import permitted

    asked = permitted(ref(), config, code=True, pickles=True)
    assert (asked.code, asked.pickled) == (allowed, allowed)
    claimed = permitted(ref(code=True, pickled=True), config, code=False, pickles=False)
    assert (claimed.code, claimed.pickled) == (False, False), "what the reference claims doesn't count"
