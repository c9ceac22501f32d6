"""`Runner`: forward passes of a model over the rows of a `SlotCache`. Used by engine.py, on the batcher's thread."""

from __future__ import annotations

import math
from typing import Any

import torch

from xi_core.errors import EngineError
from xi_plugins.engines.transformers.slot_cache import SlotCache

_SAME = 0.98
"""Least cosine between the logits of a pass with our cache and one without any. Rounding stays far above, a wrong cache far below."""


class Runner:
    """A model and its cache. All passes return logits of shape `(rows, vocabulary)`, of each row's last token."""

    def __init__(self, model: Any, slots: int, context_length: int, device: torch.device) -> None:
        """`device`: where the model takes token ids and gives logits."""
        self.cache = SlotCache(slots, context_length)
        self._model = model
        self._device = device
        self._dtype: torch.dtype = model.dtype
        self._last_position = context_length - 1

    def decode(self, tokens: list[int], lengths: list[int]) -> torch.Tensor:
        """One token for each of the first rows; row i holds `lengths[i]` tokens so far."""
        columns = torch.tensor(lengths, device=self._device)[:, None]
        ids = torch.tensor(tokens, device=self._device)[:, None]
        return self._forward(0, ids, columns, max(lengths) + 1, self._mask(columns, max(lengths) + 1))

    def prefill(self, first: int, chunks: list[list[int]], starts: list[int]) -> torch.Tensor:
        """Chunks of prompts into the rows from `first` on; row `first + i` holds `starts[i]` tokens so far.

        Shorter chunks are padded in front, so that the last token of each is the last of the pass. The padding goes to columns behind the
        chunk, where the row's next tokens overwrite it before anything reads it.
        """
        width = max(map(len, chunks))
        paddings = [width - len(chunk) for chunk in chunks]
        ids = [[0] * padding + chunk for padding, chunk in zip(paddings, chunks, strict=True)]
        spans = [
            [*range(start + len(chunk), start + width), *range(start, start + len(chunk))]
            for chunk, start in zip(chunks, starts, strict=True)
        ]
        columns = torch.tensor(spans, device=self._device)
        until = max(starts) + width
        whole = not any(starts) and not any(paddings)  # then plain causal attention will do, without a mask
        mask = None if whole else self._mask(columns, until)
        return self._forward(first, torch.tensor(ids, device=self._device), columns, until, mask)

    def _mask(self, columns: torch.Tensor, until: int) -> torch.Tensor:
        """Added to attention scores: 0 for columns up to a token's own, -inf behind. Shape `(rows, 1, tokens, until)`.

        Of the model's type: of a mask of booleans each layer would make this again.
        """
        mask = torch.zeros((), dtype=self._dtype, device=self._device)
        hidden = torch.arange(until, device=self._device) > columns[:, :, None]
        return torch.where(hidden, mask - math.inf, mask)[:, None]

    def _forward(self, first: int, ids: torch.Tensor, columns: torch.Tensor, until: int, mask: torch.Tensor | None) -> torch.Tensor:
        self.cache.point(first, columns, until)
        output = self._model(
            input_ids=ids,
            position_ids=columns.clamp(max=self._last_position),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    @torch.inference_mode()
    def check(self) -> None:
        """Compare passes with our cache, in chunks and padded, to the plain model. Raises `EngineError` for a model that can't use it."""
        name = type(self._model).__name__
        size = self._model.get_input_embeddings().weight.shape[0]
        tokens = [(7 * i + 3) % size for i in range(6)]
        plain = self._model(input_ids=torch.tensor([tokens], device=self._device), use_cache=False).logits[0].float()
        try:
            self.prefill(0, [tokens[:3], tokens[:2]], [0, 0])
            self.prefill(1, [tokens[2:5]], [2])
            found = self.decode([tokens[3], tokens[5]], [3, 5]).float()
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as error:
            raise EngineError(f"engine transformers can't serve {name}, which doesn't take a cache of xi's own: {error}") from error
        alike = torch.nn.functional.cosine_similarity(found, plain[[3, 5]], dim=-1)
        if not bool((alike > _SAME).all()):
            raise EngineError(
                f"engine transformers can't serve {name}: its answers with a key-value cache of xi's own differ from "
                f"those without (likeness {alike.min().item():.3f})"
            )
