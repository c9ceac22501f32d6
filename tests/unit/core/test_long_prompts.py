"""Prompts that take a while to encode, or can't fit."""

import threading
from typing import Any

import pytest
from service_clients import Client, serving

from xi_core.testing.fakes import TEXT, ByteTokenizer, CountingEngine, ScriptedEngine


class Slow(ByteTokenizer):
    """Encodes a long text for a while, or not at all."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def encode(self, text: str) -> list[int]:
        if len(text) > 1000:
            self.began.set()
            self.go.wait(5)
        return super().encode(text)[-100:]


class SlowToEncode(CountingEngine):
    def __init__(self) -> None:
        super().__init__()
        self.slow = Slow()

    @property
    def tokenizer(self) -> Slow:
        return self.slow


LONG = [{"role": "user", "content": "a" * 50_000}]


async def test_a_long_prompt_does_not_hold_up_the_loop() -> None:
    engine = SlowToEncode()
    async with serving(engine) as service:
        long, short = Client(service, 1, messages=LONG), Client(service, 2)
        assert (await short.answer()).status == 200
        assert engine.slow.began.wait(5)
        assert not long.frames
        engine.slow.go.set()
        answer = await long.answer()
        assert (answer.status, answer.usage["prompt_tokens"]) == (200, 100)


async def test_a_long_prompt_that_is_aborted_while_it_is_encoded_leaves_nothing() -> None:
    engine = SlowToEncode()
    async with serving(engine) as service:
        long = Client(service, messages=LONG)
        assert engine.slow.began.wait(5)
        assert long.run is not None
        service.abort(long.run)
        engine.slow.go.set()
        assert (await Client(service, 2).answer()).status == 200
        assert (engine.stats().tokens, service.load().waiting) == (len(TEXT.encode()) + 1, 0)
        assert not long.frames


@pytest.mark.parametrize("engine", [SlowToEncode, ScriptedEngine])
async def test_what_can_not_fit_is_refused_before_it_is_encoded(engine: Any) -> None:
    async with serving(engine()) as service:
        client = Client(service, messages=[{"role": "user", "content": "a" * 1_000_000}])
        answer = await client.answer()
        assert answer.status == 400
        assert answer.error is not None
        assert (answer.error["param"], answer.error["code"]) == ("messages", "context_length_exceeded")
