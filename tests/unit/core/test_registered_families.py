"""Registered families: both forms of files, names that are taken, what is kept over a restart."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from xi_core.errors import Conflict, InvalidRequest, NotFound, UnknownModel
from xi_core.models.family import ModelFamily
from xi_core.models.registered import RegisteredFamilies
from xi_core.models.registration_form import read_form
from xi_core.plugins import Registry


def known() -> Registry[ModelFamily]:
    families: Registry[ModelFamily] = Registry("model", UnknownModel)
    families.add(ModelFamily(name="Built-In", description="", specs=[], aliases=("bi",)), "families")
    return families


def form(name: str = "mine", **more: Any) -> str:
    return json.dumps({"name": name, "path": "/models/mine", **more})


def test_a_registered_family_is_known_and_kept(tmp_path: Path) -> None:
    families = known()
    registered = RegisteredFamilies(families, tmp_path)
    registered.register(form("Mine", description="é"), "LLM", True)
    registered.register(form("passing"), None, False)
    assert families.get("mine").path == "/models/mine"
    assert (registered.is_registered("MINE"), registered.is_registered("built-in")) == (True, False)
    assert (registered.is_kept("mine"), registered.is_kept("passing"), registered.is_kept("Built-In")) == (True, False, True)
    assert [path.name for path in (tmp_path / "families").iterdir()] == ["mine.json"]

    after = known()
    again = RegisteredFamilies(after, tmp_path)
    assert (after.get("Mine").description, "passing" in after) == ("é", False)
    again.unregister("mine")
    assert "mine" not in after
    assert not list((tmp_path / "families").iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (form("BUILT-in"), "taken by the built-in model 'Built-In'"),
        (form("other", aliases=["BI"]), "taken by the built-in model 'Built-In'"),
        (form("mine"), "'mine' is registered already; take it out first: xi unregister -n mine"),
    ],
)
def test_no_name_can_be_taken_twice(tmp_path: Path, text: str, words: str) -> None:
    registered = RegisteredFamilies(known(), tmp_path)
    registered.register(form("mine"), "LLM", True)
    with pytest.raises(Conflict) as caught:
        registered.register(text, "LLM", True)
    assert words in caught.value.message


@pytest.mark.parametrize("name", ["../mine", "a/b", "..", "", "a\nb", "x" * 129])
def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="line 1: name"):
        RegisteredFamilies(known(), tmp_path).register(form(name), "LLM", True)
    assert not (tmp_path / "families").exists()


def test_built_in_and_unknown_ones_cannot_be_taken_out(tmp_path: Path) -> None:
    registered = RegisteredFamilies(known(), tmp_path)
    registered.register(form(), "LLM", True)
    with pytest.raises(Conflict, match="built in"):
        registered.unregister("bi")
    for name, model_type in (("../mine", None), ("other", None), ("mine", "embedding")):
        with pytest.raises(NotFound, match="registered: mine"):
            registered.unregister(name, model_type)


def test_a_file_that_is_wrong_is_left_out_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "good.json").write_text(form("good"))
    (folder / "bad.json").write_text('{"name": "bad",\n "pth": "/x"}')
    (folder / "bi.json").write_text(form("bi"))
    (folder / "named.json").write_text(form("otherwise"))
    families = known()
    with caplog.at_level(logging.WARNING):
        RegisteredFamilies(families, tmp_path)
    assert sorted(families.names()) == ["built-in", "good"]
    for words in ("line 2: pth: unknown field 'pth'; did you mean 'path'?", "built-in model 'Built-In'", "named after its family"):
        assert words in caplog.text


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "families").write_text("a file, where a folder should be")
    families = known()
    with pytest.raises(InvalidRequest, match="can't be kept in"):
        RegisteredFamilies(families, tmp_path).register(form(), "LLM", True)
    assert "mine" not in families


def test_the_type_is_that_of_the_file(tmp_path: Path) -> None:
    registered = RegisteredFamilies(known(), tmp_path)
    with pytest.raises(InvalidRequest, match="of type embedding, and is registered as LLM"):
        registered.register(form(model_type="embedding"), "LLM", True)
    assert registered.register(form(), "embedding", True).family.model_type == "embedding"


@pytest.mark.parametrize(("model_type", "ability"), [("embedding", "embed"), ("rerank", "rerank")])
def test_abilities_are_those_of_the_type_that_is_given(model_type: str, ability: str) -> None:
    family = read_form(form(abilities=[ability]), model_type).family
    assert (family.model_type, family.abilities) == (model_type, [ability])


def test_faults_are_told_with_the_lines_of_the_text_whatever_type_is_given() -> None:
    with pytest.raises(InvalidRequest, match="line 2: abilities: 'chat' is no ability of a model of type embedding"):
        read_form('{"name": "mine", "path": "/models/mine",\n "abilities": ["chat"]}', "embedding")
    with pytest.raises(InvalidRequest, match=r"line 2: abilities\[0\]: .*one of generate"):
        read_form('{"name": "mine", "path": "/models/mine",\n "abilities": ["walk"]}', "embedding")
    with pytest.raises(InvalidRequest, match=r"line 1: model_type: .*one of LLM, embedding, rerank"):
        read_form('{"name": "mine",\n "path": "/models/mine"}', "audio")


# ---- Xinference's form -------------------------------------------------------------------------------

CUSTOM = {
    "version": 2,
    "context_length": 2048,
    "model_name": "custom-llama",
    "model_lang": ["en"],
    "model_ability": ["chat", "tools", "vision"],
    "model_family": "llama-3.1-instruct",
    "model_specs": [
        {"model_format": "pytorch", "model_size_in_billions": "1_8", "quantization": "none", "model_uri": "file:///models/llama"},
        {
            "model_format": "ggufv2",
            "model_size_in_billions": 7,
            "quantizations": ["q4", "q8"],
            "model_id": "me/llama-GGUF",
            "model_revision": "v1",
            "model_file_name_template": "llama.{quantization}.gguf",
            "model_file_name_split_template": "llama.{quantization}-{part}.gguf",
            "quantization_parts": {"q8": ["00001-of-00002", "00002-of-00002"]},
        },
    ],
    "stop": ["</s>", ""],
    "stop_token_ids": [2],
}


def test_xinferences_form() -> None:
    found = read_form(json.dumps(CUSTOM))
    assert found.family.abilities == ["generate", "chat", "tools"]
    local, hub = found.family.specs
    assert (local.sizes, local.sources) == (["1.8"], {"local": "file:///models/llama"})
    assert (hub.sizes, hub.quantizations, hub.sources, hub.revisions) == (
        ["7"],
        ["q4", "q8"],
        {"huggingface": "me/llama-GGUF"},
        {"huggingface": "v1"},
    )
    assert (hub.file, hub.split_file, hub.parts) == ("llama.{quantization}.gguf", "llama.{quantization}-{part}.gguf", {"q8": 2})
    assert found.notes == ["the ability vision is not served"]
    assert (found.family.stop, found.family.stop_token_ids) == (["</s>"], [2])


def test_xinferences_stops_are_none_of_a_model_that_writes_no_text() -> None:
    custom = {"model_name": "e", "model_uri": "/models/e", "stop": ["</s>"], "stop_token_ids": [2]}
    family = read_form(json.dumps(custom), "embedding").family
    assert (family.stop, family.stop_token_ids) == ([], [])


def test_xinferences_embedding_model_has_no_specs() -> None:
    custom = {"model_name": "e", "dimensions": 768, "max_tokens": 512, "language": ["en"], "model_uri": "/models/e"}
    family = read_form(json.dumps(custom), "embedding").family
    assert (family.model_type, family.context_length, family.specs[0].sources) == ("embedding", 512, {"local": "/models/e"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_nme": 1, "model_name": "x"}, "did you mean 'model_name'?"),
        ({"model_name": "../x"}, "model_name: this has not the right form"),
        ({"model_type": "audio"}, "model_type"),
        ({"model_specs": [{"model_format": "torch"}]}, "model_specs[0].model_format"),
        ({"model_specs": [{"model_format": "pytorch", "model_url": "x"}]}, "did you mean 'model_uri'?"),
        ({"model_specs": [{"model_format": "pytorch", "model_id": "nothing"}]}, "no hub id"),
        ({"model_specs": []}, "either specs"),
    ],
)
def test_faults_in_xinferences_form(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_form(json.dumps({**CUSTOM, **changes}), "LLM", "custom.json")
    assert words in caught.value.message
    assert caught.value.message.startswith("custom.json, line 1")
