"""`MlxEngine`: models on MLX with mlx-lm's continuous batching. Loaded in the replica, stepped by xi's batcher."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
from mlx_lm.generate import BatchGenerator

from xi_core.engine.base import (
    EngineStats,
    FinishReason,
    LoadedModel,
    Progress,
    SamplingParams,
    SequenceError,
    StepOutput,
    TokenEngine,
    TokenOut,
)
from xi_core.engine.grammar import Grammar, GrammarCompiler
from xi_core.engine.info import read_options
from xi_core.engine.rank_link import RankLink
from xi_core.engine.rank_socket import SocketLink
from xi_core.engine.sequence_check import check_sequence
from xi_core.errors import EngineError
from xi_core.models import checkpoint
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.mlx import loading, ranks
from xi_plugins.engines.mlx.plugin import MlxOptions, full_manifest
from xi_plugins.engines.mlx.sampling import Row, Sampler, token_logprobs


class _Running(msgspec.Struct):
    """A sequence in the generator, which knows it by another number than xi. `made` counts its tokens."""

    id: int
    uid: int
    row: Row
    made: int = 0


class MlxEngine(TokenEngine):
    """One model. Each step decodes a token of every running sequence, and reads a chunk of each of the new prompts."""

    _tokenizer: loading.MlxTokenizer
    _grammars: GrammarCompiler

    def __init__(self) -> None:
        self._default_sampling: dict[str, Any] = {}
        self._ends: frozenset[int] = frozenset()
        self._context = self._size = self._slots = 0
        self._generator: Any = None
        self._sampler = Sampler()
        self._by_id: dict[int, _Running] = {}
        self._by_uid: dict[int, _Running] = {}
        self._stats = EngineStats()
        self._link: SocketLink | None = None

    # ---- life ----

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        options = read_options("mlx", MlxOptions, plan.options)
        directory = Path(plan.artifact.path)
        progress("reading the configuration", None)
        loading.check_devices(plan.devices)
        config = loading.read_config(directory)
        self._context = loading.context_length(config, options.context_length)
        self._slots = options.batch_size or plan.limits.batch_size
        ranks.check(plan, loading.text_part(config), options.pipeline)
        part = None
        if plan.rendezvous is not None:
            progress("meeting the other ranks", None)
            group = ranks.join(plan)
            self._link = SocketLink(plan, ranks.LINK_PORT, plan.limits.launch_timeout)
            part = partial(ranks.cut, group=group, pipeline=options.pipeline, name=config["model_type"])
        progress("loading the weights", None)
        model = loading.load_model(directory, config, part)
        self._size = loading.vocabulary_size(model)
        self._read_tokens(directory, config)
        self._generator = BatchGenerator(
            model,
            completion_batch_size=self._slots,
            prefill_batch_size=min(options.prefill_batch, self._slots),
            prefill_step_size=options.prefill_chunk,
        )
        return LoadedModel(context_length=self._context, slots=self._slots, manifest=full_manifest(ends=bool(self._ends)))

    def _read_tokens(self, directory: Path, config: dict[str, Any]) -> None:
        self._tokenizer = loading.MlxTokenizer.load(directory, self._size)
        generation = checkpoint.read_json(directory / "generation_config.json")
        ends = checkpoint.end_tokens(config, generation) | checkpoint.end_tokens(loading.text_part(config), {})
        own = self._tokenizer.token_id(self._tokenizer.special_tokens.get("eos_token", ""))
        self._ends = frozenset(ends if own is None else ends | {own})
        self._default_sampling = checkpoint.default_sampling(generation)
        self._grammars = GrammarCompiler(self._tokenizer, self._ends, timed=self._link is None)

    def close(self, grace: float) -> None:
        self._generator = None  # its end gives back the limits that it set
        self._by_id.clear()
        self._by_uid.clear()

    def stats(self) -> EngineStats:
        return msgspec.structs.replace(self._stats, running=len(self._by_id))

    @property
    def rank_link(self) -> RankLink | None:
        return self._link

    @property
    def tokenizer(self) -> loading.MlxTokenizer:
        return self._tokenizer

    @property
    def default_sampling(self) -> dict[str, Any]:
        return self._default_sampling

    # ---- sequences ----

    def has_capacity(self) -> bool:
        return len(self._by_id) < self._slots

    def prepare(self, grammar: Grammar) -> None:
        self._grammars.prepare(grammar)

    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        if not self.has_capacity():
            raise EngineError(f"all {self._slots} slots are taken")
        check_sequence(prompt, sampling, self._context, self._size)
        grammar = self._grammars.matcher(sampling.grammar) if sampling.grammar is not None else None
        row = Row(self._sampler, sampling, len(prompt), grammar)
        (uid,) = self._generator.insert(
            [prompt],
            max_tokens=[min(sampling.max_tokens, self._context - len(prompt))],
            samplers=[self._sampler],
            logits_processors=[[row]],
        )
        self._by_id[id] = self._by_uid[uid] = _Running(id, uid, row)

    def remove(self, id: int) -> None:
        running = self._by_id.get(id)
        if running is not None:
            self._forget(running)
            _drop(self._generator, [running])

    def _forget(self, running: _Running) -> None:
        self._by_id.pop(running.id, None)
        self._by_uid.pop(running.uid, None)

    # ---- the step ----

    def step(self) -> StepOutput:
        output = StepOutput(tokens=[])
        generator = self._generator  # `close` doesn't wait for ever for a step
        try:
            _, answers = generator.next()
            _drop(generator, [running for answer in answers if (running := self._take(answer, output)) is not None])
        except (RuntimeError, ValueError) as error:  # what mlx and mlx-lm raise, on any device
            raise EngineError(f"the model failed in a step: {error}") from error
        self._stats.steps += 1
        self._stats.tokens += len(output.tokens)
        return output

    def _take(self, answer: Any, output: StepOutput) -> _Running | None:
        """Put one sequence's new token into `output`; the sequence, if it ends for a reason that the generator doesn't know."""
        running = self._by_uid.get(answer.uid)
        if running is None:
            return None
        running.made += 1
        sampling, token = running.row.params, answer.token
        values = np.asarray(answer.logprobs)
        failure = running.row.failure(running.made)
        if failure is None and not np.isfinite(values[token]):
            failure = EngineError("the model gave numbers that are not finite")
        finish: FinishReason | None = "stop" if token in self._ends and not sampling.ignore_eos else answer.finish_reason
        if failure is not None:
            output.errors.append(SequenceError(running.id, failure.message, failure.status, failure.param))
        else:
            logprobs = None if sampling.logprobs is None else token_logprobs(values, token, sampling.logprobs)
            output.tokens.append(TokenOut(running.id, token, finish, logprobs))
            if finish is None:
                return None
        self._forget(running)
        return running if answer.finish_reason is None else None


def _drop(generator: Any, leaving: list[_Running]) -> None:
    """Take sequences out of the generator, on the stream that it computes on."""
    if leaving:
        with mx.stream(generator.stream):
            generator.remove([running.uid for running in leaving])
