"""Embeddings and rerank beyond what the kits check: every field's wrong values, large answers, aborts, failures, API engines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
import threading
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from xi_core.api.embeddings import MAX_INPUTS, EmbeddingList, EmbeddingRequest, RerankAnswer, RerankRequest
from xi_core.engine.base import ApiEngine, ApiRequest, ApiSink, EngineStats, LoadedModel, Progress
from xi_core.engine.pooling import PoolingInput
from xi_core.errors import EngineError, InvalidRequest, NotFound, UnsupportedField
from xi_core.replica.process import service_for
from xi_core.serving.pooling_events import MOST_INPUTS, MOST_TEXT, pieces
from xi_core.serving.pooling_request import EMBEDDINGS, RERANK, PoolingJob, parse_pooling
from xi_core.serving.progress import probe
from xi_core.serving.service import Service
from xi_core.testing.harness import Answer, plan_for
from xi_core.testing.pooling_fakes import SIZE, LetterEngine
from xi_core.wire.frames import End, Frame, Submit
from xi_core.wire.manifest import pooling_manifest
from xi_core.wire.plan import LaunchPlan, ServingLimits

MANIFEST = pooling_manifest("embeddings", "rerank")


def job(route: str, **fields: Any) -> PoolingJob:
    least: dict[str, Any] = {"input": "Hi"} if route == EMBEDDINGS else {"query": "q", "documents": ["a", "b"]}
    return parse_pooling(route, msgspec.json.encode({"model": "m", **least, **fields}), MANIFEST, "fake")


# ---- the request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (EMBEDDINGS, {"model": 5}, "model"),
        (EMBEDDINGS, {"input": None}, "input"),
        (EMBEDDINGS, {"input": ""}, "input"),
        (EMBEDDINGS, {"input": []}, "input"),
        (EMBEDDINGS, {"input": ["a", ""]}, "input[1]"),
        (EMBEDDINGS, {"input": [[1], []]}, "input[1]"),
        (EMBEDDINGS, {"input": [-1]}, "input[0]"),
        (EMBEDDINGS, {"input": [[2**31]]}, "input[0][0]"),
        (EMBEDDINGS, {"input": [1.5]}, "input[0]"),
        (EMBEDDINGS, {"input": [True]}, "input[0]"),
        (EMBEDDINGS, {"input": [{"text": "a"}]}, "input[0]"),
        (EMBEDDINGS, {"input": ["a", 1]}, "input[1]"),
        (EMBEDDINGS, {"input": [1, [1]]}, "input[1]"),
        (EMBEDDINGS, {"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        (EMBEDDINGS, {"input": [[1]] * (MAX_INPUTS + 1)}, "input"),
        (EMBEDDINGS, {"encoding_format": "hex"}, "encoding_format"),
        (EMBEDDINGS, {"dimensions": 0}, "dimensions"),
        (EMBEDDINGS, {"dimensions": "8"}, "dimensions"),
        (EMBEDDINGS, {"user": 5}, "user"),
        (EMBEDDINGS, {"stream": True}, "stream"),
        (RERANK, {"model": None}, "model"),
        (RERANK, {"query": ""}, "query"),
        (RERANK, {"query": ["a"]}, "query"),
        (RERANK, {"documents": []}, "documents"),
        (RERANK, {"documents": "a"}, "documents"),
        (RERANK, {"documents": [{"title": "a"}]}, "documents[0].text"),
        (RERANK, {"documents": [1]}, "documents[0]"),
        (RERANK, {"documents": ["a"] * (MAX_INPUTS + 1)}, "documents"),
        (RERANK, {"top_n": 0}, "top_n"),
        (RERANK, {"return_documents": "yes"}, "return_documents"),
        (RERANK, {"max_chunks_per_doc": 2}, "max_chunks_per_doc"),
        (RERANK, {"return_len": True}, "return_len"),
        (RERANK, {"user": 5}, "user"),
        (RERANK, {"kwargs": '{"a": 1}'}, "kwargs"),
    ],
)
def test_each_field_is_checked_and_named(route: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        job(route, **fields)
    assert caught.value.param == param
    assert caught.value.status == 400


def test_every_field_stands_in_the_table() -> None:
    (table,) = [mark.args[1] for mark in test_each_field_is_checked_and_named.pytestmark if mark.name == "parametrize"]
    for route, request in ((EMBEDDINGS, EmbeddingRequest), (RERANK, RerankRequest)):
        checked = {name for where, fields, _ in table if where == route for name in fields}
        assert {info.name for info in msgspec.structs.fields(request)} <= checked


def test_the_four_forms_of_input() -> None:
    assert job(EMBEDDINGS, input="a").texts == ["a"]
    assert job(EMBEDDINGS, input=["a", "b"]).texts == ["a", "b"]
    assert job(EMBEDDINGS, input=[1, 2]).ids == [[1, 2]]
    assert job(EMBEDDINGS, input=[[1, 2], [3]]).ids == [[1, 2], [3]]
    assert len(job(EMBEDDINGS, input=[1] * 5000).ids[0]) == 5000, "one long list of ids is one input"
    assert [job(EMBEDDINGS, input=given).place(0) for given in ("a", ["a"], [1], [[1]])] == ["input", "input[0]", "input", "input[0]"]


def test_documents_are_texts_or_objects() -> None:
    assert job(RERANK, documents=["a", {"text": "b"}, {"text": "c", "title": "t"}]).texts == ["a", "b", "c"]
    xinference: dict[str, Any] = {"top_n": None, "max_chunks_per_doc": None, "return_documents": None, "return_len": None, "kwargs": "{}"}
    assert job(RERANK, **xinference).count == 2


def test_nulls_are_defaults() -> None:
    assert job(EMBEDDINGS, encoding_format=None, dimensions=None, user=None).count == 1


def test_a_route_that_is_not_served() -> None:
    with pytest.raises(NotFound, match="it serves: /v1/embeddings"):
        parse_pooling(RERANK, b"{}", pooling_manifest("embeddings"), "fake")
    with pytest.raises(UnsupportedField, match="documents are not split"):
        job(RERANK, max_chunks_per_doc=1)


# ---- the service --------------------------------------------------------------------------------


class Asked:
    """Frames of one request."""

    def __init__(self, service: Service, route: str, id: int = 1, **fields: Any) -> None:
        self.frames: list[Frame] = []
        self.ended = asyncio.Event()
        self.run = service.submit(Submit(id, route, msgspec.json.encode({"model": "m", **fields})), self._put)

    def _put(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, End):
            self.ended.set()

    async def answer(self) -> Answer:
        async with asyncio.timeout(10):
            await self.ended.wait()
        return Answer(self.frames)


@contextlib.asynccontextmanager
async def serving(engine: Any, limits: ServingLimits | None = None, **options: Any) -> AsyncIterator[Service]:
    plan: LaunchPlan = plan_for("x:Y", "", "fake", **options)
    plan.limits = limits or ServingLimits(batch_interval=0.0)
    service = service_for(plan, engine, engine.load(plan, lambda stage, share: None))
    try:
        yield service
    finally:
        service.close(5.0)


async def test_the_answers_have_the_documented_form() -> None:
    async with serving(LetterEngine()) as service:
        vectors = await Asked(service, EMBEDDINGS, input=["ab", "c"]).answer()
        ranks = await Asked(service, RERANK, query="ab", documents=["x", "ab", "a"], return_documents=True).answer()
    found = msgspec.json.decode(vectors.raw, type=EmbeddingList)
    assert (found.model, found.usage.total_tokens, len(found.data[0].embedding)) == ("under-test", 3, SIZE)
    assert set(vectors.body) == {"object", "data", "model", "usage"}
    ranking = msgspec.json.decode(ranks.raw, type=RerankAnswer)
    assert [(result.index, result.relevance_score) for result in ranking.results] == [(1, 1.0), (2, 0.5), (0, 0.0)]
    assert ranking.usage.prompt_tokens == 3 * len("ab|") + len("xaba")
    assert [result["document"]["text"] for result in ranks.body["results"]] == ["ab", "a", "x"]


async def test_large_requests_and_answers_are_made_beside_the_loop() -> None:
    texts = [f"{index} " + "x" * 20 for index in range(MAX_INPUTS)]
    async with serving(LetterEngine()) as service:
        answer = await Asked(service, EMBEDDINGS, input=texts, encoding_format="base64").answer()
        few = await Asked(service, EMBEDDINGS, input=texts[:2], encoding_format="base64").answer()
    assert [entry["index"] for entry in answer.body["data"]] == list(range(MAX_INPUTS))
    assert answer.body["data"][:2] == few.body["data"]


class NarrowEngine(LetterEngine):
    """Its tokenizer knows more tokens than its model, and has none for spaces."""

    @property
    def vocabulary_size(self) -> int:
        return 128

    def encode(self, texts: list[str]) -> list[PoolingInput]:
        return super().encode([text.strip() for text in texts])


@pytest.mark.parametrize(("text", "words"), [("é", "outside the vocabulary of 128"), (" ", "no token")])
async def test_a_text_that_the_model_can_not_read_is_refused_before_it_shares_a_batch(text: str, words: str) -> None:
    async with serving(NarrowEngine()) as service:
        answer = await Asked(service, EMBEDDINGS, input=["a", text]).answer()
        alone = await Asked(service, EMBEDDINGS, input="a").answer()
    assert answer.error is not None
    assert (answer.status, answer.error["param"], alone.status) == (400, "input[1]", 200)
    assert words in answer.error["message"]


async def test_batches_are_shared_by_requests() -> None:
    engine = LetterEngine()
    async with serving(engine, ServingLimits(batch_interval=0.2)) as service:
        asked = [Asked(service, EMBEDDINGS, id, input="abc") for id in range(8)]
        for one in asked:
            assert (await one.answer()).status == 200
    assert engine.batches == [8]


async def test_an_aborted_request_is_not_answered() -> None:
    async with serving(LetterEngine(), pace=0.05, slots=1) as service:
        asked = Asked(service, EMBEDDINGS, input=["a", "b", "c", "d"] * 50)
        large = Asked(service, EMBEDDINGS, 2, input=["a" * 60] * 400)  # still being encoded on its thread
        for one in (asked, large):
            assert one.run is not None
            service.abort(one.run)
        assert (await Asked(service, EMBEDDINGS, 3, input="a").answer()).status == 200
        assert not service.busy
        assert asked.frames == large.frames == []


async def test_a_full_queue_and_a_stopping_replica_refuse() -> None:
    async with serving(LetterEngine(), ServingLimits(queue=0), slots=1, pace=0.2) as service:
        first = Asked(service, EMBEDDINGS, input="a")
        assert (await Asked(service, EMBEDDINGS, 2, input="b").answer()).status == 429
        load = service.load()
        assert load.running + load.waiting == 1
        await service.drain(10.0)
        assert (await first.answer()).status == 200
        assert (await Asked(service, EMBEDDINGS, 3, input="b").answer()).status == 503


class Nan(LetterEngine):
    """One bad vector among good ones."""

    def embed(self, inputs: list[PoolingInput]) -> list[bytes]:
        bad = struct.pack(f"<{SIZE}f", *[float("nan")] * SIZE)
        return [bad if one.ids[0] == ord("!") else vector for one, vector in zip(inputs, super().embed(inputs), strict=True)]

    def score(self, inputs: list[PoolingInput]) -> list[float]:
        return [float("nan")] * len(inputs)


async def test_numbers_that_are_none_cost_their_request_only() -> None:
    async with serving(Nan(), ServingLimits(batch_interval=0.2)) as service:
        asked = [Asked(service, EMBEDDINGS, id, input=text) for id, text in enumerate(("a", "!", "b"))]
        answers = [await one.answer() for one in asked]
        assert [answer.status for answer in answers] == [200, 500, 200]
        assert "not finite" in str(answers[1].error)
        assert (await Asked(service, RERANK, query="q", documents=["a"]).answer()).status == 500


class Failing(LetterEngine):
    """Fails in the way that the text names."""

    def embed(self, inputs: list[PoolingInput]) -> list[bytes]:
        text = bytes(inputs[0].ids)
        if text == b"refuse":
            raise EngineError("not this one")
        if text == b"break":
            raise RuntimeError("broken")
        return super().embed(inputs)


async def test_an_engine_may_fail_one_batch_or_for_good() -> None:
    async with serving(Failing()) as service:
        refused = await Asked(service, EMBEDDINGS, input="refuse").answer()
        assert (refused.status, refused.body["error"]["message"]) == (500, "not this one")
        assert (await Asked(service, EMBEDDINGS, 2, input="a").answer()).status == 200
        broken = await Asked(service, EMBEDDINGS, 3, input="break").answer()
        assert "RuntimeError: broken" in broken.body["error"]["message"]
        assert service.unhealthy() is not None
        assert (await Asked(service, EMBEDDINGS, 4, input="a").answer()).status == 503


# ---- over an API engine -------------------------------------------------------------------------


class LetterApi(ApiEngine):
    """A `LetterEngine` behind OpenAI's bodies. `held` requests wait for `release`."""

    def __init__(self, kind: str = "embeddings", answer: Any = None) -> None:
        self.letters = LetterEngine()
        self.kind = kind
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.aborted: list[int] = []
        self.held: list[tuple[ApiRequest, ApiSink]] = []
        self.holding = False

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        return LoadedModel(context_length=64, slots=2, manifest=pooling_manifest(self.kind))

    def stats(self) -> EngineStats:
        return EngineStats(steps=len(self.bodies))

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        self.bodies.append(request.body)
        self.held.append((request, sink))
        if not self.holding:
            threading.Thread(target=self.release, args=(1,), daemon=True).start()

    def abort(self, id: int) -> None:
        self.aborted.append(id)

    def release(self, count: int) -> None:
        for _ in range(count):
            request, sink = self.held.pop(0)
            if self.answer == "refuse":
                sink.failed(request.id, 400, "no", "input")
                continue
            if self.answer is None:
                sink.event(request.id, msgspec.json.encode(self.body(request.body)))
            elif self.answer != "silent":
                sink.event(request.id, self.answer)
            sink.done(request.id)

    def body(self, body: dict[str, Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        if "documents" in body:
            scores = self.letters.score(self.letters.encode_pairs(body["query"], body["documents"]))
            return {"results": [{"index": i, "relevance_score": score} for i, score in enumerate(scores)], "usage": usage}
        given = body["input"]
        inputs = self.letters.encode(given) if isinstance(given[0], str) else [PoolingInput(ids) for ids in given]
        data = [{"index": i, "embedding": base64.b64encode(vector).decode()} for i, vector in enumerate(self.letters.embed(inputs))]
        return {"data": data, "usage": usage}


async def test_an_api_engine_gets_a_few_inputs_at_a_time() -> None:
    engine = LetterApi()
    async with serving(engine) as service, serving(LetterEngine()) as other:
        await probe(service, 10.0)
        texts = [f"text {index}" for index in range(MOST_INPUTS + 5)]
        answer = await Asked(service, EMBEDDINGS, input=texts).answer()
        assert answer.body["data"] == (await Asked(other, EMBEDDINGS, input=texts).answer()).body["data"]
        assert answer.body["usage"] == {"prompt_tokens": 10, "total_tokens": 10}
        assert [len(body["input"]) for body in engine.bodies[1:]] == [MOST_INPUTS, 5]
        ids = await Asked(service, EMBEDDINGS, input=[[65], [66]], dimensions=2).answer()
        assert [len(entry["embedding"]) for entry in ids.body["data"]] == [2, 2]
        refused = await Asked(service, EMBEDDINGS, input="a", dimensions=SIZE + 1).answer()
        assert (refused.status, refused.body["error"]["param"]) == (400, "dimensions")
        assert (await Asked(service, RERANK, query="a", documents=["b"]).answer()).status == 404


async def test_an_api_engine_reranks() -> None:
    async with serving(LetterApi("rerank")) as service:
        await probe(service, 10.0)
        answer = await Asked(service, RERANK, query="ab", documents=["x", "ab", "a"]).answer()
        assert [result["index"] for result in answer.body["results"]] == [1, 2, 0]


async def test_requests_to_an_api_engine_take_turns_and_can_be_aborted() -> None:
    engine = LetterApi()
    engine.holding = True
    async with serving(engine) as service:
        large = Asked(service, EMBEDDINGS, 1, input=["a"] * MOST_INPUTS * 4)
        small = Asked(service, EMBEDDINGS, 2, input="b")
        assert [len(body["input"]) for body in engine.bodies] == [MOST_INPUTS, MOST_INPUTS], "as many as there are slots"
        assert service.load().waiting == 3
        engine.release(2)
        async with asyncio.timeout(10):
            while len(engine.bodies) < 4:
                await asyncio.sleep(0)
        assert [len(body["input"]) for body in engine.bodies[2:]] == [MOST_INPUTS, 1], "the small one didn't wait for all of the large"
        assert large.run is not None
        service.abort(large.run)
        assert len(engine.aborted) == 1
        assert service.load().waiting == 0
        engine.release(2)
        assert (await small.answer()).status == 200
        assert large.frames == []
        assert len(engine.bodies) == 4


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ("refuse", 400, "no"),
        ("silent", 500, "without an answer"),
        (b"{", 500, "can't be read"),
        (b'{"data": [{"embedding": "?"}]}', 500, "can't be read"),
        (b'{"data": []}', 500, "0 values for 2 inputs"),
        (b'{"data": [{"index": 7, "embedding": ""}, {"index": 0, "embedding": ""}]}', 500, "2 values"),
    ],
)
async def test_bad_answers_of_an_api_engine(answer: Any, status: int, words: str) -> None:
    async with serving(LetterApi(answer=answer)) as service:
        found = await Asked(service, EMBEDDINGS, input=["a", "b"]).answer()
        assert found.status == status
        assert words in found.body["error"]["message"]
        async with asyncio.timeout(10):
            while service.load().running:
                await asyncio.sleep(0)


class PickyApi(LetterApi):
    """Knows the letters only; says by the body's own numbers which input is none."""

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        for index, ids in enumerate(request.body["input"]):
            if max(ids) > 255:
                raise InvalidRequest(f"input[{index}]: 999 is no token", param=f"input[{index}]")
        super().submit(request, sink)


async def test_an_api_engine_blames_the_input_as_the_request_numbers_it() -> None:
    async with serving(PickyApi()) as service:
        for given, place in (([65, 999], "input"), ([[65]] * 35 + [[999], [65]], "input[35]"), ([[65], [999]], "input[1]")):
            error = (await Asked(service, EMBEDDINGS, input=given).answer()).body["error"]
            assert (error["param"], error["message"]) == (place, f"{place}: 999 is no token")


def test_pieces_are_bounded() -> None:
    assert pieces(job(EMBEDDINGS, input="a" * (MOST_TEXT * 2))) == [(0, 1)]
    assert pieces(job(EMBEDDINGS, input=["a" * (MOST_TEXT - 1), "b", "c", "d" * MOST_TEXT, "e"])) == [(0, 2), (2, 1), (3, 1), (4, 1)]
    assert pieces(job(EMBEDDINGS, input=[[1] * (MOST_TEXT // 8)] * 3)) == [(0, 2), (2, 1)]
