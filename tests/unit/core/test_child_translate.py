"""Between xi's and OpenAI servers' forms."""

import json

from xi_core.engine.base import ApiRequest
from xi_core.engine.child_translate import to_server, to_xi


def seen(event):
    return json.loads(to_xi(json.dumps(event, separators=(",", ":")).encode()))


def test_developer_is_system():
    body = {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}], "seed": 1}
    assert [m["role"] for m in to_server(ApiRequest(id=1, route="/v1/chat/completions", body=body))["messages"]] == ["system", "user"]
    assert body["messages"][0]["role"] == "developer", "the request is left as it was"
    assert to_server(ApiRequest(id=1, route="/v1/completions", body={"prompt": "x"})) == {"prompt": "x"}


def test_plain_events_pass_as_they_are():
    data = b'{"choices":[{"delta":{"content":"\\"logprobs\\":{"},"logprobs":null}]}'
    assert to_xi(data) is data


def test_reasoning_has_its_older_name():
    assert seen({"choices": [{"delta": {"reasoning": "hm"}}]})["choices"][0]["delta"] == {"reasoning_content": "hm"}


def test_entries_of_completions():
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -0.5], "top_logprobs": [{"a": -1.0, "c": -0.2}, None], "text_offset": [0, 1]}
    found = seen({"choices": [{"text": "ab", "logprobs": logprobs, "finish_reason": None}]})["choices"][0]["logprobs"]["content"]
    assert found == [
        {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "c", "logprob": -0.2}, {"token": "a", "logprob": -1.0}]},
        {"token": "b", "logprob": -0.5, "top_logprobs": []},
    ]


def entries_of(**choice):
    content = [{"token": "a", "logprob": -1.0}, {"token": "<end>", "logprob": -1.0}]
    choice = {"delta": {}, "logprobs": {"content": content}, **choice}
    return [entry["token"] for entry in seen({"choices": [choice]})["choices"][0]["logprobs"]["content"]]


def test_the_end_token_has_no_entry():
    assert entries_of(finish_reason="stop", stop_reason=None) == ["a"]
    assert entries_of(finish_reason="stop", matched_stop=5) == ["a"]
    assert entries_of(finish_reason="stop", stop_reason="a stop string") == ["a", "<end>"]
    assert entries_of(finish_reason="length", stop_reason=None) == ["a", "<end>"]
    assert entries_of(finish_reason="stop") == ["a", "<end>"], "a server that doesn't tell"
