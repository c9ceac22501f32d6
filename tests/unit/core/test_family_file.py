"""Family files with something wrong: the message names the line and the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from xi_core.errors import InvalidRequest
from xi_core.models.family_file import expanded, read_family
from xi_core.models.json_place import line_of


def text(**changes: Any) -> str:
    spec = {"format": "pytorch", "sizes": ["7"], "sources": {"huggingface": "me/mine-{size}b"}}
    spec.update({name.removeprefix("spec_"): value for name, value in changes.items() if name.startswith("spec_")})
    family = {"name": "mine", "specs": [spec]}
    family.update({name: value for name, value in changes.items() if not name.startswith("spec_")})
    return json.dumps({name: value for name, value in family.items() if value is not None}, indent=1)


def test_what_is_right() -> None:
    given = text(spec_quantizations=["a", "b"], spec_sizes=["7", "0.5"], spec_file="m-{size}-{quantization}.gguf", abilities=["chat"])
    specs = expanded(read_family(given)).specs
    assert [(s.size_in_billions, s.quantization, s.source.files[0]) for s in specs] == [
        ("7", "a", "m-7-a.gguf"), ("7", "b", "m-7-b.gguf"), ("0.5", "a", "m-0.5-a.gguf"), ("0.5", "b", "m-0.5-b.gguf"),
    ]  # fmt: skip
    assert specs[2].source.id == "me/mine-0.5b"
    assert expanded(read_family(text())).specs[0].abilities == ["generate"]


@pytest.mark.parametrize(
    ("given", "line", "field", "words"),
    [
        (text(spec_quantisations=["a"]), 12, "specs[0].quantisations", "did you mean 'quantizations'?"),
        (text(nonsense=1), 14, "nonsense", "fields: name, description"),
        (text(spec_format="torch"), 5, "specs[0].format", "one of pytorch, ggufv2"),
        (text(spec_sizes=["7B"]), 7, "specs[0].sizes[0]", "such as 7 or 0.5"),
        (text(spec_sizes=7), 6, "specs[0].sizes", "Expected `array`"),
        (text(spec_sources={"huggingface": "mine"}), 9, "specs[0].sources", "no hub id"),
        (text(spec_sources={"huggingface": "me/../mine"}), 9, "specs[0].sources", "no hub id"),
        (text(spec_sources={"local": "models/mine"}), 9, "specs[0].sources", "no absolute path"),
        (text(spec_sources={"huggingface": "me/{sise}"}), 9, "specs[0].sources", "holds {sise}"),
        (text(spec_sizes=[]), 7, "specs[0].sources", "there are no sizes"),
        (text(spec_revisions={"modelscope": "v1"}), 12, "specs[0].revisions", "none of the sources"),
        (text(spec_parts={"q9": 2}), 12, "specs[0].parts", "none of the quantizations"),
        (text(spec_split_file="x-{part}.gguf"), 4, "specs[0].parts", "go together"),
        (text(spec_split_file="x.gguf", spec_parts={"none": 2}), 12, "specs[0].split_file", "no {part}"),
        (text(spec_file="../x.gguf"), 12, "specs[0].file", "leaves the repository"),
        (text(spec_file="/x.gguf"), 12, "specs[0].file", "leaves the repository"),
        (text(spec_abilities=["embed"]), 12, "specs[0].abilities", "no ability of a model of type LLM"),
        (text(spec_abilities=["sing"]), 13, "specs[0].abilities[0]", "one of generate, chat"),
        (text(name="../x"), 2, "name", "letters"),
        (text(name="a/b"), 2, "name", "letters"),
        (text(name=".."), 2, "name", "letters"),
        (text(name=None), 1, "name", "missing required field `name`"),
        (text(model_type="audio"), 14, "model_type", "one of LLM, embedding, rerank"),
        (text(path="/x"), 3, "specs", "either specs"),
        (text(specs=None), 1, "specs", "either specs"),
        (text(specs=None, path="x"), 3, "path", "no absolute path"),
        (text(stop=[""]), 15, "stop[0]", "length >= 1"),
        (text(stop_token_ids=[-1]), 15, "stop_token_ids[0]", ">= 0"),
        (text(model_type="embedding", stop=["x"]), 15, "stop", "no text that could end"),
        (text(model_type="rerank", stop_token_ids=[1]), 15, "stop_token_ids", "no text that could end"),
        (text(figures={"9": {"layers": 1}}), 14, "figures", "missing required field"),
    ],
)  # fmt: skip
def test_faults_name_line_and_field(given: str, line: int, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_family(given, "mine.json")
    message = caught.value.message
    assert message.startswith(f"mine.json, line {line}: "), message
    assert field in message
    assert words in message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ('{"name": "x",\n  oops}', "line 2, column 3"),
        ('{"name": "x"', "line 1, column 13"),
        ("", "line 1, column 1"),
        (b'{"name": "\xff"}', "not UTF-8"),
        ('{"description": ' + "[" * 100_000, "Expected `str`"),
        ("[]", "Expected `object`"),
    ],
)
def test_what_is_no_json(given: str | bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_family(given)
    assert words in caught.value.message


def test_lines_of_fields() -> None:
    given = '{"a": 1,\n "b": [\n  {"c": "}"},\n  {"c":\n 2}\n ],\n "d": {"x": 1,\n "x": 2}}'
    lines = {path: line_of(given, path) for path in ("", "a", "b", "b[0].c", "b[1]", "b[1].c", "d.x", "b[7].c", "zz")}
    assert lines == {"": 1, "a": 1, "b": 2, "b[0].c": 3, "b[1]": 4, "b[1].c": 5, "d.x": 8, "b[7].c": 2, "zz": 1}
