"""Transports are tested on both loops that xi runs on."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], Any]]:
    factories = {"asyncio": asyncio.new_event_loop}
    if item.path.name in ("test_transports.py", "test_zmtp_peers.py"):
        factories["uvloop"] = uvloop.new_event_loop
    return factories
