"""Chooses the next token of each row from the logits of a step, over numpy. A row pays only for what its request asks. Used by engine.py.

A row's randomness is one number per token from its own generator, looked up in the cumulative distribution.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xi_core.engine.base import SamplingParams, TokenLogprobs
from xi_core.engine.grammar import Matcher
from xi_core.errors import EngineError, XiError

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

GREEDY_BELOW = 1e-5
"""Temperatures below this mean greedy: dividing by them would overflow."""
_WIDTHS = (64, 1024)
"""How many candidates are looked at for top_k and top_p before the whole vocabulary is sorted."""


class RowSampler:
    """One sequence's sampling: its parameters, its generator, and what it has written so far (only if a penalty needs it)."""

    __slots__ = ("_bias", "_counts", "_grammar", "_random", "_seen", "adjusts", "failure", "greedy", "params")

    def __init__(self, params: SamplingParams, prompt: list[int], size: int, grammar: Matcher | None = None) -> None:
        self.params = params
        self.greedy = params.temperature < GREEDY_BELOW
        self.failure: XiError = EngineError("the model gave numbers that are not finite")
        """Why `sample` gave no token, if it gave none."""
        # Python's generator takes the absolute value of a seed; -1 and 1 are two seeds.
        self._random = random.Random(None if params.seed is None else params.seed % 2**64)
        self._grammar = grammar
        self._bias: tuple[Ids, Floats] | None = None
        self._counts: Floats | None = None
        self._seen: npt.NDArray[np.bool_] | None = None
        if params.logit_bias:
            self._bias = np.array(list(params.logit_bias), np.int64), np.array(list(params.logit_bias.values()), np.float32)
        if params.presence_penalty or params.frequency_penalty:
            self._counts = np.zeros(size, np.float32)
        if params.repetition_penalty != 1.0:
            self._seen = np.zeros(size, np.bool_)
            self._seen[prompt] = True
        self.adjusts = any(part is not None for part in (self._bias, self._counts, self._seen, grammar))

    def draw(self) -> float:
        """The next number in [0, 1) of this row's generator."""
        return self._random.random()

    def accept(self, token: int) -> None:
        """Remember a chosen token for the penalties and the grammar."""
        if self._grammar is not None:
            self._grammar.accept(token)
        if self._counts is not None:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True

    def adjust(self, logits: Floats) -> None:
        """Apply grammar, bias and penalties to this row's logits `(vocabulary,)`, in place."""
        if self._grammar is not None:
            self._constrain(self._grammar, logits)
        if self._bias is not None:
            ids, values = self._bias
            logits[ids] += values
        if self._seen is not None:
            part, penalty = logits[self._seen], np.float32(self.params.repetition_penalty)
            logits[self._seen] = np.where(part < 0, part * penalty, part / penalty)
        if self._counts is not None:
            logits -= self._counts * np.float32(self.params.frequency_penalty)
            logits -= (self._counts > 0) * np.float32(self.params.presence_penalty)

    def _constrain(self, grammar: Matcher, logits: Floats) -> None:
        """Take out each token that the grammar doesn't allow; all, where the grammar has failed."""
        try:
            allowed = grammar.allowed()
        except XiError as error:
            self.failure = error
            logits.fill(-math.inf)
            return
        bits = np.unpackbits(np.frombuffer(allowed, np.uint8), count=logits.size, bitorder="little")
        logits[bits == 0] = -math.inf


def sample(logits: Floats, rows: Sequence[RowSampler]) -> tuple[list[int | None], dict[int, TokenLogprobs]]:
    """A token for each row of `logits` `(rows, vocabulary)`, None where there is none that is finite; and log-probabilities by row."""
    work = logits
    adjusted = [i for i, row in enumerate(rows) if row.adjusts]
    if adjusted:
        work = logits.copy()
        for i in adjusted:
            rows[i].adjust(work[i])
    tokens: Ids = work.argmax(-1)
    best = work[np.arange(len(rows)), tokens]
    drawn = [i for i, row in enumerate(rows) if not row.greedy and math.isfinite(best[i])]
    if drawn:
        tokens[drawn] = _draw(work[drawn] - best[drawn, None], [rows[i] for i in drawn])
    chosen = [token if finite else None for token, finite in zip(tokens.tolist(), np.isfinite(best).tolist(), strict=True)]
    return chosen, _logprobs(logits, rows, chosen)


# ---- drawing ------------------------------------------------------------------------------------


def _draw(logits: Floats, rows: Sequence[RowSampler]) -> Ids:
    """A token for each row by temperature, top_k, top_p and min_p. The largest of each row of `logits` is 0."""
    size = logits.shape[-1]
    weights: Floats = np.exp(logits / _column([row.params.temperature for row in rows]))
    draws = np.array([row.draw() for row in rows])
    cut = [i for i, row in enumerate(rows) if 0 < row.params.top_k < size or row.params.top_p < 1]
    whole = [i for i in range(len(rows)) if i not in set(cut)]
    tokens: Ids = np.zeros(len(rows), np.int64)
    if whole:
        some = [rows[i] for i in whole]
        tokens[whole] = _look_up(_without_unlikely(weights[whole], some), draws[whole])
    if cut:
        tokens[cut] = _from_candidates(weights[cut], [rows[i] for i in cut], draws[cut])
    return tokens


def _column(values: list[float]) -> Floats:
    return np.array(values, np.float32)[:, None]


def _without_unlikely(weights: Floats, rows: Sequence[RowSampler]) -> Floats:
    """Without those below `min_p` of the row's largest, which is 1."""
    if any(row.params.min_p for row in rows):
        weights[weights < _column([row.params.min_p for row in rows])] = 0
    return weights


def _from_candidates(weights: Floats, rows: Sequence[RowSampler], draws: npt.NDArray[np.float64]) -> Ids:
    """A token for each row among its likeliest: as many as its top_k and top_p let through."""
    size = weights.shape[-1]
    limits = np.array([row.params.top_k if 0 < row.params.top_k < size else size for row in rows])
    top_p = np.array([row.params.top_p for row in rows])
    total = weights.sum(-1, dtype=np.float64)
    ids, kept = _candidates(weights, limits, top_p * total)
    kept[np.arange(kept.shape[-1]) >= limits[:, None]] = 0
    total = np.where(limits < size, kept.sum(-1, dtype=np.float64), total)
    before = kept.cumsum(-1, dtype=np.float64) - kept
    kept[(before >= (top_p * total)[:, None]) & (top_p < 1)[:, None]] = 0
    place = _look_up(_without_unlikely(kept, rows), draws)
    found: Ids = ids[np.arange(len(rows)), place]
    return found


def _candidates(weights: Floats, limits: npt.NDArray[np.int64], enough: npt.NDArray[np.float64]) -> tuple[Ids, Floats]:
    """Ids and weights of each row's likeliest tokens, likeliest first: as few as hold its first `limits`, or weigh `enough`."""
    size = weights.shape[-1]
    for width in (width for width in _WIDTHS if width < size):
        ids = np.sort(np.argpartition(weights, size - width, axis=-1)[:, size - width :], axis=-1)
        some = np.take_along_axis(weights, ids, -1)
        if np.all((limits <= width) | (some.sum(-1, dtype=np.float64) >= enough)):
            order = np.argsort(-some, axis=-1, kind="stable")  # of equals the first, as greedy choice takes them
            return np.take_along_axis(ids, order, -1), np.take_along_axis(some, order, -1)
    ids = np.argsort(-weights, axis=-1, kind="stable")
    return ids, np.take_along_axis(weights, ids, -1)


def _look_up(weights: Floats, draws: npt.NDArray[np.float64]) -> Ids:
    """The index in each row of `weights` at which their running sum passes the row's share of it. Never one whose weight is 0."""
    sums = weights.cumsum(-1, dtype=np.float64)
    found = np.array([np.searchsorted(row, draw * row[-1], side="right") for row, draw in zip(sums, draws, strict=True)], np.int64)
    found = np.minimum(found, weights.shape[-1] - 1)
    rounded_off = weights[np.arange(len(found)), found] <= 0
    chosen: Ids = np.where(rounded_off, weights.argmax(-1), found)
    return chosen


# ---- log-probabilities --------------------------------------------------------------------------


def _logprobs(raw: Floats, rows: Sequence[RowSampler], chosen: list[int | None]) -> dict[int, TokenLogprobs]:
    """Of the chosen tokens and the likeliest ones, by the model's own distribution, for the rows that ask."""
    found: dict[int, TokenLogprobs] = {}
    for i, (row, token) in enumerate(zip(rows, chosen, strict=True)):
        if row.params.logprobs is not None and token is not None:
            found[i] = token_logprobs(raw[i], token, row.params.logprobs)
    return found


def token_logprobs(logits: Floats, token: int, count: int) -> TokenLogprobs:
    """Of the chosen token and the `count` likeliest, from one row's logits."""
    largest = logits.max()
    total = largest + math.log(np.exp(logits - largest).sum(dtype=np.float64))
    count = min(count, logits.size)
    top: list[tuple[int, float]] = []
    if count:
        some = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
        order = some[np.lexsort((some, -logits[some]))][:count]
        top = [(int(id), min(0.0, float(logits[id] - total))) for id in order]
    return TokenLogprobs(min(0.0, float(logits[token] - total)), top)
