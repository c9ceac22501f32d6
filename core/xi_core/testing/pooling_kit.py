"""`EmbeddingKit` and `RerankKit`: the conformance suites of engines that embed and that rerank. A plugin's tests subclass them.

from xi_core.testing.pooling_kit import EmbeddingKit

class TestMyEmbeddings(EmbeddingKit):
    plugin = "xi_myengine.plugin"
    plan = plan_for("xi_myengine.embedding:MyEngine", "/path/to/a/small/model", "pytorch")
"""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from xi_core.engine.info import EngineInfo
from xi_core.serving.pooling_request import EMBEDDINGS, RERANK
from xi_core.testing.harness import Answer, Harness
from xi_core.testing.manifest_bounds import widened
from xi_core.testing.proofs import HOST, find_info, proves
from xi_core.wire.plan import LaunchPlan


class PoolingKit:
    """What both suites check. Set `plugin` and `plan`; `texts` are distinct, of unlike lengths, and short enough for the model."""

    plugin: ClassVar[str]
    plan: ClassVar[LaunchPlan]
    route: ClassVar[str]
    texts: ClassVar[tuple[str, ...]] = ("a", "the cat sat on the mat", "Paris", "what is the capital of France?", "你好 😀", "zebra " * 6)
    tolerance: ClassVar[float] = 1e-5
    """Largest difference that what else is in a batch may make to a number."""
    reference: ClassVar[Mapping[str, list[float]] | None] = None
    """Numbers that another engine gave for texts, by this model."""
    reference_tolerance: ClassVar[float] = 1e-3

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Iterator[Harness]:
        with Harness(cls.plan) as harness:
            yield harness

    @pytest.fixture(scope="class")
    @classmethod
    def info(cls) -> EngineInfo:
        return find_info(cls.plugin, cls.plan.engine.path)

    def ask(self, harness: Harness, texts: Any, **fields: Any) -> Answer:
        """Ask for `texts`, in the field that the route has for them."""
        if self.route == EMBEDDINGS:
            return harness.submit(EMBEDDINGS, {"input": texts, **fields}).answer()
        return harness.submit(RERANK, {"query": self.texts[0], "documents": texts, **fields}).answer()

    def numbers(self, answer: Answer) -> list[list[float]]:
        """Each text's numbers, in the order of the request."""
        assert answer.status == 200, answer.raw
        if self.route == EMBEDDINGS:
            assert [entry["index"] for entry in answer.body["data"]] == list(range(len(answer.body["data"])))
            return [entry["embedding"] for entry in answer.body["data"]]
        results = sorted(answer.body["results"], key=lambda result: result["index"])
        return [[result["relevance_score"]] for result in results]

    def near(self, found: list[list[float]], expected: list[list[float]]) -> bool:
        """Whether all numbers are equal within the tolerance."""
        pairs = [pair for rows in zip(found, expected, strict=True) for pair in zip(*rows, strict=True)]
        return all(abs(a - b) <= self.tolerance for a, b in pairs)

    def test_probe(self, harness: Harness) -> None:
        harness.probe()

    def test_loaded_manifest_only_narrows(self, info: EngineInfo, harness: Harness) -> None:
        loaded = harness.model.manifest
        assert self.route in loaded.endpoints
        assert widened(loaded, info.manifest) == []
        assert info.probe(HOST).ok

    def test_a_batch_changes_nothing(self, harness: Harness) -> None:
        alone = [self.numbers(self.ask(harness, [text]))[0] for text in self.texts]
        assert self.near(self.numbers(self.ask(harness, list(self.texts))), alone)
        turned = list(reversed(self.texts)) * 8
        assert self.near(self.numbers(self.ask(harness, turned)), list(reversed(alone)) * 8)
        assert len({tuple(round(number, 4) for number in row) for row in alone}) > 1, "texts differ"

    def test_numbers_equal_those_of_the_reference(self, harness: Harness) -> None:
        if self.reference is None:
            pytest.skip("no other engine's numbers are known for this model")
        found = self.numbers(self.ask(harness, list(self.reference)))
        for row, expected in zip(found, self.reference.values(), strict=True):
            assert max(abs(a - b) for a, b in zip(row, expected, strict=True)) <= self.reference_tolerance

    def test_many_requests_at_once(self, harness: Harness) -> None:
        alone = {text: self.numbers(self.ask(harness, [text])) for text in self.texts}
        field = "input" if self.route == EMBEDDINGS else "documents"
        query = {} if self.route == EMBEDDINGS else {"query": self.texts[0]}
        chosen = random.Random(1).choices(self.texts, k=32)
        calls = [(text, harness.submit(self.route, {field: [text], **query})) for text in chosen]
        for text, call in calls:
            assert self.near(self.numbers(call.answer()), alone[text])

    def test_usage_adds_up(self, harness: Harness) -> None:
        each = [self.ask(harness, [text]).body["usage"] for text in self.texts]
        whole = self.ask(harness, list(self.texts)).body["usage"]
        assert whole["prompt_tokens"] == whole["total_tokens"] == sum(usage["prompt_tokens"] for usage in each) > 0

    def test_too_long_a_text(self, harness: Harness) -> None:
        answer = self.ask(harness, ["short", "long " * (harness.model.context_length + 10)])
        assert answer.status == 400
        assert answer.error is not None
        assert answer.error["code"] == "context_length_exceeded"
        assert answer.error["param"].startswith("input" if self.route == EMBEDDINGS else "documents")
        assert self.ask(harness, ["short"]).status == 200

    def test_other_routes_are_not_served(self, harness: Harness) -> None:
        answer = harness.chat("Hi")
        assert answer.status == 404
        assert answer.error is not None
        assert self.route in answer.error["message"]

    def test_malformed_body(self, harness: Harness) -> None:
        assert harness.submit(self.route, b'{"model": ').answer().status == 400
        assert self.ask(harness, ["a"], frobnicate=1).status == 400

    def test_aborted_requests_leave_nothing(self, harness: Harness) -> None:
        field = "input" if self.route == EMBEDDINGS else "documents"
        query = {} if self.route == EMBEDDINGS else {"query": self.texts[0]}
        calls = [harness.submit(self.route, {field: list(self.texts) * 16, **query}) for _ in range(4)]
        for call in calls:
            call.abort()
        harness.wait_idle(30.0)
        assert self.ask(harness, ["a"]).status == 200

    def test_steps_move(self, harness: Harness) -> None:
        before = harness.load().steps
        self.ask(harness, ["a"])
        assert harness.load().steps > before


class EmbeddingKit(PoolingKit):
    """The suite of `/v1/embeddings`."""

    route = EMBEDDINGS

    def test_vectors_have_length_one(self, harness: Harness) -> None:
        for vector in self.numbers(self.ask(harness, list(self.texts))):
            assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-4)

    def test_one_text_or_a_list(self, harness: Harness) -> None:
        assert self.near(self.numbers(self.ask(harness, self.texts[1])), self.numbers(self.ask(harness, [self.texts[1]])))

    @proves("encoding_format")
    def test_base64_is_float32_little_endian(self, harness: Harness) -> None:
        plain = self.numbers(self.ask(harness, list(self.texts)))
        answer = self.ask(harness, list(self.texts), encoding_format="base64")
        raw = [base64.b64decode(entry["embedding"]) for entry in answer.body["data"]]
        assert self.near([list(struct.unpack(f"<{len(data) // 4}f", data)) for data in raw], plain)

    @proves("dimensions")
    def test_dimensions(self, harness: Harness) -> None:
        (whole,) = self.numbers(self.ask(harness, self.texts[1]))
        size = len(whole)
        (cut,) = self.numbers(self.ask(harness, self.texts[1], dimensions=size // 2))
        length = math.hypot(*whole[: size // 2])
        assert self.near([cut], [[number / length for number in whole[: size // 2]]])
        assert self.near(self.numbers(self.ask(harness, self.texts[1], dimensions=size)), [whole])
        for wrong in (0, size + 1):
            refused = self.ask(harness, self.texts[1], dimensions=wrong)
            assert refused.status == 400
            assert refused.error is not None
            assert refused.error["param"] == "dimensions"

    def test_token_ids(self, harness: Harness) -> None:
        (one,) = self.numbers(self.ask(harness, [1, 2, 3]))
        assert self.near(self.numbers(self.ask(harness, [[1, 2, 3], [2], [1, 2, 3]]))[::2], [one, one])
        assert self.ask(harness, [1, 2, 3]).body["usage"]["prompt_tokens"] == 3
        refused = self.ask(harness, [[1], [1, 10**9]])
        assert refused.status == 400
        assert refused.error is not None
        assert refused.error["param"].startswith("input")


class RerankKit(PoolingKit):
    """The suite of `/v1/rerank`."""

    route = RERANK

    def test_the_most_relevant_first(self, harness: Harness) -> None:
        answer = self.ask(harness, list(self.texts))
        scores = [result["relevance_score"] for result in answer.body["results"]]
        assert scores == sorted(scores, reverse=True)
        assert sorted(result["index"] for result in answer.body["results"]) == list(range(len(self.texts)))
        assert all("document" not in result for result in answer.body["results"])

    @proves("top_n", "return_documents")
    def test_top_n_and_documents(self, harness: Harness) -> None:
        whole = self.ask(harness, list(self.texts)).body["results"]
        answer = self.ask(harness, [{"text": text} for text in self.texts], top_n=2, return_documents=True)
        assert [result["index"] for result in answer.body["results"]] == [result["index"] for result in whole[:2]]
        for result in answer.body["results"]:
            assert result["document"] == {"text": self.texts[result["index"]]}
        assert len(self.ask(harness, list(self.texts), top_n=1000).body["results"]) == len(self.texts)
        assert self.ask(harness, list(self.texts), top_n=0).status == 400
