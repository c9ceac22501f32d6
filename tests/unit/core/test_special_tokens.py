"""Special tokens by a model's files."""

import json
from pathlib import Path

import pytest

from xi_core.errors import ArtifactError
from xi_core.models.special_tokens import special_tokens


def test_both_files_tell_of_them(tmp_path: Path) -> None:
    assert special_tokens(str(tmp_path)) == {}
    added = [{"id": 1, "content": "<end>", "special": True}, {"id": 5, "content": "<word>"}, {"id": 6, "content": "<a"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {}}))
    decoder = {"2": {"content": "<begin>", "special": True}, "3": {"content": "<call>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert special_tokens(str(tmp_path)) == {"<end>": 1, "<begin>": 2}
    assert special_tokens(str(tmp_path), bracketed=True) == {"<end>": 1, "<begin>": 2, "<call>": 3, "<word>": 5}


def test_file_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        special_tokens(str(tmp_path))


def test_special_tokens_stand_in_either_file(tmp_path: Path) -> None:
    added = [{"id": 1, "content": "<a>", "special": True}, {"id": 2, "content": "<b>", "special": False}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    assert special_tokens(str(tmp_path)) == {"<a>": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"9": {"content": "<c>", "special": True}}}))
    assert special_tokens(str(tmp_path)) == {"<a>": 1, "<c>": 9}
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": null}')
    assert special_tokens(str(tmp_path)) == {"<c>": 9}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", '{"added_tokens": [{"id": 1, "special": true}]}'),
        ("tokenizer.json", '{"added_tokens": [{"content": "<a>", "special": true}]}'),
        ("tokenizer.json", '{"added_tokens": ["<a>"]}'),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {"special": true}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": "<a>"}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"one": {"content": "<a>"}}}'),
    ],
)
def test_added_tokens_of_another_shape_are_an_error_of_the_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match=name):
        special_tokens(str(tmp_path))


@pytest.mark.parametrize(
    "data", [b'{"added_tokens": [{"id": 1, "content": "\xff"}]}', b'{"model": ' + b"[" * 100_000], ids=["not UTF-8", "too deep"]
)
def test_bytes_that_are_no_json_are_an_error_of_the_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        special_tokens(str(tmp_path))
