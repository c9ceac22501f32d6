"""A registered family's stops, end to end on two engines: a string that its text holds, and a special token that its files don't call an end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xi_core.testing.server import RunningServer

TINY = Path(__file__).parents[2] / "plugins" / "xi_plugins" / "families" / "xi_tiny"
SENTENCE = "xi launches and serves language models."
"""How the answer to `QUESTION` begins."""
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is xi?"}]


def endless(folder: Path) -> Path:
    """xi-tiny as a directory whose files don't tell that `<|im_end|>` ends an answer."""
    shutil.copytree(TINY / "hf", folder)
    for name, change in (
        ("config.json", {"eos_token_id": 1019}),
        ("generation_config.json", {"eos_token_id": 1019}),
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
    ):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless(tmp_path_factory.mktemp("endless") / "hf")


@pytest.fixture
def launched(server: RunningServer, directory: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The uid of a family with the stops that the test's parameter names, on the engine that it names."""
    engine, stop = request.param
    family = {
        "name": "stopping",
        "abilities": ["generate", "chat"],
        "stop": stop,
        "specs": [
            {"format": "pytorch", "sources": {"local": str(directory)}},
            {"format": "ggufv2", "sources": {"local": str(TINY / "xi-tiny-f16.gguf")}},
        ],
    }
    file = tmp_path / "family.json"
    file.write_text(json.dumps(family))
    for command in (("register", "-f", str(file)), ("launch", "stopping", "--model-engine", engine)):
        done = server.xi(*command)
        assert done.returncode == 0, done.stderr
    yield "stopping"
    server.xi("terminate", "stopping")
    server.xi("unregister", "-n", "stopping")


def chat(server: RunningServer, uid: str, **fields: Any) -> tuple[str, str]:
    choice = server.client.chat(uid, QUESTION, temperature=0, **fields).choices[0]  # type: ignore[union-attr]
    return choice.message.content, choice.finish_reason


@pytest.mark.parametrize("launched", [("transformers", ["."]), ("llama.cpp", ["."])], indirect=True, ids=["transformers", "llama.cpp"])
def test_a_string_of_the_family_ends_answers(server: RunningServer, launched: str) -> None:
    assert chat(server, launched) == (SENTENCE.removesuffix("."), "stop")
    assert chat(server, launched, stop=[" serves"]) == ("xi launches and", "stop")
    text, finish = chat(server, launched, ignore_eos=True, max_tokens=12)
    assert (text[: len(SENTENCE)], finish) == (SENTENCE, "length")
    deltas = list(server.client.chat(launched, QUESTION, temperature=0, stream=True))
    assert ("".join(delta.text for delta in deltas), deltas[-1].finish_reason) == (SENTENCE.removesuffix("."), "stop")


@pytest.mark.parametrize("launched", [("transformers", ["<|im_end|>"])], indirect=True, ids=["special"])
def test_a_special_token_of_the_family_ends_answers_and_is_not_shown(server: RunningServer, launched: str) -> None:
    text, finish = chat(server, launched, max_tokens=60)
    assert finish == "stop"
    assert text == chat(server, "xi-tiny-torch")[0]


@pytest.mark.parametrize("launched", [("transformers", ["none of it"])], indirect=True, ids=["other"])
def test_without_it_the_same_files_go_on(server: RunningServer, launched: str) -> None:
    assert chat(server, launched, max_tokens=60)[1] == "length"


@pytest.mark.parametrize("launched", [("llama.cpp", ["<|im_start|>"])], indirect=True, ids=["completion"])
def test_llama_cpp_ends_raw_completions_at_a_special_token(server: RunningServer, launched: str) -> None:
    body: dict[str, Any] = {"temperature": 0, "max_tokens": 5, "logit_bias": {"1020": 100}}
    choice: Any = server.client.complete(launched, "Hello", **body).choices[0]
    assert (choice.text, choice.finish_reason) == ("", "stop")
    choice = server.client.complete(launched, "Hello", ignore_eos=True, **body).choices[0]
    assert choice.finish_reason == "length"
