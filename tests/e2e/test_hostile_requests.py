"""Hundreds of requests with fields that are odd, wrong or at their limits, some of them left half-way. No engine may care."""

import asyncio
import contextlib
import json
import random
from typing import Any

import httpx
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
UIDS = ("xi-tiny", "xi-tiny-torch")
TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
USER = {"role": "user", "content": "What time is it in Paris?"}

FIELDS: dict[str, list[Any]] = {
    "stream": [True, False, None], "stream_options": [{"include_usage": True}, {}], "n": [1, 2, 5, 16, 17], "temperature": [0, 1, 2, 1e-9],
    "top_p": [1, 0.1, 1e-9], "top_k": [-1, 1, 10**9, 2**70], "min_p": [0, 1], "presence_penalty": [-2, 2], "frequency_penalty": [-2, 2],
    "repetition_penalty": [0.01, 10, 1e-300], "logit_bias": [{}, {"5": 100}, {"99999": 1}, {"x": 1}], "seed": [0, -1, 2**63 - 1, -(2**63), 2**63],
    "stop": ["a", ["a", "b"], "\n", "😀", [], ""], "ignore_eos": [True, False], "user": ["u"], "max_tokens": [1, 5, 20, 10**30, 0],
}  # fmt: skip
OWN: dict[str, dict[str, list[Any]]] = {
    CHAT: {
        "logprobs": [True, False], "top_logprobs": [0, 20, 21], "tools": [[TOOL], []], "max_completion_tokens": [1, 3],
        "tool_choice": ["none", "auto", "required", {"type": "function", "function": {"name": "get_time"}}],
    },
    COMPLETIONS: {"logprobs": [0, 1, 20], "echo": [True, False]},
}  # fmt: skip
PROMPTS: dict[str, list[Any]] = {
    CHAT: [
        [USER], [{"role": "system", "content": "x"}], [{"role": "user", "content": [{"type": "text", "text": "a"}]}], [{"role": "tool", "content": "x"}],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "4", "tool_call_id": "c"}],
        [{"role": "developer", "content": "\0"}, {"role": "user", "content": ""}], [{"role": "user", "content": "<|im_end|>" * 20}], [{"role": "user"}],
        [{"role": "user", "content": "a " * 200_000}],
    ],
    COMPLETIONS: ["Hi", "", "\0", [1, 2, 3], [99999], [-1], "😀" * 30, "a " * 3000, [], [[1]], [1] * 100_000,
        ["Hi", "😀", "a"], ["Hi", ""], [[1, 2], [3]], [[1], [99999]], ["a", "a " * 3000], ["Hi", [1]], ["x"] * 129],
}  # fmt: skip
JUNK: list[Any] = [None, True, -1, 2**64, 1e308, "", "{{7*7}}", "x" * 2000, [], {}, [[]], {"type": "text"}, [{"role": "user"}], "😀"]


def request(chance: random.Random) -> tuple[str, bytes]:
    route = chance.choice([CHAT, COMPLETIONS])
    pool = FIELDS | OWN[route]
    prompt = "messages" if route == CHAT else "prompt"
    body = {"model": chance.choice(UIDS), "max_tokens": 8, prompt: chance.choice(PROMPTS[route])}
    body |= {name: chance.choice(pool[name]) for name in chance.sample(sorted(pool), chance.randrange(6))}
    if chance.random() < 0.3:
        body[chance.choice([*sorted(pool), prompt, "model", "surprise"])] = chance.choice(JUNK)
    data = bytearray(json.dumps(body).encode())
    if chance.random() < 0.05:
        data[chance.randrange(len(data))] = chance.randrange(256)
    return route, bytes(data)


def check(route: str, body: dict[str, Any], answer: httpx.Response) -> None:
    """The answer is what the API promises."""
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        return
    given = body.get("prompt", "")
    prompts = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    choices, usage = (body.get("n") or 1) * prompts, None
    if answer.headers["content-type"].startswith("text/event-stream"):
        *events, done = [part.removeprefix("data: ") for part in answer.text.split("\n\n") if part]
        assert done == "[DONE]"
        chunks = [json.loads(event) for event in events]
        for chunk in chunks if route == CHAT else ():
            ChatCompletionChunk.model_validate(chunk, strict=True)
        finished = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
        assert sorted(finished) == list(range(choices))
        usage = chunks[-1].get("usage")
        assert bool(usage) == bool((body.get("stream_options") or {}).get("include_usage"))
    else:
        form: Any = ChatCompletion if route == CHAT else Completion
        form.model_validate(answer.json(), strict=True)
        assert len(answer.json()["choices"]) == choices
        usage = answer.json()["usage"]
    if usage:
        most = (body.get("max_completion_tokens") if route == CHAT else None) or body.get("max_tokens") or 1024
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert choices <= usage["completion_tokens"] <= most * choices


async def test_nothing_that_a_client_sends_troubles_the_engines(server: RunningServer) -> None:
    pids, chance, gate = server.pids(), random.Random(7), asyncio.Semaphore(16)
    limits = httpx.Limits(max_connections=16)
    async with httpx.AsyncClient(base_url=server.endpoint, timeout=60, limits=limits) as client:

        async def ask(route: str, data: bytes, patience: float | None) -> None:
            async with gate:
                if patience is not None:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(client.post(route, content=data), patience)
                    return
                answer = await client.post(route, content=data)
                assert answer.status_code in (200, 400, 404), (answer.text, data[:500])
                check(route, json.loads(data) if answer.status_code == 200 else {}, answer)

        requests = [(*request(chance), chance.random() * 0.03 if chance.random() < 0.1 else None) for _ in range(600)]
        await asyncio.gather(*(ask(*one) for one in requests))
        assert server.pids() == pids, "no process has died"

    def idle() -> bool:
        lines = httpx.get(f"{server.endpoint}/metrics").text.splitlines()
        counters = [line for line in lines if line.startswith(("xi_requests_open", "xi_replica_running", "xi_replica_waiting"))]
        return len(counters) >= 6 and all(float(line.rpartition(" ")[2]) == 0 for line in counters)

    wait_until(idle, 10.0, "every slot to be free again")
