"""InboxThread: a thread with an inbox, which works while there is work and sleeps otherwise. `Batcher` and `PoolingBatcher` build on it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable


class InboxThread(ABC):
    """What comes into the inbox is done between two pieces of work, on the thread, in the order in which it came.

    `on_failure` is called on the thread, which ends then, with whatever was raised there; it must only hand over. `interval`: longest wait,
    in seconds, for more work to come when there was none, so that it is done together.
    """

    def __init__(self, name: str, on_failure: Callable[[BaseException], None], interval: float) -> None:
        self._on_failure = on_failure
        self._interval = interval
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread after the work that it does now, waiting for it at most `timeout` seconds."""
        self._post(self._set_stopping)
        if self._thread.is_alive():
            self._thread.join(timeout)

    @abstractmethod
    def _has_work(self) -> bool:
        """Whether there is any."""

    @abstractmethod
    def _work(self) -> None:
        """Do one piece of it: a step, a batch."""

    def _post(self, change: Callable[[], None]) -> None:
        """Put a change of what is to be done into the inbox. Any thread."""
        self._inbox.put(change)

    def _set_stopping(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        try:
            while self._collect():
                self._work()
        except BaseException as error:  # whatever an engine raises ends this replica, and its requests are told
            self._on_failure(error)

    def _collect(self) -> bool:
        """Take what has come, waiting for it when there is nothing to do. False when it is time to stop."""
        while not self._stopping:
            if not self._has_work():
                self._inbox.get()()
                self._fill()
            while not self._stopping and not self._inbox.empty():  # nobody else takes from it
                self._inbox.get()()
            if self._has_work() and not self._stopping:
                return True
        return False

    def _take_in(self) -> None:
        """After a failure, take what has come: it is to be told of as well."""
        while not self._inbox.empty():
            with contextlib.suppress(Exception):  # of an engine that has failed
                self._inbox.get()()

    def _fill(self) -> None:
        """After idleness, wait a moment for others to come."""
        deadline = time.monotonic() + self._interval
        while self._has_work() and not self._stopping:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            try:
                change = self._inbox.get(timeout=left)
            except queue.Empty:
                return
            change()
