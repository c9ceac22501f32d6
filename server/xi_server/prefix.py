"""The chain of hashes by which a router knows prompts that begin alike. Called by the dispatcher for routers that want it.

It is taken over bytes of the request as it came, so nothing is decoded: clients that write the same prompt in another way (other
spaces, other escapes) have another chain, and lose nothing but the affinity.
"""

from __future__ import annotations

from xi_server.route import Route

FINE, FINE_BLOCKS = 256, 32
COARSE, COARSE_BLOCKS = 2048, 60
"""The first 8 KiB of a prompt are told apart in steps of 256 bytes, the next 120 KiB in steps of 2 KiB; what follows is not looked at."""


def prefix_chain(model: str, route: Route) -> tuple[int, ...]:
    """Hashes of the prompt's first blocks, each of all bytes up to its end; a block that isn't whole is left out.

    `model` is the name that the request asks for: the same prompt to another LoRA adapter has other keys and values. Python's own hash
    is keyed per process, so that nobody can choose prompts that collide, and a collision costs no more than a cache miss.
    """
    prompt = memoryview(route.messages) or memoryview(route.prompt)
    tools = bytes(route.tools)
    fine_end = FINE * FINE_BLOCKS
    chain: list[int] = []
    if not prompt:
        return ()
    last = hash((model, tools))
    text = bytes(prompt[: fine_end + COARSE * COARSE_BLOCKS])
    for start in range(0, min(len(text), fine_end) - FINE + 1, FINE):
        last = hash((last, text[start : start + FINE]))
        chain.append(last)
    for start in range(fine_end, len(text) - COARSE + 1, COARSE):
        last = hash((last, text[start : start + COARSE]))
        chain.append(last)
    return tuple(chain)
