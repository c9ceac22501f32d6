"""Chooses the next token of each row. The batch generator calls `Row`s and the `Sampler` that they share. Used by engine.py.

All arithmetic is lazy: it joins the graph of the step, which is computed while the step before it is handed out. A row's randomness is
one number per token from its own generator, looked up in the cumulative distribution. So a seed gives the same answer whatever else is
in the batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from xi_core.engine.base import SamplingParams, TokenLogprobs
from xi_core.engine.grammar import Matcher
from xi_core.errors import XiError

GREEDY_BELOW = 1e-5
"""Temperatures below this mean greedy: dividing by them would overflow."""
_LARGEST_DRAW = 1 - 2**-24
"""A draw of 1.0 would fall behind the last token."""


class Row:
    """One sequence's sampling. The generator calls it as a logits processor, in order of rows, before it calls the sampler."""

    __slots__ = (
        "_bias",
        "_called",
        "_failed",
        "_grammar",
        "_logits",
        "_prompt_length",
        "_random",
        "_sampler",
        "_tokens",
        "adjusts",
        "greedy",
        "params",
    )

    def __init__(self, sampler: Sampler, params: SamplingParams, prompt_length: int, grammar: Matcher | None = None) -> None:
        self.params = params
        self.greedy = params.temperature < GREEDY_BELOW
        # Python's generator takes the absolute value of a seed; -1 and 1 are two seeds.
        self._random = random.Random(None if params.seed is None else params.seed % 2**64)
        self._prompt_length = prompt_length
        self._sampler = sampler
        self._grammar = grammar
        self._bias = (mx.array(list(params.logit_bias)), mx.array(list(params.logit_bias.values()))) if params.logit_bias else None
        penalises = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
        self.adjusts = bool(penalises or params.logit_bias or grammar is not None)
        self._called = 0
        self._failed: tuple[int, XiError] | None = None
        self._tokens = self._logits = mx.array(())

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Announce this row to the sampler. `tokens`: prompt and answer so far; `logits`: `(1, vocabulary)`, returned as float32."""
        precise = logits.astype(mx.float32)
        self._sampler.announced.append(self)
        self._called += 1
        if self.adjusts:
            self._tokens, self._logits = tokens, precise
        return precise

    def draw(self) -> float:
        """The next number in [0, 1) of this row's generator."""
        return min(self._random.random(), _LARGEST_DRAW)

    def failure(self, count: int) -> XiError | None:
        """Why there is no token number `count` of this row, counted from 1, if there is none."""
        return self._failed[1] if self._failed is not None and count >= self._failed[0] else None

    def adjusted(self) -> mx.array:
        """This step's logits `(1, vocabulary)` after grammar, bias and penalties."""
        logits, tokens, params = self._logits, self._tokens, self.params
        if self._grammar is not None:
            logits = self._constrained(self._grammar, logits, tokens)
        if self._bias is not None:
            logits = logits.at[:, self._bias[0]].add(self._bias[1])
        if params.repetition_penalty != 1.0:
            seen = logits[:, tokens]
            seen = mx.where(seen < 0, seen * params.repetition_penalty, seen / params.repetition_penalty)
            logits = mx.put_along_axis(logits, tokens[None], seen, axis=-1)
        answer = tokens[self._prompt_length :]
        if params.presence_penalty and answer.size:
            logits = mx.put_along_axis(logits, answer[None], logits[:, answer] - params.presence_penalty, axis=-1)
        if params.frequency_penalty and answer.size:
            logits = logits.at[:, answer].subtract(mx.array(params.frequency_penalty))
        return logits

    def _constrained(self, grammar: Matcher, logits: mx.array, tokens: mx.array) -> mx.array:
        """Without the tokens that the grammar forbids. It must know the newest token, so this waits for the step before."""
        if self._failed is not None:
            return logits
        if tokens.size > self._prompt_length:
            grammar.accept(int(tokens[-1].item()))
        try:
            allowed = grammar.allowed()
        except XiError as error:
            self._failed = (self._called, error)
            return logits
        bits = np.unpackbits(np.frombuffer(allowed, dtype=np.uint8), count=logits.shape[-1], bitorder="little")
        return mx.where(mx.array(bits.astype(np.bool_)), logits, -mx.inf)


class Sampler:
    """One for all sequences, so that the generator calls it once per step for the whole batch."""

    def __init__(self) -> None:
        self.announced: list[Row] = []

    def __call__(self, logprobs: mx.array) -> mx.array:
        """A token for each row of `logprobs` `(rows, vocabulary)`: the rows that have announced themselves first."""
        count = logprobs.shape[0]
        rows, self.announced = self.announced[:count], self.announced[count:]
        if any(row.adjusts for row in rows):
            parts = [row.adjusted() if row.adjusts else logprobs[i : i + 1] for i, row in enumerate(rows)]
            logprobs = mx.concatenate(parts, axis=0)
        best = mx.argmax(logprobs, axis=-1)
        if all(row.greedy for row in rows):
            return best
        drawn = _draw(logprobs, best, rows)
        return mx.where(mx.array([row.greedy for row in rows]), best, drawn) if any(row.greedy for row in rows) else drawn


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(values, dtype=mx.float32)[:, None]


def _draw(logits: mx.array, best: mx.array, rows: Sequence[Row]) -> mx.array:
    """A token for each row by temperature, top_k, top_p and min_p. What comes out for greedy rows means nothing."""
    scaled = logits / _column([1.0 if row.greedy else row.params.temperature for row in rows])
    draws = _column([0.0 if row.greedy else row.draw() for row in rows])
    drawing = [row.params for row in rows if not row.greedy]
    if not any(params.top_k > 0 or params.top_p < 1 for params in drawing):
        shares = _without_unlikely(mx.softmax(scaled, axis=-1), rows)
        return _look_up(shares, draws, best)
    size = scaled.shape[-1]
    limits = [params.top_k if 0 < params.top_k < size else size for params in drawing]
    ids = _likeliest(scaled, max(limits))
    shares = mx.softmax(mx.take_along_axis(scaled, ids, axis=-1), axis=-1)
    # Where not every row is limited the candidates are the whole vocabulary, so these shares are of all tokens.
    shares = _limited(shares, rows)
    sums = mx.cumsum(shares, axis=-1, inclusive=False)
    top_p = _column([row.params.top_p for row in rows])
    shares = mx.where((sums >= top_p) & (top_p < 1), 0.0, shares)
    place = _look_up(_without_unlikely(shares, rows), draws, mx.zeros_like(best))
    return mx.take_along_axis(ids, place[:, None], axis=-1)[:, 0]


def _likeliest(scaled: mx.array, count: int) -> mx.array:
    """Ids of the `count` likeliest tokens of each row, likeliest first."""
    if count >= scaled.shape[-1]:
        return mx.argsort(-scaled, axis=-1)
    some = mx.argpartition(-scaled, kth=count - 1, axis=-1)[:, :count]
    order = mx.argsort(-mx.take_along_axis(scaled, some, axis=-1), axis=-1)
    return mx.take_along_axis(some, order, axis=-1)


def _limited(shares: mx.array, rows: Sequence[Row]) -> mx.array:
    """Shares of the first `top_k` of each row, which sum to 1 again. `shares` are in falling order."""
    width = shares.shape[-1]
    limits = [min(row.params.top_k, width) if row.params.top_k > 0 else width for row in rows]
    if min(limits) == width:
        return shares
    kept = mx.where(mx.arange(width)[None] < mx.array(limits)[:, None], shares, 0.0)
    return kept / mx.sum(kept, axis=-1, keepdims=True)


def _without_unlikely(shares: mx.array, rows: Sequence[Row]) -> mx.array:
    """Shares that reach `min_p` of the row's largest."""
    if not any(row.params.min_p for row in rows):
        return shares
    least = mx.max(shares, axis=-1, keepdims=True) * _column([row.params.min_p for row in rows])
    return mx.where(shares < least, 0.0, shares)


def _look_up(shares: mx.array, draws: mx.array, otherwise: mx.array) -> mx.array:
    """The index in each row of `shares` at which their running sum passes the row's draw; `otherwise` where rounding leaves none."""
    sums = mx.cumsum(shares, axis=-1)
    found = mx.sum(sums <= draws * sums[:, -1:], axis=-1)
    return mx.where(found < shares.shape[-1], found, otherwise)


def token_logprobs(values: np.ndarray[tuple[int], np.dtype[np.float32]], token: int, count: int) -> TokenLogprobs:
    """Of the chosen token and the `count` likeliest, from all tokens' log-probabilities."""
    top: list[tuple[int, float]] = []
    if count:
        count = min(count, values.size)
        some = np.flatnonzero(values >= np.partition(values, -count)[-count])
        order = some[np.lexsort((some, -values[some]))][:count]  # of equals the first, as greedy choice takes them
        top = [(int(id), min(0.0, float(values[id]))) for id in order]
    return TokenLogprobs(min(0.0, float(values[token])), top)
