"""Chooses the next token of each row from the logits of a step. Vectorised; a row pays only for what its request asks. Used by engine.py.

A row's randomness is one number per token from its own generator, looked up in the cumulative distribution. So a seed gives the same
answer whatever else is in the batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy
import torch

from xi_core.engine.base import SamplingParams, TokenLogprobs
from xi_core.engine.grammar import Matcher
from xi_core.errors import EngineError, XiError

GREEDY_BELOW = 1e-5
"""Temperatures below this mean greedy: dividing by them would overflow."""
_WIDTHS = (64, 1024)
"""How many candidates are looked at for top_k and top_p before the whole vocabulary is sorted."""
_LARGEST_DRAW = 1 - 2**-24
"""A draw of 1.0 would fall behind the last token."""


class RowSampler:
    """One sequence's sampling: its parameters, its generator, and what it has written so far (only if a penalty needs it)."""

    __slots__ = ("_random", "adjusts", "bias", "counts", "failure", "grammar", "greedy", "params", "plain", "seen")

    def __init__(self, params: SamplingParams, prompt: list[int], size: int, device: torch.device, grammar: Matcher | None = None) -> None:
        self.params = params
        self.grammar = grammar
        self.failure: XiError = EngineError("the model gave numbers that are not finite; try dtype float32 or bfloat16")
        """Why `sample` gave no token, if it gave none."""
        self.greedy = params.temperature < GREEDY_BELOW
        # Python's generator takes the absolute value of a seed; -1 and 1 are two seeds.
        self._random = random.Random(None if params.seed is None else params.seed % 2**64)
        self.bias: tuple[torch.Tensor, torch.Tensor] | None = None
        self.counts = self.seen = None
        if params.logit_bias:
            ids, values = list(params.logit_bias), list(params.logit_bias.values())
            self.bias = torch.tensor(ids, device=device), torch.tensor(values, dtype=torch.float32, device=device)
        if params.presence_penalty or params.frequency_penalty:
            self.counts = torch.zeros(size, device=device)
        if params.repetition_penalty != 1.0:
            self.seen = torch.zeros(size, dtype=torch.bool, device=device)
            self.seen[torch.tensor(prompt, device=device)] = True
        self.adjusts = self.bias is not None or self.counts is not None or self.seen is not None or grammar is not None
        self.plain = self.greedy and not self.adjusts and params.logprobs is None

    def draw(self) -> float:
        """The next number in [0, 1) of this row's generator."""
        return min(self._random.random(), _LARGEST_DRAW)

    def accept(self, token: int) -> None:
        """Remember a chosen token for the penalties and the grammar."""
        if self.grammar is not None:
            self.grammar.accept(token)
        if self.counts is not None:
            self.counts[token] += 1
        if self.seen is not None:
            self.seen[token] = True


def sample(logits: torch.Tensor, rows: Sequence[RowSampler]) -> tuple[list[int | None], dict[int, TokenLogprobs]]:
    """A token for each row of `logits` `(rows, vocabulary)`, None where its logits are not finite; and log-probabilities by row."""
    if all(row.plain for row in rows):
        best, tokens = logits.max(-1)
        return _finite(tokens, best), {}
    raw = logits.float()
    adjusted = [i for i, row in enumerate(rows) if row.adjusts]
    work = _adjust(raw.clone(), rows, adjusted) if adjusted else raw
    best, tokens = work.max(-1)
    drawn = [i for i, row in enumerate(rows) if not row.greedy]
    if len(drawn) == len(rows):
        tokens = _draw(work, rows)
    elif drawn:
        tokens[drawn] = _draw(work[drawn], [rows[i] for i in drawn])
    chosen = _finite(tokens, best)
    return chosen, _logprobs(raw, rows, chosen)


def _finite(tokens: torch.Tensor, best: torch.Tensor) -> list[int | None]:
    return [token if math.isfinite(value) else None for token, value in zip(tokens.tolist(), best.tolist(), strict=True)]


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


# ---- grammars, biases and penalties -------------------------------------------------------------


def _constrain(logits: torch.Tensor, row: RowSampler, grammar: Matcher) -> None:
    """Take out each token that the row's grammar doesn't allow; all, where the grammar has failed."""
    try:
        allowed = grammar.allowed()
    except XiError as error:
        row.failure = error
        logits.fill_(-math.inf)
        return
    bits = numpy.unpackbits(numpy.frombuffer(allowed, dtype=numpy.uint8), count=logits.shape[0], bitorder="little")
    logits.masked_fill_((torch.from_numpy(bits) == 0).to(logits.device), -math.inf)


def _adjust(logits: torch.Tensor, rows: Sequence[RowSampler], adjusted: list[int]) -> torch.Tensor:
    for i in adjusted:
        grammar = rows[i].grammar
        if grammar is not None:
            _constrain(logits[i], rows[i], grammar)
        bias = rows[i].bias
        if bias is not None:
            logits[i].index_add_(0, *bias)
    seen = {i: rows[i].seen for i in adjusted}
    repeated = [i for i, mask in seen.items() if mask is not None]
    if repeated:
        part, penalty = logits[repeated], _column([rows[i].params.repetition_penalty for i in repeated], logits)
        mask = torch.stack([mask for mask in seen.values() if mask is not None])
        logits[repeated] = torch.where(mask, torch.where(part < 0, part * penalty, part / penalty), part)
    written = {i: rows[i].counts for i in adjusted}
    counted = [i for i, count in written.items() if count is not None]
    if counted:
        counts = torch.stack([count for count in written.values() if count is not None])
        frequency = _column([rows[i].params.frequency_penalty for i in counted], logits)
        presence = _column([rows[i].params.presence_penalty for i in counted], logits)
        logits[counted] -= counts * frequency + (counts > 0) * presence
    return logits


# ---- drawing ------------------------------------------------------------------------------------


def _draw(logits: torch.Tensor, rows: Sequence[RowSampler]) -> torch.Tensor:
    """A token for each row by temperature, top_k, top_p and min_p."""
    scaled = logits / _column([row.params.temperature for row in rows], logits)
    draws = _column([row.draw() for row in rows], logits)
    cut = [i for i, row in enumerate(rows) if row.params.top_k > 0 or row.params.top_p < 1]
    if len(cut) == len(rows):
        return _from_candidates(scaled, rows, draws)
    tokens = _from_all(scaled, rows, draws)
    if cut:
        tokens[cut] = _from_candidates(scaled[cut], [rows[i] for i in cut], draws[cut])
    return tokens


def _from_all(scaled: torch.Tensor, rows: Sequence[RowSampler], draws: torch.Tensor) -> torch.Tensor:
    shares = scaled.softmax(-1)
    if any(row.params.min_p for row in rows):
        least = shares.amax(-1, keepdim=True) * _column([row.params.min_p for row in rows], scaled)
        shares = shares.masked_fill(shares < least, 0)
    return _look_up(shares, draws)


def _from_candidates(scaled: torch.Tensor, rows: Sequence[RowSampler], draws: torch.Tensor) -> torch.Tensor:
    """As `_from_all`, among each row's likeliest tokens: as many as its top_k and top_p can reach."""
    limits = [row.params.top_k if 0 < row.params.top_k < scaled.shape[-1] else 0 for row in rows]
    top_p = _column([row.params.top_p for row in rows], scaled)
    shares, ids = _candidates(scaled, limits, top_p)
    if any(limits):
        limited = torch.tensor(limits, device=scaled.device)[:, None]
        ranks = torch.arange(shares.shape[-1], device=scaled.device)
        shares = shares.masked_fill((limited > 0) & (ranks >= limited), 0)
        shares = torch.where(limited > 0, shares / shares.sum(-1, keepdim=True), shares)
    shares = shares.masked_fill((shares.cumsum(-1) - shares >= top_p) & (top_p < 1), 0)
    least = shares[:, :1] * _column([row.params.min_p for row in rows], scaled)
    shares = shares.masked_fill(shares < least, 0)
    return ids.gather(-1, _look_up(shares, draws)[:, None])[:, 0]


def _candidates(scaled: torch.Tensor, limits: list[int], top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares and ids of the likeliest tokens, likeliest first: as few as hold all that top_k and top_p let through.

    `limits` is 0 for a row without top_k. Sorting a whole vocabulary costs more than a small model's forward pass.
    """
    size = scaled.shape[-1]
    total = scaled.logsumexp(-1, keepdim=True)
    unlimited = torch.tensor([limit == 0 for limit in limits], device=scaled.device)
    for width in (width for width in _WIDTHS if max(limits) <= width < size):
        values, ids = scaled.topk(width)
        shares = (values - total).exp()
        if not bool((unlimited & (shares.sum(-1) < top_p[:, 0])).any()):
            return shares, ids
    values, ids = scaled.sort(-1, descending=True)
    return (values - total).exp(), ids


def _look_up(shares: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The index in each row of `shares` at which their running sum passes the row's draw. Never one whose share is 0."""
    sums = shares.cumsum(-1)
    found = torch.searchsorted(sums, draws * sums[:, -1:], right=True).clamp_(max=shares.shape[-1] - 1)
    rounded_off = shares.gather(-1, found) <= 0
    return torch.where(rounded_off, shares.argmax(-1, keepdim=True), found)[:, 0]


# ---- log-probabilities --------------------------------------------------------------------------


def _logprobs(raw: torch.Tensor, rows: Sequence[RowSampler], chosen: list[int | None]) -> dict[int, TokenLogprobs]:
    """Of the chosen tokens and the likeliest ones, by the model's own distribution, for the rows that ask."""
    asking = {i: row.params.logprobs for i, row in enumerate(rows) if row.params.logprobs is not None and chosen[i] is not None}
    if not asking:
        return {}
    logs = raw[list(asking)].log_softmax(-1)
    tokens = torch.tensor([chosen[i] for i in asking], device=raw.device)
    own = logs.gather(-1, tokens[:, None])[:, 0].tolist()
    most = max(asking.values())
    values, ids = logs.topk(min(most, logs.shape[-1])) if most else (logs[:, :0], logs[:, :0].long())
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return {
        i: TokenLogprobs(logprob=mine, top=list(zip(top[: asking[i]], logs_of[: asking[i]], strict=True)))
        for i, mine, (top, logs_of) in zip(asking, own, tops, strict=True)
    }
