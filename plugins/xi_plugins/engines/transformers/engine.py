"""`TransformersEngine`: Hugging Face models with continuous batching. Loaded in the replica, stepped by xi's batcher."""

from __future__ import annotations

from collections.abc import Sequence as Items
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from xi_core.engine.info import read_options
from xi_core.engine.rank_link import RankLink
from xi_core.engine.sequence_check import check_sequence
from xi_core.errors import EngineError, EngineNotInstalled, InvalidRequest
from xi_core.machine import cpus
from xi_core.models import checkpoint
from xi_core.wire.plan import LaunchPlan, LoraModule
from xi_plugins.engines.transformers import loading, ranks
from xi_plugins.engines.transformers.batch import Batch, Chunk, Sequence
from xi_plugins.engines.transformers.devices import choose_layout
from xi_plugins.engines.transformers.plugin import INSTALL, TransformersOptions, full_manifest
from xi_plugins.engines.transformers.quantization import stored_method
from xi_plugins.engines.transformers.runner import Runner
from xi_plugins.engines.transformers.sampling import RowSampler, sample
from xi_plugins.engines.transformers.tokenizer import HubTokenizer, TrustingTokenizer

if TYPE_CHECKING:
    from xi_plugins.engines.transformers.lora import Adapters

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
        self._adapters: Adapters | None = None
        self._link: RankLink | None = None

    # ---- life ----

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        options = read_options("transformers", TransformersOptions, plan.options)
        directory = Path(plan.artifact.path)
        torch.set_num_threads(options.threads or cpus())
        progress("reading the configuration", None)
        config = loading.load_config(directory, plan.trust_remote_code)
        layout = choose_layout(options.device, plan.devices, options.device_map)
        self._device = layout.first
        self._context = loading.context_length(config, options.context_length)
        self._chunk = options.prefill_chunk
        loading.check_attention(config, self._context)
        if plan.rendezvous is not None:
            ranks.check(plan, config, quantized=options.quantize is not None or bool(stored_method(config)))
            progress("meeting the other ranks", None)
            ranks.join(plan, self._device)
        progress("loading the weights", None)
        dtype = loading.choose_dtype(options.dtype, config.dtype, self._device)
        part, trust = ranks.arguments(plan), plan.trust_remote_code
        model = loading.load_model(directory, config, dtype, layout, options.quantize, part, trust=trust, pickled=plan.pickled_weights)
        if plan.rendezvous is not None:
            ranks.check_parts(model, len(plan.rendezvous.world))
            self._link = ranks.TorchLink(plan)
        self._size = model.get_input_embeddings().weight.shape[0]
        self._read_tokens(directory, trust)
        if plan.lora_modules:
            progress("loading the LoRA modules", None)
            self._adapters = _adapters(model, plan.lora_modules)
        progress("checking the model", None)
        slots = options.batch_size or plan.limits.batch_size
        self._runner = Runner(model, slots, self._context, self._device)
        self._runner.check()
        self._batch = Batch(slots, self._runner.cache, reuse=options.enable_prefix_caching)
        return LoadedModel(context_length=self._context, slots=slots, manifest=full_manifest(ends=bool(self._ends)))

    def _read_tokens(self, directory: Path, trust: bool) -> None:
        self._tokenizer = (TrustingTokenizer if trust else HubTokenizer).load(directory, self._size)
        generation = checkpoint.read_json(directory / "generation_config.json")
        ends = checkpoint.end_tokens(checkpoint.read_config(directory), generation)
        own = self._tokenizer.token_id(self._tokenizer.special_tokens.get("eos_token", ""))
        self._ends = frozenset(ends if own is None else ends | {own})
        self._default_sampling = checkpoint.default_sampling(generation)
        self._grammars = GrammarCompiler(self._tokenizer, self._ends, timed=self._link is None)

    def close(self, grace: float) -> None:
        self.__dict__.pop("_batch", None)
        self.__dict__.pop("_runner", None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def stats(self) -> EngineStats:
        return msgspec.structs.replace(self._stats, running=len(self._batch) if hasattr(self, "_batch") else 0)

    @property
    def rank_link(self) -> RankLink | None:
        return self._link

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
        check_sequence(prompt, sampling, self._context, self._size)
        if sampling.adapter is not None and (self._adapters is None or sampling.adapter not in self._adapters.names):
            raise InvalidRequest(f"there is no LoRA module '{sampling.adapter}'", param="model")
        grammar = self._grammars.matcher(sampling.grammar) if sampling.grammar is not None else None
        self._batch.waiting.append(Sequence(id, prompt, sampling, RowSampler(sampling, prompt, self._size, self._device, grammar)))

    @torch.inference_mode()  # the cache's rows were made in this mode and can be moved in no other
    def remove(self, id: int) -> None:
        sequence = self._batch.find(id)
        if sequence is not None:
            self._batch.remove(sequence)

    # ---- the step ----

    @torch.inference_mode()
    def step(self) -> StepOutput:
        output = StepOutput(tokens=[])
        try:
            if self._batch.decoding:
                self._decode(output)
            if self._batch.waiting:
                self._read_prompts(output)
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
        self._point(rows)
        logits = self._runner.decode([row.last for row in rows], [row.filled for row in rows])
        for row in rows:
            row.filled += 1
        self._choose(logits, rows, output)

    def _read_prompts(self, output: StepOutput) -> None:
        """As much of the prompts that wait as a step may read, in as many passes as that takes."""
        batch, budget = self._batch, self._chunk
        beyond = batch.waiting[max(0, self._runner.cache.rows - len(batch.decoding)) :]
        if beyond:
            self._reserve(0, len(batch), beyond, output)
        while group := batch.group(budget):
            budget -= sum(chunk.count for chunk in group)
            self._prefill(group, output)

    def _prefill(self, group: list[Chunk[RowSampler]], output: StepOutput) -> None:
        width = max(chunk.count for chunk in group)
        columns = max(chunk.sequence.filled for chunk in group) + width
        if not self._reserve(columns, 0, [chunk.sequence for chunk in group], output):
            return
        self._stats.prefilled += sum(chunk.count for chunk in group)
        first = len(self._batch.decoding)
        self._point([chunk.sequence for chunk in group])
        logits = self._runner.prefill(first, [chunk.tokens for chunk in group], [chunk.sequence.filled for chunk in group])
        ready = self._batch.advance(group)
        self._stats.reused += sum(row.reused for row in ready)
        if ready:  # at most the last of a group isn't
            self._choose(logits[: len(ready)], ready, output)

    def _point(self, rows: list[Row]) -> None:
        """Say which adapters the next pass is for."""
        if self._adapters is not None:
            self._adapters.point([row.sampling.adapter for row in rows])

    def _reserve(self, columns: int, rows: int, wanting: list[Row], output: StepOutput) -> bool:
        """Room in the cache for `rows` rows of `columns` columns; without it those who want it end, and the others go on."""
        try:
            self._runner.cache.reserve(columns, self._batch.lengths, rows)
        except MemoryError as error:
            self._batch.remove_all(wanting)
            output.errors += [SequenceError(row.id, str(error)) for row in wanting]
            return False
        return True

    def _choose(self, logits: torch.Tensor, rows: Items[Row], output: StepOutput) -> None:
        """A token for each of `rows`; those that end with it leave."""
        tokens, logprobs = sample(logits, [row.sampler for row in rows])
        leaving: list[Row] = []
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token is None:
                self._runner.cache.wipe(self._batch.decoding.index(row))
                row.filled = 0
                why = row.sampler.failure
                output.errors.append(SequenceError(row.id, why.message, why.status, why.param))
                leaving.append(row)
                continue
            row.sampler.accept(token)
            row.accept(token)
            finish = self._finish(row)
            if finish is not None:
                leaving.append(row)
            cached = row.reused if row.made == 1 else None
            output.tokens.append(TokenOut(row.id, token, finish, logprobs.get(index), cached))
        self._batch.remove_all(leaving)

    def _finish(self, row: Row) -> FinishReason | None:
        if row.last in self._ends and not row.sampling.ignore_eos:
            return "stop"
        if row.made >= row.sampling.max_tokens or len(row.prompt) + row.made >= self._context:
            return "length"
        return None


def _adapters(model: Any, modules: list[LoraModule]) -> Adapters:
    try:
        from xi_plugins.engines.transformers.lora import Adapters
    except ImportError as error:
        raise EngineNotInstalled(f"LoRA modules need peft, which can't be imported ({error}): {INSTALL}", param="lora_modules") from error
    return Adapters(model, modules)
