"""llama.cpp's context: the cache of all sequences, and batches of tokens that are decoded in it. Made and called by `engine.py`.

The cache is one for all sequences (`kv_unified`): a batch is then computed at once whichever sequences are in it, and sequences share the
cells of a beginning that they have in common. `llama_decode` may be called from one thread at a time.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from xi_core.errors import EngineError
from xi_core.machine import cpus
from xi_plugins.engines.llama_cpp.llama_cpp_python.library import forget_errors, reasons
from xi_plugins.engines.llama_cpp.llama_cpp_python.model import Model
from xi_plugins.engines.llama_cpp.options import LlamaCppPythonOptions
from xi_plugins.engines.llama_cpp.sizing import Size

_UBATCH = 512
_FLASH: dict[str | bool, int] = {"auto": -1, "on": 1, "off": 0, True: 1, False: 0}
_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
"""ggml's numbers of the cache's types, which are part of the GGUF format and don't change."""


class Context:
    """The cache, and the batch that is being filled."""

    def __init__(self, model: Model, options: LlamaCppPythonOptions, size: Size, threads: int | None, capacity: int) -> None:
        """`capacity`: most tokens of one batch. Raises `EngineError` where llama.cpp can't compute with these options."""
        library = model.library
        parameters = _parameters(library, options, size, threads, capacity)
        forget_errors()
        self._pointer = library.llama_init_from_model(model.pointer, parameters)
        if not self._pointer:
            raise EngineError(f"llama.cpp can't compute with these options (fewer slots or a shorter context_length may help): {reasons()}")
        self._model = model
        self._library = library
        self._memory = library.llama_get_memory(self._pointer)
        self._batch = _Batch(library, capacity)

    def put(self, slot: int, position: int, tokens: list[int], *, ends: bool) -> None:
        """Add a sequence's tokens to the batch, the first at `position`; `ends`: logits are wanted after the last."""
        batch = self._batch
        start, end = batch.count, batch.count + len(tokens)
        batch.tokens[start:end] = tokens
        batch.positions[start:end] = range(position, position + len(tokens))
        batch.slots[start:end] = slot
        batch.wanted[start:end] = 0
        batch.wanted[end - 1] = ends
        batch.count = end
        batch.outputs += ends

    def decode(self) -> npt.NDArray[np.float32]:
        """Compute the batch and empty it. Logits `(wanted, vocabulary)` in order of `put`, valid until the next call."""
        batch, outputs = self._batch, self._batch.outputs
        batch.structure.n_tokens = batch.count
        batch.count = batch.outputs = 0
        status = self._library.llama_decode(self._pointer, batch.structure)
        if status:
            raise EngineError(f"llama.cpp failed to decode a batch (status {status})")
        if not outputs:
            return np.zeros((0, self._model.size), np.float32)
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._pointer), shape=(outputs, self._model.size))

    def trim(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens of a slot's sequence. Raises `EngineError` where the model can't."""
        if not self._library.llama_memory_seq_rm(self._memory, slot, length, -1):
            raise EngineError(f"llama.cpp can't keep {length} tokens of a sequence of this model; launch with cache_prompt false")

    def share(self, source: int, target: int, length: int) -> None:
        """Let the empty slot `target` begin with the first `length` tokens of `source`. Nothing is copied."""
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def close(self) -> None:
        """Free it. No call may be running."""
        self._library.llama_free(self._pointer)


class _Batch:
    """Arrays that llama.cpp reads, and its structure that points at them."""

    def __init__(self, library: Any, capacity: int) -> None:
        self.count = self.outputs = 0
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.slots = np.zeros(capacity, np.int32)
        self.wanted = np.zeros(capacity, np.int8)
        self._ones = np.ones(capacity, np.int32)
        each = self.slots.ctypes.data + np.arange(capacity, dtype=np.uintp) * self.slots.itemsize
        self._addresses = each.astype(np.uintp)
        self.structure = library.llama_batch()
        self.structure.token = _at(self.tokens, library.llama_token)
        self.structure.pos = _at(self.positions, library.llama_pos)
        self.structure.n_seq_id = _at(self._ones, ctypes.c_int32)
        self.structure.seq_id = _at(self._addresses, ctypes.POINTER(library.llama_seq_id))
        self.structure.logits = _at(self.wanted, ctypes.c_int8)


def _at(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def _parameters(library: Any, options: LlamaCppPythonOptions, size: Size, threads: int | None, capacity: int) -> Any:
    parameters = library.llama_context_default_params()
    parameters.n_ctx = size.context_length * size.slots
    parameters.n_seq_max = parameters.n_outputs_max = size.slots
    parameters.kv_unified = True
    parameters.n_batch = capacity
    parameters.n_ubatch = options.ubatch_size or min(_UBATCH, capacity)
    parameters.n_threads = threads or cpus()
    parameters.n_threads_batch = options.threads_batch or parameters.n_threads
    parameters.flash_attn_type = _FLASH[options.flash_attention]
    parameters.type_k, parameters.type_v = _TYPES[options.cache_type_k], _TYPES[options.cache_type_v]
    parameters.offload_kqv = options.kv_offload
    parameters.swa_full = options.swa_full
    parameters.no_perf = True
    if options.rope_freq_base is not None:
        parameters.rope_freq_base = options.rope_freq_base
    if options.rope_freq_scale is not None:
        parameters.rope_freq_scale = options.rope_freq_scale
    return parameters
