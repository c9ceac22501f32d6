"""A TCP proxy that a test can make slow, deaf or rude: latency with jitter, cut, blackhole, reset, slow close. It runs in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

CHUNK = 65536


class ChaosProxy:
    """Listens at a free port of loopback and passes everything to `host:port` and back."""

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self._target = host, port
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._pairs: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.latency = 0.0
        """Seconds by which each chunk is late, in each direction."""
        self.jitter = 0.0
        """Each is late by up to so many seconds more. Order is kept, as TCP keeps it."""
        self.linger = 0.0
        """Seconds for which an end that one side has sent is kept from the other: a slow close."""
        self.refuses = False
        """New connections are cut at once."""
        self.port = 0
        self.connections = 0
        """Connections so far."""

    def __enter__(self) -> ChaosProxy:
        self._thread.start()
        self._server = self._run(lambda: asyncio.start_server(self._accepted, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._run(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- what a test does to it -----------------------------------------------------------------

    def cut(self) -> None:
        """End all connections: FIN to both sides."""
        self._run(lambda: self._end_all(False))

    def reset(self) -> None:
        """End all connections by RST, and lose what was on its way."""
        self._run(lambda: self._end_all(True))

    @contextmanager
    def blackhole(self) -> Iterator[None]:
        """While the block runs nothing passes, and nobody is told. What was sent meanwhile arrives afterwards, as by TCP's repeats."""
        self._loop.call_soon_threadsafe(self._flows.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._flows.set)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """While the block runs there is no connection, and none can be made."""
        self.refuses = True
        try:
            self.cut()
            yield
        finally:
            self.refuses = False

    # ---- inside ---------------------------------------------------------------------------------

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        self.connections += 1
        others: list[asyncio.StreamWriter] = [writer]
        self._writers.add(writer)
        try:
            if self.refuses:
                return
            there, back = await asyncio.open_connection(*self._target)
            others.append(back)
            self._writers.add(back)
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        except OSError:
            pass
        finally:
            for each in others:
                self._writers.discard(each)
                each.close()
            self._pairs.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        sending = asyncio.create_task(self._send(queue, writer))
        try:
            with contextlib.suppress(OSError):
                while chunk := await reader.read(CHUNK):
                    await queue.put((self._loop.time() + self.latency + self._random.random() * self.jitter, chunk))
            await queue.put((self._loop.time() + self.linger, b""))
            await sending
        finally:
            sending.cancel()
            await asyncio.wait({sending})

    async def _send(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        chunk = b"-"
        while chunk:
            due, chunk = await queue.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._flows.wait()
            with contextlib.suppress(OSError):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def _end_all(self, rudely: bool) -> None:
        for writer in list(self._writers):
            if rudely:
                made = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):  # closed already
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()

    async def _close(self) -> None:
        self._server.close()
        self.refuses = True  # what was accepted a moment ago, and hasn't begun, ends by itself
        await asyncio.sleep(0.01)
        await self._end_all(True)
        pairs = list(self._pairs)
        for task in pairs:
            task.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)

    def _run(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(20.0)
