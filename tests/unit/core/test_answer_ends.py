"""Where a service ends an answer: stop strings, lengths and contexts, and that all its tokens are told."""

from typing import Any, ClassVar

import pytest
from service_clients import Client, Mute, serving

from xi_core.engine.base import ApiRequest, ApiSink
from xi_core.testing.fakes import CONTEXT, TEXT, CountingEngine, ScriptedEngine
from xi_core.wire.frames import Data


async def test_an_api_engine_is_asked_for_no_more_tokens_than_the_context_holds() -> None:
    class Keeper(Mute):
        bodies: ClassVar[list[dict[str, Any]]] = []

        def submit(self, request: ApiRequest, sink: ApiSink) -> None:
            super().submit(request, sink)
            self.bodies.append(request.body)

    async with serving(Keeper(), slots=4) as service:
        for number, most in enumerate((CONTEXT - 1, CONTEXT, 10 * CONTEXT), 1):
            Client(service, number, max_tokens=most)
        assert [body["max_tokens"] for body in Keeper.bodies] == [CONTEXT - 1, CONTEXT, CONTEXT]


async def test_a_stop_string_wins_over_the_length_that_it_just_fits() -> None:
    async with serving(CountingEngine()) as service:
        answer = await Client(service, stop=["two"], max_tokens=7).answer()
        assert (answer.text, answer.finishes, answer.usage["completion_tokens"]) == ("one ", ["stop"], 7)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_character_that_the_length_cuts_short_does_not_come_out(stream: bool) -> None:
    whole = TEXT[: TEXT.index("😀")]
    async with serving(CountingEngine()) as service:
        for more in (1, 2, 3):
            answer = await Client(service, max_tokens=len(whole) + more, stream=stream).answer()
            assert (answer.text, answer.finishes) == (whole, ["length"])
        answer = await Client(service, max_tokens=len(whole) + 4, stream=stream).answer()
        assert answer.text == whole + "😀"


@pytest.mark.parametrize("engine", [CountingEngine, ScriptedEngine])
@pytest.mark.parametrize(
    "fields", [{}, {"n": 3}, {"stop": ["four"]}, {"stop": ["oney"], "max_tokens": 2}, {"n": 2, "logprobs": True}], ids=str
)
@pytest.mark.parametrize("stream", [False, True])
async def test_frames_tell_of_every_token(engine: Any, fields: dict[str, Any], stream: bool) -> None:
    """Also of those whose text is held back, hidden, or comes in one body at the end."""
    options = {"stream_options": {"include_usage": True}} if stream else {}
    async with serving(engine(), slots=4) as service:
        client = Client(service, stream=stream, **options, **fields)
        answer = await client.answer()
        told = sum(frame.tokens for frame in client.frames if isinstance(frame, Data))
        assert told == answer.usage["completion_tokens"] == service.load().tokens
