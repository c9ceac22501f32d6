"""`TokenService`: OpenAI semantics over a `TokenEngine`. Templates, detokenizing, stops, tools and `n` are xi's own here."""

from __future__ import annotations

import asyncio
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from xi_core.api.openai import Message
from xi_core.engine.base import LoadedModel, SamplingParams, StepOutput, TokenEngine, TokenOut
from xi_core.engine.batcher import Batcher
from xi_core.engine.grammar import Grammar
from xi_core.engine.sequence_check import check_ids
from xi_core.errors import ContextLengthExceeded, EngineError, InvalidRequest, Unavailable, XiError
from xi_core.serving.choice import Choice
from xi_core.serving.compiling import Compilations
from xi_core.serving.loop_queue import LoopQueue
from xi_core.serving.model_stops import by_tokenizer
from xi_core.serving.parsing import END, Parsers, Prompt
from xi_core.serving.request import Job, message_text
from xi_core.serving.service import GenerationService, Running
from xi_core.serving.template import ChatTemplate
from xi_core.wire.plan import LaunchPlan

log = logging.getLogger(__name__)

LONG_BODY = 16 * 1024
"""Bytes of a request's body above which its prompt is rendered and encoded on a thread: on the loop it would hold up all others."""


class TokenService(GenerationService):
    """Serves requests over a token engine, stepped by a batcher on a thread of its own. Call on the loop."""

    def __init__(self, plan: LaunchPlan, engine: TokenEngine, model: LoadedModel) -> None:
        self._parsers = Parsers(plan)
        super().__init__(plan, engine, self._parsers.served(model))
        self._tokenizer = engine.tokenizer
        self._sampling = engine.default_sampling
        source = plan.chat_template or engine.tokenizer.chat_template
        self._template = ChatTemplate(source, engine.tokenizer.special_tokens) if source else None
        self._stops = by_tokenizer(plan, engine.tokenizer)
        self._ids = itertools.count(1)
        self._encoders = ThreadPoolExecutor(1, "xi-prompts")
        self._compilations = Compilations(engine.prepare)
        self._parts: dict[int, tuple[Running, Choice]] = {}
        steps: LoopQueue[StepOutput | EngineError] = LoopQueue(asyncio.get_running_loop(), self._take)
        self._batcher = Batcher(engine, steps.put, lambda error: steps.put(as_engine_error(error)), plan.limits.batch_interval)
        self._batcher.start()

    def close(self, grace: float) -> None:
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._compilations.close()
        self._batcher.stop(grace)
        self._engine.close(grace)

    def _defaults(self) -> dict[str, Any]:
        return self._sampling

    def _counts(self) -> tuple[int, int]:
        running = self._engine.stats().running
        return running, max(0, len(self._parts) - running)

    def _prompt_text(self, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        check_ids("prompt", prompt, self._tokenizer.vocabulary_size)
        data = b"".join(map(self._tokenizer.token_bytes, prompt))
        return data.removeprefix(b" " if self._tokenizer.starts_with_space else b"").decode("utf-8", "replace")

    def _start(self, run: Running) -> None:
        if run.size <= LONG_BODY:
            self._compile(run, self._encode(run.job))
        else:
            encoding = asyncio.get_running_loop().run_in_executor(self._encoders, self._encode, run.job)
            encoding.add_done_callback(lambda done: self._encoded(run, done))

    def _encoded(self, run: Running, encoding: asyncio.Future[list[Prompt]]) -> None:
        if not run.ended and not encoding.cancelled():
            self._attempt(run, lambda: self._compile(run, encoding.result()))
        elif not encoding.cancelled():
            encoding.exception()  # nobody asks any more

    def _compile(self, run: Running, prompts: list[Prompt]) -> None:
        grammar = prompts[0].grammar  # the request's, so that of all
        if grammar is None:
            self._queue(run, prompts)
        else:
            self._compilations.start(grammar, lambda problem: self._compiled(run, prompts, problem))

    def _compiled(self, run: Running, prompts: list[Prompt], problem: XiError | None) -> None:
        if run.ended:  # nobody asks any more
            return
        if problem is None:
            self._attempt(run, self._queue, run, prompts)
        else:
            self.fail(run, problem)

    def _queue(self, run: Running, prompts: list[Prompt]) -> None:
        job = run.job
        check_ids("logit_bias", job.logit_bias, self._tokenizer.vocabulary_size)
        run.answer.prompt_ids = [prompt.ids for prompt in prompts]
        for number, prompt in enumerate(prompts):
            run.read(number, len(prompt.ids))
        stops = self._stops.of(job)
        for index in range(job.choices):
            prompt = prompts[job.prompt_of(index)]
            room = self.model.context_length - len(prompt.ids)
            part = next(self._ids)
            parser = self._parsers.chain(job, prompt)
            choice = Choice(
                index, self._tokenizer, stops.strings, parser, self._parsers.specials,
                ends=stops.ids, token_ids=job.token_ids, one_call=job.one_call,
                goes_on=job.kind == "completions" and any(map(self._tokenizer.token_bytes, prompt.ids)),
            )  # fmt: skip
            choice.open(prompt.opening)
            self._parts[part] = (run, choice)
            run.parts.append(part)
            sampling = _params(job, index, min(job.max_tokens or room, room), prompt.grammar)
            self._batcher.submit(part, prompt.ids, sampling, run.parts[0])

    def _encode(self, job: Job) -> list[Prompt]:
        """The job's prompts, each of which leaves room for an answer: one that doesn't is found before any has begun."""
        if job.kind == "completions":
            return self._each_prompt(job, lambda prompt: Prompt(self._raw(prompt), grammar=job.grammar))
        text = self._render(job)
        opening, grammar = self._parsers.opening(job, text)
        ids = self._tokenizer.encode(text + opening)
        self._check_room_for_answer(ids, "messages")
        return [Prompt(ids, text[-END:], opening, grammar)]

    def _raw(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a completion's prompt."""
        if isinstance(prompt, str):
            ids = self._tokenizer.encode_prompt(prompt)
        else:
            check_ids("prompt", prompt, self._tokenizer.vocabulary_size)
            ids = prompt
        if not ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        self._check_room_for_answer(ids, "prompt")
        return ids

    def _check_room_for_answer(self, ids: list[int], param: str) -> None:
        context = self.model.context_length
        if len(ids) >= context:
            raise ContextLengthExceeded(
                f"the prompt has {len(ids)} tokens; the context of {self.plan.uid} holds {context}, answer included", param=param
            )

    def _render(self, job: Job) -> str:
        if self._template is None:
            raise InvalidRequest(f"{self.plan.uid} has no chat template; use /v1/completions", param="messages")
        plain = partial(plain_message, null=self._template.knows_no_content)
        messages = [plain(message) for message in job.chat.messages]
        try:
            return self._template.render(messages, job.tools, **job.variables)
        except InvalidRequest:
            if not any(message.tool_calls for message in job.chat.messages):
                raise
            messages = [plain(message, texts=True) for message in job.chat.messages]
            try:  # templates of DeepSeek put a call's arguments between other text
                return self._template.render(messages, job.tools, **job.variables)
            except InvalidRequest:
                log.debug("%s: arguments as text don't fit the chat template either", self.plan.uid)
            raise

    def _take(self, output: StepOutput | EngineError) -> None:
        if isinstance(output, EngineError):
            self.fail_all(output)
            return
        for token in output.tokens:
            part = self._parts.get(token.id)
            if part is None:  # it was stopped while this step ran
                continue
            self._attempt(part[0], self._token, *part, token)
        for error in output.errors:
            part = self._parts.get(error.id)
            if part is not None:
                run, choice = part
                cause = InvalidRequest(error.message, param=error.param) if error.status < 500 else EngineError(error.message)
                self.fail(run, run.job.blame(run.job.prompt_of(choice.index), cause))
        if output.unbegun:
            self._send_away(set(output.unbegun))

    def _send_away(self, unbegun: set[int]) -> None:
        """The engine has failed: requests of which it had taken in nothing may be served elsewhere. Why, the others are told next."""
        for run in {run for part in unbegun if (run := self._parts.get(part, (None,))[0]) is not None}:
            if len(run.parts) == run.job.choices and unbegun.issuperset(run.parts):
                self.fail(run, Unavailable("the engine has failed before it took this in", retry_after=1.0))

    def _token(self, run: Running, choice: Choice, token: TokenOut) -> None:
        if token.cached is not None:  # of several choices of a prompt, what none of them had to read
            prompt = run.job.prompt_of(choice.index)
            known = run.cached[prompt]
            run.cached[prompt] = token.cached if known is None else min(known, token.cached)
        delta = choice.add(token)
        if delta.finish is not None:
            self._parts.pop(token.id, None)
            run.parts.remove(token.id)
            if token.finish is None:  # a stop string: the engine doesn't know
                self._batcher.remove(token.id)
        self._deliver(run, delta)

    def _stop_part(self, part: int) -> None:
        self._parts.pop(part, None)
        self._batcher.remove(part)


def _params(job: Job, index: int, most: int, grammar: Grammar | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=most,
        logit_bias=job.logit_bias,
        seed=job.seed_of(index),
        ignore_eos=job.ignore_eos,
        logprobs=job.logprobs,
        grammar=grammar,
        adapter=job.adapter,
        **job.sampling,
    )


def as_engine_error(error: BaseException) -> EngineError:
    log.error("the engine failed", exc_info=error)
    message = error.message if isinstance(error, XiError) else f"{type(error).__name__}: {error}"
    return EngineError(f"the engine failed: {message}")


def plain_message(message: Message, *, null: bool = False, texts: bool = False) -> dict[str, Any]:
    """A message as templates expect it: text content, arguments of tool calls as objects, or as `texts`, `developer` as `system`.

    `null`: where there is a call and no content, that is None, and not empty.
    """
    plain: dict[str, Any] = msgspec.to_builtins(message)
    plain["content"] = None if null and message.tool_calls and message.content is None else message_text(message)
    if message.role == "developer":
        plain["role"] = "system"
    for call in plain.get("tool_calls") or []:
        given = call["function"]["arguments"]
        call["function"]["arguments"] = (given or "{}") if texts else _arguments(given)
    return plain


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text or "{}")
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"messages: a tool call's arguments are not valid JSON: {error}", param="messages") from None
