"""LoRA modules in the body of `POST /v1/models`, in each form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from xi_core.errors import InvalidRequest
from xi_server.routes.launching import launch_spec

WANTED = {"sql": "/adapters/sql", "law.v1": "law"}


def modules(**fields: Any) -> dict[str, str]:
    return launch_spec(json.dumps({"model_name": "xi-tiny", **fields}).encode()).lora_modules


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_modules": WANTED},
        {"lora_modules": [{"name": name, "path": path} for name, path in WANTED.items()]},
        {"lora_modules": [{"name": name, "path": path, "base_model_name": "xi-tiny"} for name, path in WANTED.items()]},
        {"peft_model_config": {"lora_list": [{"lora_name": name, "local_path": path} for name, path in WANTED.items()]}},
        {
            "peft_model_config": {
                "lora_list": [{"lora_name": n, "local_path": p} for n, p in WANTED.items()],
                "image_lora_load_kwargs": None,
            }
        },
    ],
)
def test_every_form(fields: dict[str, Any]) -> None:
    assert modules(**fields) == WANTED


@pytest.mark.parametrize(
    "fields", [{}, {"lora_modules": None}, {"lora_modules": {}}, {"peft_model_config": None}, {"peft_model_config": {}}]
)
def test_none(fields: dict[str, Any]) -> None:
    assert modules(**fields) == {}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"lora_modules": "sql=/x"}, "lora_modules", "expected an object of names and directories"),
        ({"lora_modules": {"a b": "/x"}}, "lora_modules", "'a b' can't be a name: it has 1 to 128 letters"),
        ({"lora_modules": {"": "/x"}}, "lora_modules", "can't be a name"),
        ({"lora_modules": {"..": "/x"}}, "lora_modules", "can't be a name"),
        ({"lora_modules": {"sql": ""}}, "lora_modules", "the directory of 'sql' should be a path"),
        ({"lora_modules": {"sql": 7}}, "lora_modules", "the directory of 'sql' should be a path"),
        ({"lora_modules": {"sql": "x" * 5000}}, "lora_modules", "the directory of 'sql' should be a path"),
        ({"lora_modules": [{"name": "a", "path": "/x"}, {"name": "a", "path": "/y"}]}, "lora_modules", "'a' is given twice"),
        ({"lora_modules": ["a=/x"]}, "lora_modules[0]", "expected an object such as"),
        ({"lora_modules": [{"name": "a"}]}, "lora_modules[0]", "expected an object such as"),
        ({"lora_modules": [{"name": "a", "path": "/x", "rank": 4}]}, "lora_modules[0]", "expected an object such as"),
        ({"lora_modules": [{"name": ["a"], "path": "/x"}]}, "lora_modules[0]", "expected an object such as"),
        ({"peft_model_config": []}, "peft_model_config", "expected an object with lora_list"),
        ({"peft_model_config": {"lora_list": [{}]}}, "peft_model_config.lora_list[0]", "expected an object such as"),
        (
            {"peft_model_config": {"image_lora_load_kwargs": {"a": 1}}},
            "peft_model_config.image_lora_load_kwargs",
            "image_lora_load_kwargs is not supported",
        ),
        ({"lora_modules": WANTED, "peft_model_config": {"lora_list": []}}, "peft_model_config", "given twice"),
    ],
)
def test_what_is_none_is_refused(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        modules(**fields)
    assert words in caught.value.message
    assert caught.value.param == param
