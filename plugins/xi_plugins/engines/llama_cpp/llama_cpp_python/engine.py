"""`LlamaCppPythonEngine`: GGUF models on llama-cpp-python's batches. Loaded in the replica, stepped by xi's batcher."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec

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
from xi_core.engine.sequence_check import check_sequence
from xi_core.errors import EngineError
from xi_core.machine import fewer_than_cores
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.llama_cpp.gguf import read_header
from xi_plugins.engines.llama_cpp.llama_cpp_python.context import Context
from xi_plugins.engines.llama_cpp.llama_cpp_python.library import load_library, memory
from xi_plugins.engines.llama_cpp.llama_cpp_python.model import Model, load_model
from xi_plugins.engines.llama_cpp.llama_cpp_python.sampling import RowSampler, sample
from xi_plugins.engines.llama_cpp.llama_cpp_python.slots import Sequence, Slots
from xi_plugins.engines.llama_cpp.llama_cpp_python.tokenizer import GgufTokenizer
from xi_plugins.engines.llama_cpp.options import LlamaCppPythonOptions
from xi_plugins.engines.llama_cpp.plugin import python_manifest
from xi_plugins.engines.llama_cpp.sizing import room, size_for, threads_for

_GPU_SHARE = 0.9
"""Part of the devices' free memory that weights and cache may take; the rest is for computing."""
_LEAST_CHUNK = 32
"""Prompt tokens per step that there is always room for, however many sequences decode."""


class LlamaCppPythonEngine(TokenEngine):
    """One GGUF model. Each step decodes a token of every running sequence, and reads prompts until the batch is full."""

    _tokenizer: GgufTokenizer
    _grammars: GrammarCompiler
    _slots: Slots

    def __init__(self) -> None:
        self._context: Context | None = None
        self._computing = threading.Lock()
        self._default_sampling: dict[str, Any] = {}
        self._ends: frozenset[int] = frozenset()
        self._length = self._size = self._batch = 0
        self._reuses = False
        self._sequences: dict[int, Sequence] = {}
        self._stats = EngineStats()

    # ---- life ----

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        library = load_library()
        options = read_options("llama-cpp-python", LlamaCppPythonOptions, plan.options)
        progress("reading the model's header", None)
        header = read_header(Path(plan.artifact.path))
        free, own = memory(bool(plan.devices))
        most = min(plan.limits.batch_size, library.llama_max_parallel_sequences())
        size = size_for(header, options, room(header, options, int(free * _GPU_SHARE), own), most, on_devices=free > 0)
        model = load_model(library, plan, options, progress)
        progress("preparing to compute", None)
        self._length, self._size = size.context_length, model.size
        self._batch = max(options.batch_size, size.slots + _LEAST_CHUNK)
        self._context = Context(model, options, size, threads_for(header, options, fewer_than_cores()), self._batch)
        self._reuses = options.cache_prompt and model.rewinds and (not model.window or options.swa_full)
        self._slots = Slots(size.slots, self._length if self._reuses else 0)
        self._default_sampling = header.sampling
        self._read_tokens(model)
        if options.warmup:
            _warm_up(self._context, min(self._ends, default=0))
        return LoadedModel(context_length=self._length, slots=size.slots, manifest=python_manifest(ends=bool(self._ends)))

    def _read_tokens(self, model: Model) -> None:
        self._tokenizer = GgufTokenizer(model)
        self._ends = self._tokenizer.ends
        self._grammars = GrammarCompiler(self._tokenizer, self._ends)

    def close(self, grace: float) -> None:
        if self._computing.acquire(timeout=max(0.0, grace)):
            context, self._context = self._context, None
            self._sequences.clear()
            if context is not None:
                context.close()
            self._computing.release()

    def check(self) -> None:
        if self._context is None:
            raise EngineError("no model is loaded in llama-cpp-python, or it was closed")

    def stats(self) -> EngineStats:
        return msgspec.structs.replace(self._stats, running=len(self._sequences))

    @property
    def tokenizer(self) -> GgufTokenizer:
        return self._tokenizer

    @property
    def default_sampling(self) -> dict[str, Any]:
        return self._default_sampling

    # ---- sequences ----

    def has_capacity(self) -> bool:
        return self._slots.free > 0

    def prepare(self, grammar: Grammar) -> None:
        self._grammars.prepare(grammar)

    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        if not self.has_capacity():
            raise EngineError(f"all {self._slots.count} slots are taken")
        check_sequence(prompt, sampling, self._length, self._size)
        grammar = self._grammars.matcher(sampling.grammar) if sampling.grammar is not None else None
        sampler = RowSampler(sampling, prompt, self._size, grammar)
        with self._computing:
            slot, filled = self._begin(self._ready(), prompt, reuse=self._reuses and sampling.seed is None)
        self._sequences[id] = Sequence(id, prompt, sampling, sampler, slot, filled, cached=filled)
        self._stats.reused += filled

    def _begin(self, context: Context, prompt: list[int], *, reuse: bool) -> tuple[int, int]:
        """A slot, and how many tokens of the prompt are in the cache already."""
        place = self._slots.take(prompt, reuse=reuse)
        if place.source == place.slot:
            context.trim(place.slot, place.kept)
        else:
            context.trim(place.slot, 0)
            if place.kept:
                context.share(place.source, place.slot, place.kept)
        return place.slot, place.kept

    def remove(self, id: int) -> None:
        sequence = self._sequences.get(id)
        if sequence is not None:
            with self._computing:
                self._drop(self._ready(), sequence)

    def _drop(self, context: Context, sequence: Sequence, *, broken: bool = False) -> None:
        del self._sequences[sequence.id]
        for slot in self._slots.release(sequence.slot, broken=broken):
            context.trim(slot, 0)

    def _ready(self) -> Context:
        if self._context is None:
            raise EngineError("the engine is closed")
        return self._context

    # ---- the step ----

    def step(self) -> StepOutput:
        output = StepOutput(tokens=[])
        with self._computing:
            context = self._ready()
            rows, some = self._fill(context)
            if some:
                self._choose(context, rows, output)
        self._stats.steps += 1
        self._stats.tokens += len(output.tokens)
        return output

    def _fill(self, context: Context) -> tuple[list[Sequence], bool]:
        """Fill the batch. Returns the sequences that get a token, in the batch's order, and whether there is anything to compute."""
        rows = [sequence for sequence in self._sequences.values() if sequence.decodes]
        for row in rows:
            self._put(context, row, [row.last], ends=True)
        room = self._batch - len(rows)
        for sequence in self._sequences.values():
            if sequence.decodes:
                continue
            tokens = sequence.prompt[sequence.filled : sequence.filled + room]
            if not tokens:
                break
            room -= len(tokens)
            self._stats.prefilled += len(tokens)
            ends = sequence.filled + len(tokens) == len(sequence.prompt)
            self._put(context, sequence, tokens, ends=ends)
            if ends:
                rows.append(sequence)
        return rows, room < self._batch

    def _put(self, context: Context, sequence: Sequence, tokens: list[int], *, ends: bool) -> None:
        context.put(sequence.slot, sequence.filled, tokens, ends=ends)
        sequence.filled += len(tokens)
        self._slots.extend(sequence.slot, tokens)

    def _choose(self, context: Context, rows: list[Sequence], output: StepOutput) -> None:
        """Compute the batch, and choose a token for each of `rows`; those that end with it leave."""
        logits = context.decode()
        if not rows:
            return
        tokens, logprobs = sample(logits, [row.sampler for row in rows])
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token is None:
                why = row.sampler.failure
                output.errors.append(SequenceError(row.id, why.message, why.status, why.param))
                self._drop(context, row, broken=True)
                continue
            row.sampler.accept(token)
            row.last = token
            row.made += 1
            finish = self._finish(row)
            output.tokens.append(TokenOut(row.id, token, finish, logprobs.get(index), row.cached if row.made == 1 else None))
            if finish is not None:
                self._drop(context, row)

    def _finish(self, row: Sequence) -> FinishReason | None:
        if row.last in self._ends and not row.sampling.ignore_eos:
            return "stop"
        if row.made >= row.sampling.max_tokens or len(row.prompt) + row.made >= self._length:
            return "length"
        return None


def _warm_up(context: Context, token: int) -> None:
    """Compute once, so that what can't be computed fails the launch and not the first request."""
    context.put(0, 0, [token], ends=True)
    context.decode()
    context.trim(0, 0)
