"""One request's trouble in a service is its own: no other request feels it, and no slot is lost."""

import asyncio

from service_clients import Client, Mute, serving

from xi_core.engine.base import ApiRequest, ApiSink
from xi_core.serving.parser import OutputParser, Parsed
from xi_core.testing.fakes import CountingEngine
from xi_core.testing.harness import Answer
from xi_core.wire.frames import Open


class Picky(Mute):
    """Raises for the first request that it is given."""

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        super().submit(request, sink)
        if len(self.taken) == 1:
            raise RuntimeError("no such thing")


async def test_a_request_that_the_engine_does_not_take_leaks_no_slot() -> None:
    engine = Picky()
    async with serving(engine) as service:
        first, second = Client(service, 1, n=2), Client(service, 2)
        assert (await first.answer()).status == 500
        async with asyncio.timeout(5):
            while len(engine.taken) < 2:
                await asyncio.sleep(0)
        assert service.load().running == 1
        assert second.run is not None
        service.abort(second.run)
        async with asyncio.timeout(5):
            while service.load().running:
                await asyncio.sleep(0)
        assert not service.busy


class BrokenParser(OutputParser):
    """Raises on whatever it reads."""

    def feed(self, text: str) -> Parsed:
        raise KeyError(text)

    def finish(self) -> Parsed:
        return Parsed()


TOOLS = [{"type": "function", "function": {"name": "f"}}]


async def test_a_parser_that_raises_ends_its_own_request_only() -> None:
    engine = CountingEngine()
    async with serving(engine, parser=BrokenParser, slots=4) as service:
        broken, fine = Client(service, 1, tools=TOOLS), Client(service, 2)
        answer = await broken.answer()
        assert answer.status == 500
        assert "KeyError" not in str(answer.error), "what is inside stays in the log"
        assert (await fine.answer()).text == (await Client(service, 3).answer()).text
        assert engine.stats().running == 0


async def test_a_choice_that_can_not_be_begun_leaves_nothing_in_the_engine() -> None:
    class Second(BrokenParser):
        made = 0

        def __init__(self) -> None:
            Second.made += 1
            if Second.made == 2:
                raise RuntimeError("no parser today")

    engine = CountingEngine()
    async with serving(engine, parser=Second, slots=4) as service:
        assert (await Client(service, 1, tools=TOOLS, n=3, ignore_eos=True).answer()).status == 500
        assert service.load().waiting == 0
        assert not service.busy


async def test_tools_without_a_parser_are_refused() -> None:
    async with serving(CountingEngine()) as service:
        answer = await Client(service, tools=TOOLS).answer()
        assert answer.status == 400
        assert answer.error is not None
        assert (answer.error["param"], answer.error["code"]) == ("tools", "unsupported_field")
        assert (await Client(service, tools=[]).answer()).status == 200


async def test_aborting_a_request_with_some_choices_finished_frees_the_rest() -> None:
    """With a seed, each choice is another text: the stop string ends one of them first."""
    engine = CountingEngine()
    async with serving(engine, slots=4) as service:
        client = Client(service, n=4, seed=1, temperature=1, stop=["e"], stream=True, ignore_eos=True, max_tokens=10**5)
        async with asyncio.timeout(5):
            while not Answer([Open(1, 200, "text/event-stream"), *client.frames[1:]]).finishes:
                client.moved.clear()
                await client.moved.wait()
        assert client.run is not None
        service.abort(client.run)
        sent = len(client.frames)
        async with asyncio.timeout(5):
            while engine.stats().running:
                await asyncio.sleep(0.001)
        assert service.load().waiting == 0
        assert len(client.frames) == sent, "nothing more after an abort"
