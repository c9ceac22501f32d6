"""Which layout a model needs: how many machines and devices, split by tensor and by pipeline parallelism, and why. Behind `xi plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from xi_core.models.architecture import Architecture
from xi_core.models.memory import Estimate, Sharding, estimate

SHARE = 0.92
"""Part of a device's memory that a server takes: vLLM's default `gpu_memory_utilization`."""
BLOCK = 128
"""Side of a block of FP8 weights that share a scale: a matrix can't be split within one."""
MOST_SEQUENCES = 1 << 20

Network = Literal["fast", "slow"]


class Question(Struct, frozen=True, kw_only=True):
    """A model and the machines for it. Bytes; `tokens` is the context that a request must be able to have."""

    architecture: Architecture
    weights: int
    tokens: int
    workers: int = 1
    gpus: int = 1
    """Devices of each worker, all joined by its fast link."""
    memory: int
    """Of one device."""
    cache_bits: float = 16.0
    cached: bool = True
    """It generates text, and so keeps a cache."""
    blocks: bool = False
    """Weights are FP8 in blocks."""
    network: Network = "fast"
    """Between workers: `fast` as InfiniBand is, or `slow` as Ethernet."""


class Layout(Struct, frozen=True, kw_only=True):
    """One way to spread the model, what each device then takes, and what fits beside the weights."""

    workers: int
    gpus: int
    sharding: Sharding
    each: Estimate
    fits: bool
    room: int
    """Bytes of a device that the model may take."""
    batch: int = 0
    """Sequences of the whole context that fit at once."""
    context: int = 0
    """Tokens of the longest single sequence that fits."""


class Answer(Struct, frozen=True, kw_only=True):
    """The layout to use, or the one that comes nearest; and why, one reason a line."""

    layout: Layout
    reasons: list[str]
    tried: list[Layout]


def plan(question: Question) -> Answer:
    """The smallest layout that the model fits in.

    Tensor parallelism goes before pipeline parallelism wherever the link bears its traffic: all devices then work on every token
    (Megatron-LM, arXiv:1909.08053; over machines arXiv:2104.04473, section 3, which keeps it within a machine where the network is slow).
    """
    tried: list[Layout] = []
    for workers, gpus, sharding in _candidates(question):
        layout = _layout(question, workers, gpus, sharding)
        tried.append(layout)
        if layout.fits:
            break
    best = next((one for one in tried if one.fits), None) or min(tried, key=lambda one: one.each.total)
    return Answer(layout=_with_room(question, best), reasons=_reasons(question, best, tried), tried=tried)


def objection_to_tensor(question: Question, size: int) -> str:
    """Why no layer can be split over so many devices; empty where it can."""
    a = question.architecture
    if size == 1:
        return ""
    if a.heads % size:
        return f"{a.heads} attention heads can't be shared by {size} devices"
    if not a.kv_lora_rank and a.kv_heads % size and size % a.kv_heads:
        return f"{a.kv_heads} key and value heads can't be shared by, or repeated on, {size} devices"
    for width in {a.intermediate if a.dense_layers or not a.experts else 0, a.expert_intermediate if a.experts else 0} - {0}:
        if width % size or (question.blocks and width // size % BLOCK):
            return f"layers {width} wide can't be split over {size} devices" + (" in whole FP8 blocks" if question.blocks else "")
    return ""


def _candidates(question: Question) -> Iterator[tuple[int, int, Sharding]]:
    """Layouts, the preferred first. Within a machine tensor parallelism; over machines as the network bears it; the other way last."""
    whole = [(1, gpus) for gpus in range(1, question.gpus + 1)] + [(workers, question.gpus) for workers in range(2, question.workers + 1)]
    by_tensor = [(w, g, Sharding(tensor=w * g)) for w, g in whole]
    by_both = [(w, g, Sharding(tensor=t, pipeline=w * g // t)) for w, g in whole for t in _divisors(g) if w * g > t]
    within = [c for c in by_tensor if c[0] == 1] + [c for c in by_both if c[0] == 1]
    across = [c for c in by_tensor if c[0] > 1], [c for c in by_both if c[0] > 1]
    first, last = across if question.network == "fast" else across[::-1]
    for candidate in [*within, *first, *last]:
        sharding = candidate[2]
        if not objection_to_tensor(question, sharding.tensor) and sharding.pipeline <= question.architecture.layers:
            yield candidate


def _divisors(number: int) -> list[int]:
    """The largest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def _layout(question: Question, workers: int, gpus: int, sharding: Sharding) -> Layout:
    each, room = _needed(question, sharding, question.tokens, 1), int(SHARE * question.memory)
    return Layout(workers=workers, gpus=gpus, sharding=sharding, each=each, fits=each.total <= room, room=room)


def _needed(question: Question, sharding: Sharding, tokens: int, sequences: int) -> Estimate:
    return estimate(
        question.architecture,
        question.weights,
        tokens,
        sequences=sequences,
        cache_bits=question.cache_bits,
        sharding=sharding,
        cached=question.cached,
    )


def _with_room(question: Question, layout: Layout) -> Layout:
    """The layout, with the largest batch and the longest sequence that fit in it."""

    def fits(tokens: int, sequences: int) -> bool:
        return _needed(question, layout.sharding, tokens, sequences).total <= layout.room

    return msgspec.structs.replace(
        layout,
        batch=_most(lambda number: fits(question.tokens, number), MOST_SEQUENCES),
        context=_most(lambda number: fits(number, 1), max(question.architecture.context, question.tokens)),
    )


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, by halving; 0 where none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _reasons(question: Question, layout: Layout, tried: list[Layout]) -> list[str]:
    a, sharding = question.architecture, layout.sharding
    found = []
    if layout.fits:
        found.append(
            f"each device takes {_gib(layout.each.total)} of the {_gib(layout.room)} that a server may have ({SHARE:.0%} of its memory)"
        )
    else:
        found.append(f"nothing fits: the nearest layout takes {_gib(layout.each.total)} of each device, {_gib(layout.room)} are to be had")
    smaller = [one for one in tried if one.sharding.devices < sharding.devices]
    if smaller and layout.fits:
        last = smaller[-1]
        found.append(f"{last.sharding.devices} device(s) would have to take {_gib(last.each.total)} each")
    if sharding.tensor > layout.gpus:
        found.append(
            f"tensor parallelism goes over {layout.workers} machines, since the network is taken to be fast (InfiniBand); "
            f"over Ethernet use tensor {layout.gpus} x pipeline {layout.workers} (--network slow)"
        )
    elif sharding.tensor > 1 and layout.workers > 1:
        found.append(
            "tensor parallelism stays within a machine, where its traffic has the fast link; the pipeline goes from one to the next"
        )
    elif sharding.tensor > 1:
        found.append("tensor parallelism over the devices of one machine: all work on every token, by its fast link")
    if sharding.pipeline > 1 and (objection := objection_to_tensor(question, sharding.devices)):
        found.append(f"a pipeline, since {objection}")
    if not a.kv_lora_rank and sharding.tensor > a.kv_heads:
        found.append(f"the {a.kv_heads} key and value heads are repeated on {sharding.tensor // a.kv_heads} devices each")
    if a.kv_lora_rank and sharding.tensor > 1:
        found.append("the latent cache is whole on every device: tensor parallelism doesn't split it")
    return found


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
