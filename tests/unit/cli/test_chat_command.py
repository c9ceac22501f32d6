"""`xi chat` and `xi generate`: one-shot, on a pipe, on a terminal, Ctrl-C."""

import json
import os
import signal
import sys

import pytest

CHAT = ("POST", "/v1/chat/completions")
COMPLETE = ("POST", "/v1/completions")
ANSWER = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "xi-tiny",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}  # fmt: skip
COMPLETION = {**ANSWER, "object": "text_completion", "choices": [{"index": 0, "text": " Paris", "finish_reason": "stop"}]}


@pytest.fixture
def talking(server, words):
    server.script[CHAT] = words.said("Hel", "lo!")
    server.script["GET", "/v1/models"] = {"object": "list", "data": [{"id": "xi-tiny", "created": 1}]}
    server.script["GET", "/v1/models/xi-tiny"] = words.status("READY")
    return server


def test_one_question(xi, talking):
    for args in (["xi-tiny"], ["-n", "xi-tiny"], ["--model", "xi-tiny"], []):
        result = xi("chat", *args, "-p", "Hi")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello!\n", "")
    assert talking.calls(*CHAT)[0].body == {"model": "xi-tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def test_sampling_and_system(xi, talking):
    xi(
        "chat", "xi-tiny", "--prompt", "Hi", "--system", "Be brief.", "--max-tokens", "5", "--temperature", "0", "--top-p", "0.9", "--top-k", "4",
        "--min-p", "0.1", "--seed", "7", "--stop", "a", "--stop", "b", "--presence-penalty", "1", "--frequency-penalty", "-1", "--repetition-penalty", "1.1",
    )  # fmt: skip
    body = talking.calls(*CHAT)[0].body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {k: v for k, v in body.items() if k not in ("model", "messages", "stream")} == {
        "max_tokens": 5, "temperature": 0.0, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": 7, "stop": ["a", "b"],
        "presence_penalty": 1.0, "frequency_penalty": -1.0, "repetition_penalty": 1.1,
    }  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("name", ["temperature", "top-p", "min-p", "presence-penalty", "frequency-penalty", "repetition-penalty"])
def test_a_number_that_json_does_not_have_is_refused(xi, talking, name, value):
    for command in ("chat", "generate"):
        result = xi(command, "xi-tiny", "-p", "Hi", f"--{name}={value}")
        assert result.exit_code == 2
        assert f"Invalid value for '--{name}': '{float(value)}' is not a finite number" in result.stderr
    assert talking.seen == []


def test_each_line_of_a_pipe_is_a_turn(xi, talking):
    result = xi("chat", "xi-tiny", stdin="Hi\n\nAgain\n")
    assert result.stdout == "Hello!\nHello!\n"
    assert [message["content"] for message in talking.calls(*CHAT)[1].body["messages"]] == ["Hi", "Hello!", "Again"]


def test_json(xi, talking):
    talking.script[CHAT] = ANSWER
    assert json.loads(xi("chat", "xi-tiny", "-p", "Hi", "--json").stdout)["usage"]["total_tokens"] == 3
    talking.script[COMPLETE] = COMPLETION
    assert json.loads(xi("generate", "xi-tiny", "-p", "Hi", "--json").stdout)["choices"][0]["text"] == " Paris"


def test_reasoning_and_tool_calls_are_talk(xi, talking, words):
    def delta(**fields):
        return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}

    talking.script[CHAT] = words.events(
        delta(reasoning_content="Hmm."),
        delta(content="Yes"),
        delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"a"'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
    )
    result = xi("chat", "xi-tiny", "-p", "Hi")
    assert result.stdout == "Yes\n"
    assert "Hmm." in result.stderr
    assert '[calls add({"a": 1})]' in result.stderr


def test_which_model(xi, talking):
    talking.script["GET", "/v1/models"] = {"object": "list", "data": []}
    result = xi("chat", "-p", "Hi")
    assert (result.exit_code, result.stderr) == (1, "Error: no model is launched: launch one with `xi launch xi-tiny`\n")
    talking.script["GET", "/v1/models"] = {"object": "list", "data": [{"id": "a", "created": 1}, {"id": "b", "created": 1}]}
    result = xi("generate", "-p", "Hi")
    assert result.exit_code == 2
    assert "name one of the models that are launched: a, b" in result.stderr


def test_models_that_have_ended_are_not_meant(xi, talking):
    ended = [{"id": state.lower(), "created": 1, "state": state} for state in ("FAILED", "CANCELLED", "STOPPING")]
    talking.script["GET", "/v1/models"] = {"object": "list", "data": [*ended, {"id": "xi-tiny", "created": 1}]}
    assert xi("chat", "-p", "Hi").exit_code == 0
    assert talking.calls(*CHAT)[-1].body["model"] == "xi-tiny"


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_errors_before_and_in_the_stream(xi, talking, words, command):
    route = CHAT if command == "chat" else COMPLETE
    talking.script[route] = (400, words.error("temperature must be at most 2", "invalid_request", "temperature"))
    result = xi(command, "xi-tiny", "-p", "Hi", "--temperature", "9")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: temperature must be at most 2\n")
    talking.script[route] = words.events({"choices": [{"text": "Hel", "delta": {}}]}, words.error("the replica died", "replica_lost"))
    result = xi(command, "xi-tiny", "-p", "Hi")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "Hel", "Error: the replica died\n")


def test_generate(xi, talking, words):
    talking.script[COMPLETE] = words.events({"choices": [{"index": 0, "text": " Par"}]}, {"choices": [{"index": 0, "text": "is"}]})
    assert xi("generate", "xi-tiny", "--prompt", "The capital is", "--max-tokens", "8").stdout == " Paris\n"
    assert talking.calls(*COMPLETE)[0].body == {"model": "xi-tiny", "prompt": "The capital is", "stream": True, "max_tokens": 8}
    assert xi("generate", "xi-tiny", stdin="from stdin").stdout == " Paris\n"
    assert talking.calls(*COMPLETE)[1].body["prompt"] == "from stdin"
    assert xi("generate", "xi-tiny", stdin="").exit_code == 2


def test_ctrl_c_stops_the_server_too(spawn, talking, words):
    talking.hold = True
    process = spawn("chat", "xi-tiny", "-p", "Hi")
    assert process.stdout.read(6) == "Hello!"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert talking.left.wait(20)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_conversation_on_a_terminal(spawn, talking, words):
    import pty

    ours, theirs = pty.openpty()
    try:
        process = spawn("chat", "xi-tiny", stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        screen = Screen(ours)
        screen.type("one\n", after="> ")
        screen.wait("Hello!")
        talking.hold = True
        screen.type("two\n", after="> ")
        screen.wait("Hello!")
        process.send_signal(signal.SIGINT)
        screen.wait("(stopped)")
        assert talking.left.wait(20)
        talking.hold = False
        screen.type("three\n", after="> ")
        screen.wait("Hello!")
        screen.type("/clear\n", after="> ")
        screen.wait("forgotten")
        screen.type("/what\n", after="> ")
        screen.wait("/exit leaves")
        talking.script[CHAT] = (503, words.error("nothing is ready", "unavailable"))
        screen.type("four\n", after="> ")
        screen.wait("Error: nothing is ready")
        screen.type("caf\udcff\n", after="> ")
        screen.wait("Error: the text is not UTF-8")
        screen.type("/exit\n", after="> ")
        assert process.wait(timeout=20) == 0
    finally:
        os.close(ours)
    conversations = [[message["content"] for message in call.body["messages"]] for call in talking.calls(*CHAT)]
    assert conversations[2] == ["one", "Hello!", "two", "Hello!", "three"]
    assert conversations[3] == ["four"]


class Screen:
    """Our end of a pseudo-terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = ""

    def wait(self, text: str) -> None:
        """Read until the text shows; what came before it is done with. The test's time limit bounds it."""
        while text not in self._seen:
            self._seen += os.read(self._descriptor, 4096).decode(errors="replace")
        self._seen = self._seen.partition(text)[2]

    def type(self, text: str, after: str) -> None:
        self.wait(after)
        os.write(self._descriptor, text.encode(errors="surrogateescape"))
