"""From a child server's error objects to xi's refusals."""

import json

import pytest

from xi_core.engine.base import ApiRequest
from xi_core.engine.child_refusal import refusal_of

CHAT = ApiRequest(id=1, route="/v1/chat/completions", body={"messages": [], "logit_bias": {}, "temperature": 1.0, "top_p": 1.0})


def error(message, param=None, code=400):
    return json.dumps({"error": {"message": message, "type": "T", "param": param, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "data", "expected"),
    [
        (400, error("too high", "temperature"), (400, "temperature", None)),
        (400, error("token_id(s) in logit_bias are wrong", "value"), (400, "logit_bias", None)),
        (400, error("no idea"), (400, None, None)),
        (200, error("This model's maximum context length is 5 tokens", "input_tokens"), (400, "messages", "context_length_exceeded")),
        (400, b'{"object": "error", "message": "top_p is wrong", "code": 400}', (400, "top_p", None)),
        (400, b'{"error": "plain text"}', (400, None, None)),
        (422, b"not even JSON", (400, None, None)),
        (500, b"", (500, None, None)),
        (401, error("Unauthorized", code=401), (500, None, None)),
        (200, error("broken", code=500), (500, None, None)),
        (503, error("later", code=503), (503, None, "unavailable")),
        (429, error("later", code=429), (429, None, "overloaded")),
        (500, b"[1, 2]", (500, None, None)),
    ],
)
def test_refusals(status, data, expected):
    found = refusal_of("stub", CHAT, status, data)
    assert (found.status, found.param, found.code) == expected
    assert found.message


@pytest.mark.parametrize(("body", "field"), [({"input": ["a"]}, "input"), ({"query": "q", "documents": ["a"]}, "documents")])
def test_refusals_of_inputs(body, field):
    request = ApiRequest(id=1, route="/v1/embeddings", body=body)
    assert refusal_of("stub", request, 400, error("token id 9 is out of vocabulary")).param == field
    long = refusal_of("stub", request, 400, error("This model's maximum context length is 5 tokens"))
    assert (long.param, long.code) == (field, "context_length_exceeded")
