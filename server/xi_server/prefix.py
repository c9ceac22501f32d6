"""The chain of hashes by which a router knows prompts that begin alike. Called by the dispatcher for routers that want it.

It is taken over bytes of the request as it came, so nothing is decoded: clients that write the same prompt in another way (other
spaces, other escapes) have another chain, and lose nothing but the affinity.
"""

from __future__ import annotations

from xi_core.cluster.routing import COARSE_BLOCK, COARSE_BLOCKS, FINE_BLOCK, FINE_BLOCKS, prefix_bytes
from xi_server.route import Route

FINE_END = prefix_bytes(FINE_BLOCKS)
END = prefix_bytes(FINE_BLOCKS + COARSE_BLOCKS)
"""Bytes of a prompt that are looked at; what follows is taken to differ."""


def prefix_chain(model: str, route: Route) -> tuple[int, ...]:
    """Hashes of the prompt's first blocks, each of all bytes up to its end; a block that isn't whole is left out.

    `model` is the name that the request asks for: the same prompt to another LoRA adapter has other keys and values. Python's own hash
    is keyed per process, so that nobody can choose prompts that collide, and a collision costs no more than a cache miss.
    """
    text = bytes((memoryview(route.messages) or memoryview(route.prompt))[:END])
    chain: list[int] = []
    last = hash((model, bytes(route.tools)))
    for start in range(0, min(len(text), FINE_END) - FINE_BLOCK + 1, FINE_BLOCK):
        last = hash((last, text[start : start + FINE_BLOCK]))
        chain.append(last)
    for start in range(FINE_END, len(text) - COARSE_BLOCK + 1, COARSE_BLOCK):
        last = hash((last, text[start : start + COARSE_BLOCK]))
        chain.append(last)
    return tuple(chain)
