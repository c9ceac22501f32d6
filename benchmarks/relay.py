"""What a gateway costs: its CPU per streamed token and per plain request, xi's beside `sglang-router`, in interleaved pairs.

Both gateways run the whole time, each before its own stub, and are measured in turns. Only the gateway process's CPU counts.
"""

from __future__ import annotations

import asyncio
import contextlib

import uvloop

from benchmarks.bodies import TOKEN, request
from benchmarks.client import BadAnswer, Client
from benchmarks.gateways import Server, sglang_router, xi_gateway
from benchmarks.processes import cpu_seconds
from benchmarks.results import Row, ratio, report

TOKENS = 256
STREAMS = {64: 0.8, 16: 1.0, 1: 1.4}
"""Numbers of streams, and how much of the router's CPU xi may use."""
PLAIN_TARGET = 2.5
CONCURRENCY = 8
MICRO = 1e6


async def _streamed(server: Server, client: Client, streams: int) -> float:
    """CPU seconds of the gateway per token."""
    asking = request("localhost", stream=True, max_tokens=TOKENS)
    before = cpu_seconds(server.child.pid)
    answers = await client.at_once([asking] * streams)
    used = cpu_seconds(server.child.pid) - before
    for answer in answers:
        if answer.count(TOKEN) != TOKENS or b"data: [DONE]" not in answer:
            raise BadAnswer(f"{server.name} relayed {answer.count(TOKEN)} of {TOKENS} tokens")
    return used / (streams * TOKENS)


async def _plain(server: Server, client: Client, requests: int) -> float:
    """CPU seconds of the gateway per request."""
    asking = request("localhost", stream=False, max_tokens=1)
    before = cpu_seconds(server.child.pid)
    answers = await client.in_turn(asking, requests)
    used = cpu_seconds(server.child.pid) - before
    if any(answer.count(TOKEN) != 1 for answer in answers):
        raise BadAnswer(f"{server.name} changed an answer")
    return used / requests


async def _pairs_of_streams(xi: Server, router: Server, streams: int, pairs: int) -> list[tuple[float, float]]:
    clients = [await Client.to(server.url, streams) for server in (xi, router)]
    try:
        for server, client in zip((xi, router), clients, strict=True):
            await _streamed(server, client, streams)  # warms both up
        return [
            (await _streamed(xi, clients[0], streams) * MICRO, await _streamed(router, clients[1], streams) * MICRO) for _ in range(pairs)
        ]
    finally:
        for client in clients:
            client.close()


async def _pairs_of_plain(xi: Server, router: Server, requests: int, pairs: int) -> list[tuple[float, float]]:
    clients = [await Client.to(server.url, CONCURRENCY) for server in (xi, router)]
    try:
        for server, client in zip((xi, router), clients, strict=True):
            await _plain(server, client, requests)
        return [(await _plain(xi, clients[0], requests) * MICRO, await _plain(router, clients[1], requests) * MICRO) for _ in range(pairs)]
    finally:
        for client in clients:
            client.close()


async def _measure(xi: Server, router: Server, quick: bool) -> list[Row]:
    pairs = 3 if quick else 15
    rows = []
    for streams, most in STREAMS.items():
        measured = await _pairs_of_streams(xi, router, streams, pairs)
        noun = "stream" if streams == 1 else "streams"
        rows.append(ratio(f"gateway CPU per streamed token, {streams} {noun}", "µs", router.name, measured, most=most))
    measured = await _pairs_of_plain(xi, router, 500 if quick else 1500, pairs)
    rows.append(ratio(f"gateway CPU per plain request, {CONCURRENCY} at once", "µs", router.name, measured, most=PLAIN_TARGET))
    return rows


def run(*, quick: bool, save: bool) -> bool:
    """Measure and report. True when all targets are met."""
    with contextlib.ExitStack() as stack:
        xi, router = stack.enter_context(xi_gateway()), stack.enter_context(sglang_router())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rows = runner.run(_measure(xi, router, quick))
    return report("relay", rows, {"tokens": TOKENS, "step_ms": 4}, save=save)
