"""How commands that wait bear a server that doesn't answer for a while: its supervisor may just be started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from xi_core.errors import ChannelClosed, Unavailable

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds without an answer after which a command gives up."""


class Patience:
    """Counts from its making, or from the last time that something was `heard`."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def heard(self) -> None:
        """Begin to count anew."""
        self._since = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether it is time to give up."""
        return time.monotonic() - self._since > PATIENCE

    def ask(self, question: Callable[[], T]) -> T | None:
        """The answer; None where there is none now. Raises the error itself when it is time to give up."""
        try:
            return question()
        except (Unavailable, ChannelClosed):
            if self.over:
                raise
            return None
