"""Connections that clients keep open and use again after a pause, and all that stands idle behind them meanwhile."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from town import BODY, KEY, Town

PAUSES = (1, 4, 6, 31, 61, 76, 121)
"""Seconds: about the times at which servers and balancers in common use give idle connections up."""


def ask(connection: http.client.HTTPConnection) -> int:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(BODY), headers)
    answer = connection.getresponse()
    assert json.loads(answer.read())["usage"]["completion_tokens"] == BODY["max_tokens"]
    return answer.status


def after(town: Town, pause: float) -> int:
    """The status of a request on a connection that was used before this pause. Whoever closed it meanwhile makes this raise."""
    address = urlsplit(town.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60.0)
    try:
        assert ask(connection) == 200
        kept = connection.sock
        time.sleep(pause)
        status = ask(connection)
        assert connection.sock is kept, "the same connection, not a new one"
        return status
    finally:
        connection.close()


@pytest.mark.timeout(240)
def test_a_connection_may_be_idle_for_two_minutes(busy: Town) -> None:
    with ThreadPoolExecutor(len(PAUSES)) as clients:
        assert list(clients.map(lambda pause: after(busy, pause), PAUSES)) == [200] * len(PAUSES)
    busy.settled(["w1", "w2"])
