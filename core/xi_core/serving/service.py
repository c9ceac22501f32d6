"""`Service`: serves requests over one engine. The replica's server gives it submissions and takes its frames.

Everything here runs on the replica's loop; engines call in from their threads through `LoopQueue`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from msgspec import UNSET

from xi_core.api.openai import PromptTokensDetails, Usage
from xi_core.engine.base import Engine, LoadedModel
from xi_core.errors import ContextLengthExceeded, EngineError, Overloaded, Unavailable, UnsupportedField, XiError, envelope
from xi_core.serving.answer import JSON, Answer, answer_for, error_event
from xi_core.serving.delta import Delta
from xi_core.serving.parsing import thinking_variables
from xi_core.serving.progress import ProgressWatch
from xi_core.serving.request import Job, parse
from xi_core.serving.sleeping import Sleeping, ended
from xi_core.wire.frames import Data, End, Frame, Load, Open, Submit
from xi_core.wire.plan import LaunchPlan
from xi_core.wire.sleep import check_sleep

log = logging.getLogger(__name__)

T = TypeVar("T")
Outlet = Callable[[Frame], None]
"""Takes the frames of a request, in order."""


class Run:
    """One request that is being served, of whatever kind."""

    __slots__ = ("content_type", "ended", "id", "opened", "outlet", "parts", "prompt_tokens", "size")

    def __init__(self, id: int, size: int, outlet: Outlet, content_type: str = JSON) -> None:
        self.id = id
        self.size = size
        """Bytes of the request's body."""
        self.outlet = outlet
        self.content_type = content_type
        self.prompt_tokens = 0
        self.opened = False
        self.ended = False
        self.parts: list[int] = []
        """Ids, within the engine, of what of it still runs: a generation's choices."""


class Running(Run):
    """A request for generated text."""

    __slots__ = ("_read", "answer", "cached", "completion_tokens", "job", "open_choices", "told_tokens")

    def __init__(self, id: int, size: int, outlet: Outlet, job: Job, answer: Answer) -> None:
        super().__init__(id, size, outlet, answer.content_type)
        self.job = job
        self.answer = answer
        self._read = [0] * len(job.prompts)
        self.cached: list[int | None] = [None] * len(job.prompts)
        """Tokens of each prompt that had not to be read; None where the engine doesn't tell."""
        self.completion_tokens = 0
        self.told_tokens = 0
        """Those that the frames sent so far have told of."""
        self.open_choices = job.choices

    def read(self, prompt: int, tokens: int) -> None:
        """A prompt has so many tokens."""
        self._read[prompt] = tokens
        self.prompt_tokens = sum(self._read)


class Service(ABC):
    """What serving has in common for every kind of engine: frames, counting, errors, draining."""

    def __init__(self, plan: LaunchPlan, engine: Engine, model: LoadedModel) -> None:
        self.plan = plan
        self.model = model
        self.draining = False
        self._engine = engine
        self._requests: set[Run] = set()
        self._idle = asyncio.Event()
        self._tokens = 0
        self._progress = ProgressWatch(engine, plan.limits.hang_timeout)
        self._failure: XiError | None = None
        self._sleeping = Sleeping(plan.uid, engine, partial(self._quieten, plan.limits.grace, ended), self.fail_all)

    # -- what the replica calls --------------------------------------------------------------------

    def submit(self, submit: Submit, outlet: Outlet) -> Run | None:
        """Serve a request; its frames go to `outlet`. None when it was refused, which its frames say."""
        try:
            self._check_room()
            return self._begin(submit, outlet)
        except XiError as error:
            refuse(submit.id, outlet, error)
        except Exception:  # a fault of ours or the engine's must cost this request only
            log.exception("request %d failed", submit.id)
            refuse(submit.id, outlet, EngineError("the replica failed to start this request; its log has the details"))
        return None

    def abort(self, run: Run) -> None:
        """Stop a request and send nothing more for it."""
        if not run.ended:
            self._finish(run)

    def fail(self, run: Run, error: XiError) -> None:
        """End a request with a typed error: as a status before the first frame, as an event after it."""
        if run.ended:
            return
        if run.opened:
            run.outlet(Data(run.id, error_event(error.body())))
            run.outlet(End(run.id, error.code))
        else:
            refuse(run.id, run.outlet, error)
        self._finish(run)

    def fail_all(self, error: XiError) -> None:
        """End every request with `error`: the engine can't go on."""
        self._failure = error
        for run in list(self._requests):
            self.fail(run, error)

    def load(self) -> Load:
        """The live counters."""
        running, waiting = self._counts()
        stats = self._engine.stats()
        return Load(
            running=running,
            waiting=waiting,
            slots=self.model.slots,
            steps=stats.steps,
            tokens=self._tokens,
            healthy=self.unhealthy() is None,
            draining=self.draining,
            engine=stats.own,
            asleep=self.asleep,
        )

    def unhealthy(self) -> str | None:
        """Why the engine makes no progress; None when it does, or has nothing to do. Call it regularly: it keeps the clock."""
        if self._failure is not None:
            return self._failure.message
        return self._progress.look(busy=self.busy)

    @property
    def failure(self) -> XiError | None:
        """Why the engine can't go on; None while it can."""
        return self._failure

    @property
    def busy(self) -> bool:
        """Whether any request is being served."""
        return bool(self._requests)

    async def drain(self, grace: float) -> None:
        """Refuse new requests, and wait for the running ones for `grace` seconds."""
        self.draining = True
        await self._quieten(grace, lambda: Unavailable("the replica is stopping"))

    @property
    def asleep(self) -> int:
        """At which level it sleeps, or is about to; 0: awake."""
        return self._sleeping.level

    async def sleep(self, level: int) -> None:
        """Refuse new requests, wait for the running ones as `drain` does, and give back the devices' memory.

        Raises `UnsupportedField` where the model can't, `Conflict` where it sleeps at another level, and what the engine raises.
        """
        check_sleep(self.plan.uid, self.plan.engine.name, self.model.sleep, level)
        await self._sleeping.sleep(level)

    async def wake(self) -> None:
        """Serve again. Raises what the engine raises."""
        await self._sleeping.wake()

    @abstractmethod
    def close(self, grace: float) -> None:
        """Stop the engine."""

    # -- what each kind does -----------------------------------------------------------------------

    @abstractmethod
    def _begin(self, submit: Submit, outlet: Outlet) -> Run:
        """Validate a request and start it. Raises `XiError`."""

    @abstractmethod
    def _stop_part(self, part: int) -> None:
        """Stop one part of a request in the engine."""

    @abstractmethod
    def _counts(self) -> tuple[int, int]:
        """Requests that run, and that wait."""

    # -- shared steps ------------------------------------------------------------------------------

    async def _quieten(self, grace: float, late: Callable[[], XiError]) -> None:
        """Wait for the running requests for `grace` seconds, and end those that are left with `late`."""
        if self._requests:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace)
        for run in list(self._requests):
            self.fail(run, late())

    def _check_room(self) -> None:
        if self._failure is not None:
            raise Unavailable(f"the replica has failed: {self._failure.message}", retry_after=1.0)
        if self.draining:
            raise Unavailable("the replica is stopping", retry_after=1.0)
        if (refusal := self._sleeping.refusal()) is not None:
            raise refusal
        if len(self._requests) >= self.model.slots + self.plan.limits.queue:
            raise Overloaded(f"{self.plan.uid}: {len(self._requests)} requests run or wait, which is all the queue holds", retry_after=1.0)

    def _attempt(self, run: Run, work: Callable[..., None], *arguments: Any) -> None:
        """Do `work` for one request: what it raises costs this request only."""
        try:
            work(*arguments)
        except XiError as error:
            self.fail(run, error)
        except Exception:
            log.exception("request %d failed", run.id)
            self.fail(run, EngineError("the replica failed to serve this request; its log has the details"))

    def _open(self, run: Run) -> None:
        if not run.opened:
            run.opened = True
            run.outlet(Open(run.id, 200, run.content_type, run.prompt_tokens))

    def _finish(self, run: Run) -> None:
        run.ended = True
        self._requests.discard(run)
        if not self._requests:
            self._idle.set()
        for part in run.parts:
            self._stop_part(part)
        run.parts = []


class GenerationService(Service):
    """What token engines and API engines have in common: jobs, choices and their deltas."""

    def __init__(self, plan: LaunchPlan, engine: Engine, model: LoadedModel) -> None:
        super().__init__(plan, engine, model)
        self._adapters = frozenset(module.name for module in plan.lora_modules)

    @abstractmethod
    def _start(self, run: Running) -> None:
        """Begin the choices of a validated request."""

    @abstractmethod
    def _defaults(self) -> dict[str, Any]:
        """Sampling values for what a request leaves open."""

    def _prompt_text(self, prompt: str | list[int]) -> str:
        """The text that an echoing completion of `prompt` begins with. Raises `InvalidRequest`."""
        if isinstance(prompt, str):
            return prompt
        raise UnsupportedField(f"echo: engine {self.plan.engine.name} gives back prompts that are texts, not token ids", param="echo")

    def _begin(self, submit: Submit, outlet: Outlet) -> Running:
        job = parse(submit.route, submit.body, self.model.manifest, self.plan.engine.name, self._defaults())
        if job.kind == "chat":
            job.variables = {**thinking_variables(self.plan), **job.variables}
        if job.request.model in self._adapters:
            job.adapter = job.request.model
        self._check_size(job)
        answer = answer_for(job, job.adapter or self.plan.uid, self._each_prompt(job, self._prompt_text) if job.echo else ())
        run = Running(submit.id, len(submit.body), outlet, job, answer)
        try:
            self._start(run)
        except BaseException:
            self._finish(run)  # some of its choices may run already
            raise
        self._requests.add(run)
        return run

    def _check_size(self, job: Job) -> None:
        """Refuse at once what can't fit: to encode it would take long."""
        context = self.model.context_length
        for prompt, least in enumerate(job.least_tokens()):
            if least > context:
                what = f"the prompt has more than {least} tokens; the context of {self.plan.uid} holds {context}, answer included"
                raise job.blame(prompt, ContextLengthExceeded(what, param=job.prompt_field))

    @staticmethod
    def _each_prompt(job: Job, work: Callable[[str | list[int]], T]) -> list[T]:
        """What `work` makes of each prompt. An error says which one it came of."""
        found: list[T] = []
        for index, prompt in enumerate(job.prompts):
            try:
                found.append(work(prompt))
            except XiError as error:
                raise job.blame(index, error) from None
        return found

    def _deliver(self, run: Running, delta: Delta) -> None:
        if run.ended:
            return
        run.completion_tokens += delta.tokens
        self._tokens += delta.tokens
        data = run.answer.add(delta)
        if delta.finish is not None:
            run.open_choices -= 1
        if run.open_choices == 0:
            data += run.answer.end(self._usage(run))
        if data:
            self._open(run)
            run.outlet(Data(run.id, data, run.completion_tokens - run.told_tokens))
            run.told_tokens = run.completion_tokens
        if run.open_choices == 0:
            run.outlet(End(run.id, delta.finish or ""))
            self._finish(run)

    @staticmethod
    def _usage(run: Running) -> Usage:
        total = run.prompt_tokens + run.completion_tokens
        cached = [tokens for tokens in run.cached if tokens is not None]
        details = PromptTokensDetails(cached_tokens=sum(cached)) if cached else UNSET
        return Usage(
            prompt_tokens=run.prompt_tokens, completion_tokens=run.completion_tokens, total_tokens=total, prompt_tokens_details=details
        )


def refuse(id: int, outlet: Outlet, error: XiError) -> None:
    """Answer a request with an error, before anything else was sent."""
    body = error.body()
    outlet(Open(id, body.status, JSON, 0, body.retry_after))
    outlet(Data(id, envelope(body)))
    outlet(End(id, error.code))
