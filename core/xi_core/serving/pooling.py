"""`PoolingService`: `/v1/embeddings` and `/v1/rerank`; `BatchService` serves them over an `EmbeddingEngine` or `RerankEngine`.

Runs on the replica's loop. What serves them over an `ApiEngine` is in `pooling_events.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from xi_core.api.embeddings import EmbeddingRequest, RerankRequest
from xi_core.engine.base import Engine, LoadedModel
from xi_core.engine.pooling import EmbeddingEngine, PoolingEngine, PoolingInput, RerankEngine
from xi_core.engine.pooling_batcher import BatchOutput, PoolingBatcher, Value, Work
from xi_core.engine.sequence_check import check_ids
from xi_core.errors import ContextLengthExceeded, EngineError, InvalidRequest, PluginError
from xi_core.serving.loop_queue import LoopQueue
from xi_core.serving.pooling_answer import body_of, check_dimensions
from xi_core.serving.pooling_request import PoolingJob, parse_pooling
from xi_core.serving.service import Outlet, Run, Service
from xi_core.serving.tokens import LONG_BODY, as_engine_error
from xi_core.wire.frames import Data, End, Submit
from xi_core.wire.plan import LaunchPlan

LARGE_ANSWER = 64 * 1024
"""Bytes of vectors above which an answer is written on a thread: on the loop it would hold up all others."""

T = TypeVar("T")


class PoolingRun(Run):
    """A request for vectors or scores."""

    __slots__ = ("job", "left", "values")

    def __init__(self, id: int, size: int, outlet: Outlet, job: PoolingJob) -> None:
        super().__init__(id, size, outlet)
        self.job = job
        self.left = job.count
        """Inputs that have no value yet."""
        self.values: list[Value] = [b""] * job.count


class PoolingService(Service):
    """What serving vectors and scores has in common for every engine: validation, and the answer once all values are there."""

    def __init__(self, plan: LaunchPlan, engine: Engine, model: LoadedModel) -> None:
        super().__init__(plan, engine, model)
        self._thread = ThreadPoolExecutor(1, "xi-pooling")

    def close(self, grace: float) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._engine.close(grace)

    @abstractmethod
    def _start(self, run: PoolingRun) -> None:
        """Begin with a validated request."""

    def _begin(self, submit: Submit, outlet: Outlet) -> PoolingRun:
        job = parse_pooling(submit.route, submit.body, self.model.manifest, self.plan.engine.name)
        self._check_lengths(job, job.least_tokens(), "more than ")
        run = PoolingRun(submit.id, len(submit.body), outlet, job)
        try:
            self._start(run)
        except BaseException:
            self._finish(run)
            raise
        self._requests.add(run)
        return run

    def _check_lengths(self, job: PoolingJob, lengths: list[int], about: str = "") -> None:
        context = self.model.context_length
        index = next((index for index, length in enumerate(lengths) if length > context), None)
        if index is not None:
            place = job.place(index)
            what = "the query and this document have" if isinstance(job.request, RerankRequest) else "this input has"
            raise ContextLengthExceeded(
                f"{place}: {what} {about}{lengths[index]} tokens; {self.plan.uid} reads at most {context}: send it in parts", param=place
            )

    def _value(self, run: PoolingRun, index: int, value: Value) -> bool:
        """Take in the value of one input. True when it was the last."""
        run.values[index] = value
        run.left -= 1
        return run.left == 0

    def _complete(self, run: PoolingRun) -> None:
        """Answer a request that has all its values."""
        size = sum(len(value) for value in run.values if isinstance(value, bytes))
        if size <= LARGE_ANSWER:
            self._attempt(run, lambda: self._answer(run, self._body(run)))
        else:
            self._beside(run, lambda: self._body(run), lambda body: self._answer(run, body))

    def _body(self, run: PoolingRun) -> bytes:
        return body_of(run.job, run.values, self.plan.uid, run.prompt_tokens)

    def _answer(self, run: PoolingRun, body: bytes) -> None:
        self._open(run)
        run.outlet(Data(run.id, body))
        run.outlet(End(run.id, "stop"))
        self._finish(run)

    def _beside(self, run: PoolingRun, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Do `work` on a thread, then `then` on the loop, unless the request has ended by then."""

        def done(future: asyncio.Future[T]) -> None:
            if future.cancelled():
                return
            if run.ended:
                future.exception()  # nobody asks any more
            else:
                self._attempt(run, lambda: then(future.result()))

        asyncio.get_running_loop().run_in_executor(self._thread, work).add_done_callback(done)


class BatchService(PoolingService):
    """Serves over a pooling engine, batched over all requests on a thread of its own. Call on the loop."""

    def __init__(self, plan: LaunchPlan, engine: PoolingEngine, model: LoadedModel) -> None:
        super().__init__(plan, engine, model)
        self._pooling = engine
        self._ids = itertools.count(1)
        self._runs: dict[int, PoolingRun] = {}
        outputs: LoopQueue[BatchOutput | EngineError] = LoopQueue(asyncio.get_running_loop(), self._take)
        self._batcher = PoolingBatcher(
            model.slots, engine.batch_tokens, outputs.put, lambda error: outputs.put(as_engine_error(error)), plan.limits.batch_interval
        )
        self._batcher.start()

    def close(self, grace: float) -> None:
        self._batcher.stop(grace)
        super().close(grace)

    def _counts(self) -> tuple[int, int]:
        running = min(len(self._runs), self._engine.stats().running)
        return running, len(self._runs) - running

    @property
    def _embedder(self) -> EmbeddingEngine:
        if not isinstance(self._pooling, EmbeddingEngine):
            raise PluginError(f"engine {self.plan.engine.name} claims embeddings, but its class is no EmbeddingEngine")
        return self._pooling

    @property
    def _reranker(self) -> RerankEngine:
        if not isinstance(self._pooling, RerankEngine):
            raise PluginError(f"engine {self.plan.engine.name} claims rerank, but its class is no RerankEngine")
        return self._pooling

    # ---- a request comes ------------------------------------------------------------------------

    def _start(self, run: PoolingRun) -> None:
        job = run.job
        if isinstance(job.request, EmbeddingRequest):
            check_dimensions(job.request, self._embedder.dimensions)
        if run.size <= LONG_BODY:
            self._queue(run, self._encoded(job))
        else:
            self._beside(run, lambda: self._encoded(job), lambda inputs: self._queue(run, inputs))

    def _encoded(self, job: PoolingJob) -> list[PoolingInput]:
        """The job's inputs, each of which the model can read: one that it can't would fail others in its batch."""
        inputs, size = self._inputs(job), self._pooling.vocabulary_size
        for index, one in enumerate(inputs):
            place = job.place(index)
            if not one.ids:
                raise InvalidRequest(f"{place}: there is no token in it", param=place)
            check_ids(place, one.ids, size)
        return inputs

    def _inputs(self, job: PoolingJob) -> list[PoolingInput]:
        if isinstance(job.request, RerankRequest):
            return self._reranker.encode_pairs(job.request.query, job.texts)
        return self._embedder.encode(job.texts) if job.texts else [PoolingInput(ids) for ids in job.ids]

    def _queue(self, run: PoolingRun, inputs: list[PoolingInput]) -> None:
        lengths = [len(one.ids) for one in inputs]
        self._check_lengths(run.job, lengths)
        run.prompt_tokens = sum(lengths)
        part = next(self._ids)
        self._runs[part] = run
        run.parts.append(part)
        work: Work = self._reranker.score if isinstance(run.job.request, RerankRequest) else self._embedder.embed
        self._batcher.submit(part, inputs, work)

    def _stop_part(self, part: int) -> None:
        self._runs.pop(part, None)
        self._batcher.remove(part)

    # ---- values come ----------------------------------------------------------------------------

    def _take(self, output: BatchOutput | EngineError) -> None:
        if isinstance(output, EngineError):
            self.fail_all(output)
            return
        for id in output.failed:
            failed = self._runs.get(id)
            if failed is not None and output.error is not None:
                self.fail(failed, output.error)
        for id, index, value in output.values:
            run = self._runs.get(id)
            if run is not None and self._value(run, index, value):  # it may have been stopped while this batch ran
                del self._runs[id]
                run.parts.remove(id)
                self._complete(run)
