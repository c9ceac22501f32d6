"""Threads for calls that block: as many as the engine has slots, started when first needed. Used by `engine.py`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue


class CallThreads:
    """Runs callables on daemon threads: a call that never returns must not keep the process from ending."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._busy = 0

    def start(self, call: Callable[[], None]) -> None:
        """Run `call`, which must not raise, as soon as a thread is free."""
        with self._lock:
            self._busy += 1
            if self._busy > len(self._threads) and len(self._threads) < self._limit:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._calls.put(call)

    def close(self, timeout: float) -> bool:
        """End the threads once their calls are over; False when some still run after `timeout` seconds, shared by all."""
        for _ in self._threads:
            self._calls.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False
        return True

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            finally:
                with self._lock:
                    self._busy -= 1
