"""Ctrl-C while the server is asked for something that goes on without its asker: it waits for the answer, which says what to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from xi_cli.options import say


@contextmanager
def held_interrupt(purpose: str) -> Iterator[list[int]]:
    """Ctrl-C is noted in the list; the second one interrupts."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)
        say(f"\nInterrupted: waiting for the server's answer, to {purpose}. Once more leaves at once.")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
