"""Answers of the engine `llama.cpp` that its library can't parse, with a stand-in for the library's server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from xi_core.engine.base import ApiRequest, ApiSink
from xi_plugins.engines.llama_cpp.engine import LlamaCppEngine
from xi_plugins.engines.llama_cpp.threads import CallThreads
from xi_plugins.engines.llama_cpp.translate import CHAT, Limits, to_llama

UNPARSED = "The model produced output that does not match the expected peg-native format"
TOOL = {"type": "function", "function": {"name": "get_time"}}
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 1.0, "stop": ["END"], "tools": [TOOL]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
TIMINGS = {"cache_n": 2, "prompt_n": 5, "predicted_n": 4}


def said(finish: str | None = None, **delta: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "timings": TIMINGS})


def called(arguments: str, index: int = 0, name: str | None = None) -> str:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return said(tool_calls=[{"index": index, "function": function}])


def error(message: str = UNPARSED) -> str:
    return json.dumps({"error": {"code": 500, "message": message, "type": "server_error"}}, separators=(",", ":"))


ROLE = said(role="assistant", content=None)
USED = json.dumps({"choices": [], "usage": USAGE})


class Sink(ApiSink):
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.end: Any = None
        self.over = threading.Event()

    def event(self, id: int, data: bytes | str) -> None:
        self.events.append(json.loads(data))

    def done(self, id: int) -> None:
        self.end = "done"
        self.over.set()

    def failed(self, id: int, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        self.end = (status, message)
        self.over.set()

    def shown(self, name: str) -> str:
        return "".join(choice["delta"].get(name) or "" for event in self.events for choice in event["choices"])

    def finish(self) -> list[str]:
        return [choice["finish_reason"] for event in self.events for choice in event["choices"] if choice.get("finish_reason")]

    def usage(self) -> list[dict[str, int]]:
        return [event["usage"] for event in self.events if "usage" in event]


class Server:
    """Says, call by call, what the test wrote."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.bodies: list[dict[str, Any]] = []
        self.left = 0
        """What it would have said more, to one that had ended the request."""
        self.before: Callable[[int], object] = id

    def handle_chat_completions(self, body: str, take: Callable[[str], bool]) -> None:
        self.bodies.append(json.loads(body))
        self.before(len(self.bodies))
        answer = self.answers.pop(0)
        for place, data in enumerate(answer, 1):
            if take(data):
                self.left = len(answer) - place
                return


def served(server: Server, engine: LlamaCppEngine | None = None, **fields: Any) -> Sink:
    engine, sink = engine or LlamaCppEngine(), Sink()
    engine._server, engine._limits = server, Limits(context_length=100, vocabulary_size=1000)
    engine._threads = CallThreads(1, "test")
    engine.submit(ApiRequest(id=1, route=CHAT, body={**ASKED, **fields}), sink)
    assert sink.over.wait(10)
    engine.close(1)
    return sink


def again(*texts: str, finish: str = "length") -> list[str]:
    return [ROLE, *(said(content=text) for text in texts), said(finish), USED]


def test_text_that_is_not_parsed_is_content() -> None:
    server = Server([ROLE, error()], again("<tool_call>", "\ufffd12"))
    sink = served(server)
    assert sink.end == "done"
    assert sink.shown("content") == "<tool_call>\ufffd12"
    assert (sink.finish(), sink.usage()) == (["length"], [USAGE])
    first, second = server.bodies
    assert (second["tool_choice"], second["reasoning_format"]) == ("none", "none"), "nothing is left to parse"
    assert {**second, "tool_choice": "auto"} == {**first, "reasoning_format": "none"}, "but it's the same request"
    assert first["seed"] == second["seed"], "so that the model writes the same"


def test_seeds_stay_the_clients_own() -> None:
    server = Server(again("a"), again("a"), again("a"))
    for fields in ({"seed": 5}, {}, {}):
        served(server, **fields)
    seeds = [body["seed"] for body in server.bodies]
    assert seeds[0] == 5
    assert seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("shown", "text", "reasoning", "content"),
    [
        ([said(content="I need ")], "I need <x", "", "I need <x"),
        ([said(content="I "), said(content="need")], "\nI need <x", "", "I need <x"),
        ([said(reasoning_content="So so")], "<think>\nSo so</think></think>Yes", "So so", "</think></think>Yes"),
        ([said(reasoning_content="Yes"), said(content="Yes")], "<think>Yes</think>Yes.", "Yes", "Yes."),
    ],
)
def test_what_was_shown_is_not_shown_again(shown: list[str], text: str, reasoning: str, content: str) -> None:
    sink = served(Server([ROLE, *shown, error()], again(text, finish="stop")))
    assert sink.end == "done"
    assert (sink.shown("reasoning_content"), sink.shown("content"), sink.finish()) == (reasoning, content, ["stop"])


def test_an_answer_that_can_not_go_on_is_told_to_have_been_cut() -> None:
    sink = served(Server([ROLE, said(content="I need "), error()], again("quite another text", finish="stop")))
    assert (sink.end, sink.shown("content"), sink.finish(), sink.usage()) == ("done", "I need ", ["length"], [USAGE])


def test_calls_of_which_nothing_was_counted_end_all_the_same() -> None:
    untimed = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]})
    sink = served(Server([ROLE.replace("timings", "x"), untimed, error()]))
    assert (sink.end, sink.finish()) == ("done", ["length"])


@pytest.mark.parametrize(
    ("pieces", "finish"),
    [
        ([called("{", name="f"), called('"city": "')], "length"),
        ([called("{", name="f"), called('"city": "x"}')], "tool_calls"),
        ([called("{}", name="f"), called("{", 1, name="f")], "length"),
        ([called("{", name="f"), called("}"), called('{"a": 1}', 1, name="f")], "tool_calls"),
    ],
)
@pytest.mark.parametrize("message", [UNPARSED, "Invalid diff: tool call mismatch!", "[json.exception.type_error.316] invalid UTF-8 byte"])
def test_calls_that_were_read_stay(pieces: list[str], finish: str, message: str) -> None:
    server = Server([ROLE, *pieces, error(message)])
    sink = served(server)
    assert sink.end == "done"
    assert len([event for event in sink.events for choice in event["choices"] if "tool_calls" in choice["delta"]]) == len(pieces)
    assert sink.finish() == [finish], "a call that isn't complete is told as one that was cut"
    assert sink.usage() == [{"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}]
    assert len(server.bodies) == 1


def test_tools_tell_the_usage_at_any_moment() -> None:
    limits = Limits(context_length=100, vocabulary_size=1000)
    asked = {name: value for name, value in ASKED.items() if name != "tools"}
    assert to_llama(ApiRequest(id=1, route=CHAT, body=ASKED), limits)["timings_per_token"] is True
    assert to_llama(ApiRequest(id=1, route=CHAT, body=asked), limits)["timings_per_token"] is False
    assert to_llama(ApiRequest(id=1, route=CHAT, body={**ASKED, "tool_choice": "none"}), limits)["timings_per_token"] is False


def test_log_probabilities_end_with_what_was_parsed() -> None:
    entry = {"content": [{"id": 1, "token": "So ", "bytes": [1], "logprob": -1.0, "top_logprobs": []}]}
    event = json.loads(said(content="So "))
    event["choices"][0]["logprobs"] = entry
    server = Server([ROLE, json.dumps(event), error()], again("So so", finish="stop"))
    sink = served(server, tools=None, logprobs=True, top_logprobs=0)
    assert (sink.end, sink.shown("content")) == ("done", "So so")
    assert server.bodies[1]["stop"] == ["END"], "llama.cpp matches them there"
    assert not server.bodies[1].keys() & {"logprobs", "top_logprobs", "tool_choice"}


def test_an_abort_ends_the_second_answer() -> None:
    engine, server = LlamaCppEngine(), Server([ROLE, said(content="I "), error()], again("I need ", "it"))
    server.before = lambda calls: engine.abort(1) if calls == 2 else None
    sink = served(server, engine)
    assert (sink.end, sink.shown("content"), sink.finish(), server.left) == ("done", "I ", [], 4)
    assert (engine.stats().running, engine.stats().tokens) == (0, 2)


def test_text_whose_first_token_is_not_parsed() -> None:
    progress = json.dumps({"choices": [], "prompt_progress": {"total": 7}}, separators=(",", ":"))
    sink = served(Server([progress, error()], [progress, *again("<x")]), tools=None)
    assert (sink.end, sink.shown("content"), sink.usage()) == ("done", "<x", [USAGE])


def test_other_failures_stay_failures() -> None:
    for first in ([ROLE, error("Compute error.")], [ROLE, called("{", name="f"), error("Context size has been exceeded.")]):
        server = Server(first)
        assert served(server).end[0] == 500
        assert len(server.bodies) == 1
    assert served(Server([error("[json.exception.parse_error.101] in the request")])).end[0] == 500, "nothing was written yet"
    assert served(Server([ROLE, error()], [ROLE, error("Compute error.")])).end == (500, "llama.cpp failed: Compute error.")
    assert served(Server([ROLE, error()], [ROLE, error()])).end[0] == 500, "asked again once only"
