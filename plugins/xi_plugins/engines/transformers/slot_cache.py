"""`SlotCache`: keys and values of all running sequences, a row for each. Given to the model by runner.py."""

from __future__ import annotations

import math
from typing import Any

import numpy
import torch
from transformers.cache_utils import Cache

FIRST_ROWS, FIRST_COLUMNS = 4, 256


class _Layer:
    """Buffers of one layer: `(rows, heads, columns, size)`, contiguous. The flat views have a line per (row, head, column)."""

    __slots__ = ("flat_keys", "flat_values", "heads", "keys", "values")

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values, self.heads = keys, values, keys.shape[1]
        self.flat_keys, self.flat_values = keys.view(-1, keys.shape[-1]), values.view(-1, values.shape[-1])


class SlotCache(Cache):
    """Row r holds the sequence in slot r, its tokens from column 0 on. Buffers start small and grow with rows and lengths,
    doubling up to `most_rows` and `most_columns`, beyond which they grow by what is asked for.

    Before each forward pass `point` says where its tokens go; the pass may span any run of neighbouring rows. Columns behind a row's
    own length hold leftovers, always finite, which the caller's mask hides.
    """

    def __init__(self, most_rows: int, most_columns: int) -> None:
        super().__init__(layers=[])
        self._most_rows, self._most_columns = most_rows, most_columns
        self.rows, self.columns = FIRST_ROWS, FIRST_COLUMNS
        self._layers: list[_Layer] = []
        self._first = self._until = 0
        self._at = torch.empty(0, dtype=torch.long)
        self._lines: dict[tuple[int, torch.device], torch.Tensor] = {}

    def point(self, first: int, columns: torch.Tensor, until: int) -> None:
        """The next pass writes token (i, j) to row `first + i`, column `columns[i, j]`, and reads columns below `until`."""
        self._first, self._at, self._until = first, columns, until
        self._lines.clear()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the model's attention: store what this pass computed, return all that the rows hold."""
        if layer_idx == len(self._layers):
            self._layers.append(self._new_layer(key_states, value_states, self.rows, self.columns))
        layer = self._layers[layer_idx]
        key = (layer.heads, layer.keys.device)  # layers of one model may lie on several devices
        lines = self._lines.get(key)
        if lines is None:
            lines = self._lines[key] = self._find_lines(layer.heads).to(layer.keys.device)
        layer.flat_keys.index_copy_(0, lines, key_states.reshape(-1, key_states.shape[-1]))
        layer.flat_values.index_copy_(0, lines, value_states.reshape(-1, value_states.shape[-1]))
        end = self._first + key_states.shape[0]
        return layer.keys[self._first : end, :, : self._until], layer.values[self._first : end, :, : self._until]

    def _find_lines(self, heads: int) -> torch.Tensor:
        device = self._at.device
        rows = torch.arange(self._first, self._first + self._at.shape[0], device=device)
        lines = (rows[:, None] * heads + torch.arange(heads, device=device)) * self.columns
        return (lines[:, :, None] + self._at[:, None, :]).view(-1)

    def reserve(self, columns: int, lengths: list[int], rows: int) -> None:
        """Make room for `rows` rows of `columns` columns, keeping row i's first `lengths[i]`. Raises `MemoryError`, changing nothing."""
        if rows <= self.rows and columns <= self.columns:
            return
        new_rows = self.rows if rows <= self.rows else max(rows, min(2 * self.rows, self._most_rows))
        new_columns = self.columns if columns <= self.columns else max(columns, min(2 * self.columns, self._most_columns))
        try:
            grown = [self._new_layer(layer.keys, layer.values, new_rows, new_columns) for layer in self._layers]
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise MemoryError(f"no memory for a cache of {new_rows} rows of {new_columns} tokens") from error
        for index, layer in enumerate(grown):
            old = self._layers[index]
            for row, length in enumerate(lengths):
                layer.keys[row, :, :length] = old.keys[row, :, :length]
                layer.values[row, :, :length] = old.values[row, :, :length]
            self._layers[index] = layer
        self.rows, self.columns = new_rows, new_columns

    def _new_layer(self, keys: torch.Tensor, values: torch.Tensor, rows: int, columns: int) -> _Layer:
        return _Layer(_zeros(keys, rows, columns), _zeros(values, rows, columns))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of row `source` to row `target`."""
        for layer in self._layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def exchange(self, one: int, length: int, other: int, other_length: int) -> None:
        """Let row `one`, which has `length` columns, and row `other`, which has `other_length`, change places."""
        for layer in self._layers:
            for buffer in (layer.keys, layer.values):
                held = buffer[one, :, :length].clone()
                buffer[one, :, :other_length] = buffer[other, :, :other_length]
                buffer[other, :, :length] = held

    def wipe(self, row: int) -> None:
        """Zero a row that may hold numbers that are not finite: even behind a mask these would spoil the row's next sequence."""
        for layer in self._layers:
            layer.keys[row].zero_()
            layer.values[row].zero_()

    def nbytes(self) -> int:
        """Size of all buffers; on a CPU, pages that were never written take no memory."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers)

    # ---- what the library asks a cache when it builds a mask, which it does only for passes that start all rows ----

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._until, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_compileable(self) -> bool:
        return False


def _zeros(like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Zeros of shape `(rows, heads, columns, size)`. On a CPU through calloc, whose pages take memory only once they are written."""
    shape = (rows, like.shape[1], columns, like.shape[3])
    if like.device.type != "cpu":
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    size = math.prod(shape) * like.element_size()
    raw = torch.from_numpy(numpy.zeros(size + 64, dtype=numpy.uint8))
    start = -raw.data_ptr() % 64  # torch's kernels like its own allocator's alignment
    return raw[start : start + size].view(like.dtype).view(shape)
