"""Turns: what waits for room in an engine, in the order in which requests came; those with several parts take turns with the others."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue of parts of requests, so that one request of 128 prompts holds up nobody for longer than one part takes. Not thread-safe.

    Numbers of parts are unique; a request's number may be that of one of its parts.
    """

    def __init__(self) -> None:
        self._requests: OrderedDict[int, OrderedDict[int, T]] = OrderedDict()
        self._request_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._request_of)

    def add(self, request: int, part: int, item: T) -> None:
        """Behind the request's other parts; a request that has none waiting comes last."""
        self._requests.setdefault(request, OrderedDict())[part] = item
        self._request_of[part] = request

    def pop(self) -> T:
        """The part whose turn it is. Its request's next one comes after one of each other request. Raises `KeyError` when empty."""
        request, parts = self._requests.popitem(last=False)
        part, item = parts.popitem(last=False)
        del self._request_of[part]
        if parts:
            self._requests[request] = parts
        return item

    def discard(self, part: int) -> None:
        """Forget a part, if it waits."""
        request = self._request_of.pop(part, None)
        if request is None:
            return
        parts = self._requests[request]
        del parts[part]
        if not parts:
            del self._requests[request]
