"""llama-cpp-python's batches by a bare loop over its functions. It imports nothing that the library's environment doesn't have."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import CONTEXT, SLOTS

CAPACITY = 512
"""Most tokens of one batch."""


class BareLlama:
    """The shortest loop that batches: one cache for all sequences, prompts first, then a token of each at a time. Greedy."""

    def __init__(self, model: Path, threads: int) -> None:
        import llama_cpp

        self._library: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
        self._size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max, parameters.kv_unified = CONTEXT * SLOTS, SLOTS, True
        parameters.n_batch = parameters.n_ubatch = CAPACITY
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._batch = llama_cpp.llama_batch_init(CAPACITY, 0, 1)

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds for these prompts with so many tokens each."""
        began = time.perf_counter()
        newest = [0] * len(prompts)
        per_batch = CAPACITY // len(prompts[0])
        for first in range(0, len(prompts), per_batch):
            some = range(first, min(first + per_batch, len(prompts)))
            for sequence in some:
                for position, token in enumerate(prompts[sequence]):
                    self._put(token, position, sequence, wanted=position == len(prompts[sequence]) - 1)
            newest[some.start : some.stop] = self._decode(len(some))
        for step in range(tokens - 1):
            for sequence, token in enumerate(newest):
                self._put(token, len(prompts[sequence]) + step, sequence, wanted=True)
            newest = self._decode(len(prompts))
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), False)
        return time.perf_counter() - began

    def _put(self, token: int, position: int, sequence: int, *, wanted: bool) -> None:
        batch, index = self._batch, self._batch.n_tokens
        batch.token[index], batch.pos[index] = token, position
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.logits[index] = wanted
        batch.n_tokens = index + 1

    def _decode(self, rows: int) -> list[int]:
        import numpy

        status = self._library.llama_decode(self._context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")
        self._batch.n_tokens = 0
        logits = numpy.ctypeslib.as_array(self._library.llama_get_logits(self._context), shape=(rows, self._size))
        best: list[int] = logits.argmax(-1).tolist()
        return best
