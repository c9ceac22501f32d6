"""A model's own stops: on every kind of engine beside the request's, without text, and not where `ignore_eos` asks for more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from xi_core.engine.base import ApiRequest, ApiSink
from xi_core.errors import ArtifactError
from xi_core.serving.model_stops import by_files, by_tokenizer
from xi_core.testing.fakes import TEXT, ByteTokenizer, CountingEngine, ScriptedEngine
from xi_core.testing.harness import Answer, Harness, plan_for
from xi_core.wire.plan import Artifact, LaunchPlan

TINY = Path(__file__).parents[3] / "plugins" / "xi_plugins" / "families" / "xi_tiny" / "hf"
BELL = 7


class SpecialTokenizer(ByteTokenizer):
    """The byte 7 is a special token, `<bell>`."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.replace("<bell>", chr(BELL)))

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == BELL else super().token_bytes(token)


class Belling(CountingEngine):
    """Counts with a special token after each word."""

    tokenizer = SpecialTokenizer()

    def add(self, id: int, prompt: list[int], sampling: Any) -> None:
        super().add(id, prompt, sampling)
        self._running[id].text = TEXT.replace(" ", f" {chr(BELL)}").encode()


class Recording(ScriptedEngine):
    """Keeps the bodies that it gets."""

    bodies: list[dict[str, Any]]

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        Recording.bodies.append(request.body)
        super().submit(request, sink)


def plan(engine: type, *stop: str, ids: tuple[int, ...] = (), path: str = "") -> LaunchPlan:
    found = plan_for(f"{engine.__module__}:{engine.__qualname__}", path, "fake")
    found.stop, found.stop_token_ids = list(stop), list(ids)
    return found


def ask(engine: type, *stop: str, ids: tuple[int, ...] = (), stream: bool = False, **fields: Any) -> Answer:
    with Harness(plan(engine, *stop, ids=ids)) as harness:
        return harness.chat("Hi", temperature=0, stream=stream, **fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("engine", [CountingEngine, ScriptedEngine])
def test_a_models_string_ends_the_answer(engine: type, stream: bool) -> None:
    answer = ask(engine, " three", stream=stream)
    assert (answer.text, answer.finishes) == ("one two", ["stop"])
    both = ask(engine, " three", stop=["ne"], stream=stream)
    assert (both.text, both.finishes) == ("o", ["stop"])


@pytest.mark.parametrize("engine", [CountingEngine, ScriptedEngine])
def test_ignore_eos_ignores_them_but_not_the_requests(engine: type) -> None:
    assert ask(engine, " three", ignore_eos=True, max_tokens=20).text == TEXT[:20]
    assert ask(engine, " three", ignore_eos=True, stop=[" four"], max_tokens=40).text == "one two three"


def test_a_special_token_ends_the_answer_by_its_name_or_id_without_text() -> None:
    for answer in (ask(Belling, "<bell>", logprobs=True), ask(Belling, ids=(BELL,), logprobs=True)):
        assert (answer.text, answer.finishes) == ("one ", ["stop"])
        assert answer.body["usage"]["completion_tokens"] == len("one ") + 1, "as an end token of the engine's own counts"
        assert len(answer.body["choices"][0]["logprobs"]["content"]) == len("one ")
    assert ask(Belling).text == TEXT


def test_a_token_with_text_can_be_named_by_its_id_and_loses_it() -> None:
    answer = ask(CountingEngine, ids=(ord("t"),))
    assert (answer.text, answer.finishes) == ("one ", ["stop"])
    last = ask(CountingEngine, ids=(ord("t"),), max_tokens=5)
    assert (last.text, last.finishes) == ("one ", ["stop"]), "it comes with the last token that is allowed"


def test_every_choice_ends_and_frees_its_slot() -> None:
    with Harness(plan(CountingEngine, " three", ids=(ord("w"),))) as harness:
        for _ in range(3):
            assert harness.chat("Hi", temperature=0, n=4).texts == ["one t"] * 4
        assert harness.wait_idle().running == 0


def test_api_engines_get_both_and_nothing_new_where_the_family_names_none() -> None:
    Recording.bodies = []
    ask(Recording, "END", ids=(5, 3), stop=["x"])
    ask(Recording, "END", ids=(5, 3), ignore_eos=True, max_tokens=1)
    ask(Recording, stop=["x"])
    assert [(body["stop"], body.get("stop_token_ids")) for body in Recording.bodies if body.get("max_tokens") != 1] == [
        (["x", "END"], [3, 5]),
        (["x"], None),
    ]
    assert [(body["stop"], "stop_token_ids" in body) for body in Recording.bodies if body["ignore_eos"]] == [([], False)]


def test_names_of_special_tokens_are_found_in_a_directorys_files(tmp_path: Path) -> None:
    wanted = plan(ScriptedEngine, "<|im_end|>", "<tool_call>", "plain", ids=(3,))
    wanted.artifact = Artifact(format="pytorch", path=str(TINY))
    found = by_files(wanted)
    assert (found.strings, found.ids) == (("<tool_call>", "plain"), {3, 1021}), "<tool_call> is no special token: it has text"
    wanted.artifact = Artifact(format="ggufv2", path=str(tmp_path / "x.gguf"))
    assert by_files(wanted).strings == ("<|im_end|>", "<tool_call>", "plain")
    assert by_tokenizer(wanted, ByteTokenizer()).strings == by_files(wanted).strings


def test_a_damaged_tokenizer_is_said_where_a_family_names_stops(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"id": 1, "special": true}]}')
    wanted = plan(ScriptedEngine, "<end>")
    wanted.artifact = Artifact(format="pytorch", path=str(tmp_path))
    with pytest.raises(ArtifactError, match="content"):
        by_files(wanted)
    wanted.stop = []
    assert by_files(wanted).strings == ()


def test_an_older_plan_without_stops_is_read() -> None:
    raw = msgspec.to_builtins(plan(CountingEngine))
    del raw["stop"], raw["stop_token_ids"]
    assert (msgspec.convert(raw, LaunchPlan).stop, msgspec.convert(raw, LaunchPlan).stop_token_ids) == ([], [])
