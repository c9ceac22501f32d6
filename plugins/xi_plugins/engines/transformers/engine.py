"""`TransformersEngine`: Hugging Face models with continuous batching. Loaded in the replica, stepped by xi's batcher."""

from __future__ import annotations

from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import msgspec
import torch

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
from xi_core.errors import ContextLengthExceeded, EngineError, InvalidRequest, UnknownOption
from xi_core.models import checkpoint
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.transformers import loading
from xi_plugins.engines.transformers.batch import Batch, Chunk, Sequence
from xi_plugins.engines.transformers.plugin import TransformersOptions, full_manifest
from xi_plugins.engines.transformers.runner import Runner
from xi_plugins.engines.transformers.sampling import RowSampler, sample
from xi_plugins.engines.transformers.tokenizer import HubTokenizer

Row = Sequence[RowSampler]


class TransformersEngine(TokenEngine):
    """One model. Each step decodes a token of every running sequence, and reads up to `prefill_chunk` tokens of new prompts."""

    _runner: Runner
    _batch: Batch[RowSampler]
    _tokenizer: HubTokenizer
    _grammars: GrammarCompiler

    def __init__(self) -> None:
        self._default_sampling: dict[str, Any] = {}
        self._ends: frozenset[int] = frozenset()
        self._context = self._size = self._chunk = 0
        self._device = torch.device("cpu")
        self._stats = EngineStats()

    # ---- life ----

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        options = _options(plan.options)
        directory = Path(plan.artifact.path)
        torch.set_num_threads(options.threads or loading.usable_cpus())
        progress("reading the configuration", None)
        config = loading.load_config(directory)
        self._device = loading.choose_device(options.device, plan.devices)
        self._context = loading.context_length(config, options.context_length)
        self._chunk = options.prefill_chunk
        loading.check_attention(config, self._context)
        progress("loading the weights", None)
        dtype = loading.choose_dtype(options.dtype, config.dtype, self._device)
        model = loading.load_model(directory, config, dtype, self._device)
        self._size = model.get_input_embeddings().weight.shape[0]
        self._read_tokens(directory)
        progress("checking the model", None)
        slots = options.batch_size or plan.limits.batch_size
        self._runner = Runner(model, slots, self._context)
        self._runner.check()
        self._batch = Batch(slots, self._runner.cache.move)
        return LoadedModel(context_length=self._context, slots=slots, manifest=full_manifest(ends=bool(self._ends)))

    def _read_tokens(self, directory: Path) -> None:
        self._tokenizer = HubTokenizer.load(directory, self._size)
        generation = checkpoint.read_json(directory / "generation_config.json")
        ends = checkpoint.end_tokens(checkpoint.read_config(directory), generation)
        own = self._tokenizer.token_id(self._tokenizer.special_tokens.get("eos_token", ""))
        self._ends = frozenset(ends if own is None else ends | {own})
        self._default_sampling = checkpoint.default_sampling(generation)
        self._grammars = GrammarCompiler(self._tokenizer, self._ends)

    def close(self, grace: float) -> None:
        self.__dict__.pop("_batch", None)
        self.__dict__.pop("_runner", None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def stats(self) -> EngineStats:
        return msgspec.structs.replace(self._stats, running=len(self._batch) if hasattr(self, "_batch") else 0)

    @property
    def tokenizer(self) -> HubTokenizer:
        return self._tokenizer

    @property
    def default_sampling(self) -> dict[str, Any]:
        return self._default_sampling

    # ---- sequences ----

    def has_capacity(self) -> bool:
        return len(self._batch) < self._batch.slots

    def prepare(self, grammar: Grammar) -> None:
        self._grammars.prepare(grammar)

    @torch.inference_mode()
    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        if not self.has_capacity():
            raise EngineError(f"all {self._batch.slots} slots are taken")
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if len(prompt) >= self._context:
            raise ContextLengthExceeded(
                f"the prompt has {len(prompt)} tokens; the context holds {self._context}, answer included", param="prompt"
            )
        self._check_ids("prompt", prompt)
        self._check_ids("logit_bias", list(sampling.logit_bias))
        grammar = self._grammars.matcher(sampling.grammar) if sampling.grammar is not None else None
        self._batch.waiting.append(Sequence(id, prompt, sampling, RowSampler(sampling, prompt, self._size, self._device, grammar)))

    def _check_ids(self, name: str, ids: list[int]) -> None:
        if ids and not (min(ids) >= 0 and max(ids) < self._size):
            wrong = next(id for id in ids if not 0 <= id < self._size)
            raise InvalidRequest(f"{name}: token id {wrong} is outside the vocabulary of {self._size}", param=name)

    @torch.inference_mode()  # the cache's rows were made in this mode and can be moved in no other
    def remove(self, id: int) -> None:
        sequence = self._batch.find(id)
        if sequence is not None:
            self._batch.remove(sequence)

    # ---- the step ----

    @torch.inference_mode()
    def step(self) -> StepOutput:
        output = StepOutput(tokens=[])
        groups = self._batch.groups(self._chunk)
        try:
            if self._batch.decoding:
                self._decode(output)
            for group in groups:
                self._prefill(group, output)
        except RuntimeError as error:  # what torch raises, on any device
            raise EngineError(f"the model failed in a step: {error}") from error
        self._stats.steps += 1
        self._stats.tokens += len(output.tokens)
        return output

    def _decode(self, output: StepOutput) -> None:
        longest = max(self._batch.decoding, key=lambda row: row.filled)
        if not self._reserve(longest.filled + 1, 0, [longest], output):
            return
        rows = list(self._batch.decoding)
        logits = self._runner.decode([row.last for row in rows], [row.filled for row in rows])
        for row in rows:
            row.filled += 1
        self._choose(logits, rows, output)

    def _prefill(self, group: list[Chunk[RowSampler]], output: StepOutput) -> None:
        width = max(chunk.count for chunk in group)
        columns = max(chunk.sequence.filled for chunk in group) + width
        if not self._reserve(columns, len(group), [chunk.sequence for chunk in group], output):
            return
        first = len(self._batch.decoding)
        logits = self._runner.prefill(first, [chunk.tokens for chunk in group], [chunk.sequence.filled for chunk in group])
        ready = self._batch.advance(group)
        if ready:  # at most the last of a group isn't
            self._choose(logits[: len(ready)], ready, output)

    def _reserve(self, columns: int, more: int, wanting: list[Row], output: StepOutput) -> bool:
        """Room in the cache for rows of `columns` columns, `more` of them new; without it those who want it end, and the others go on."""
        batch = self._batch
        try:
            lengths = batch.lengths
            self._runner.cache.reserve(columns, lengths, max(len(lengths), len(batch.decoding) + more))
        except MemoryError as error:
            for row in wanting:
                batch.remove(row)
                output.errors.append(SequenceError(row.id, str(error)))
            return False
        return True

    def _choose(self, logits: torch.Tensor, rows: Items[Row], output: StepOutput) -> None:
        """A token for each of `rows`; those that end with it leave."""
        tokens, logprobs = sample(logits, [row.sampler for row in rows])
        leaving: list[Row] = []
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token is None:
                self._runner.cache.wipe(self._batch.decoding.index(row))
                why = row.sampler.failure
                output.errors.append(SequenceError(row.id, why.message, why.status, why.param))
                leaving.append(row)
                continue
            row.sampler.accept(token)
            row.last = token
            row.made += 1
            finish = self._finish(row)
            if finish is not None:
                leaving.append(row)
            output.tokens.append(TokenOut(row.id, token, finish, logprobs.get(index)))
        for row in leaving:
            self._batch.remove(row)

    def _finish(self, row: Row) -> FinishReason | None:
        if row.last in self._ends and not row.sampling.ignore_eos:
            return "stop"
        if row.made >= row.sampling.max_tokens or len(row.prompt) + row.made >= self._context:
            return "length"
        return None


def _options(options: dict[str, Any]) -> TransformersOptions:
    try:
        return msgspec.convert(options, TransformersOptions)
    except msgspec.ValidationError as error:
        raise UnknownOption(f"engine transformers: {error}") from None
