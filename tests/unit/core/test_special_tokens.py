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
