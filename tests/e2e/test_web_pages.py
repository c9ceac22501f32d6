"""A page of a listed site against a real `xi serve`: what its browser asks first, what it reads, and what other pages get."""

import json
from pathlib import Path

import httpx
import pytest

from xi_core.testing.server import RunningServer

PAGE = "https://chat.example.org"
CHAT = "/v1/chat/completions"
ASKED = "authorization,content-type,x-stainless-os"


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    with RunningServer(tmp_path_factory.mktemp("listed"), "--allow-origin", PAGE, "--allow-origin", "http://localhost:3000") as server:
        launched = server.xi("launch", "xi-tiny", "-en", "llama.cpp")
        assert launched.returncode == 0, launched.stderr
        yield server


def page(server: RunningServer, origin: str, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=server.endpoint, headers={"Origin": origin, **headers}, timeout=60)


def test_a_page_asks_streams_and_reads_errors(listed: RunningServer) -> None:
    body = {"model": "xi-tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "stream": True}
    with page(listed, PAGE) as browser:
        asked = browser.options(CHAT, headers={"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": ASKED})
        assert (asked.status_code, asked.content, asked.headers["access-control-allow-origin"]) == (204, b"", PAGE)
        assert asked.headers["access-control-allow-headers"] == ASKED
        assert "content-length" not in asked.headers
        assert "transfer-encoding" not in asked.headers
        with browser.stream("POST", CHAT, json=body) as answer:  # over the same connection
            events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert (answer.status_code, answer.headers.get_list("access-control-allow-origin")) == (200, [PAGE])
        assert answer.headers["access-control-expose-headers"] == "x-request-id, retry-after"
        assert (events[-1], json.loads(events[0])["object"]) == ("[DONE]", "chat.completion.chunk")
        missing = browser.post(CHAT, json={**body, "model": "other"})
        assert (missing.status_code, missing.headers["access-control-allow-origin"]) == (404, PAGE)
        assert [model["id"] for model in browser.get("/v1/models").json()["data"]] == ["xi-tiny"]
    with page(listed, "http://localhost:3000") as browser:
        assert browser.get("/v1/models").headers["access-control-allow-origin"] == "http://localhost:3000"


def test_other_pages_are_refused(listed: RunningServer) -> None:
    with page(listed, "https://evil.example") as browser:
        asked = browser.options(CHAT, headers={"Access-Control-Request-Method": "POST"})
        for answer in (asked, browser.get("/v1/models")):
            assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (403, False)
            assert "XI_ALLOW_ORIGINS" in answer.json()["error"]["message"]


def test_any_page_with_the_key(tmp_path: Path) -> None:
    with (
        RunningServer(tmp_path, env={"XI_API_KEY": "sk-key", "XI_ALLOW_ORIGINS": "*"}) as server,
        page(server, "https://any.example") as browser,
    ):
        asked = browser.options(
            "/v1/models", headers={"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        )
        assert (asked.status_code, asked.headers["access-control-allow-headers"]) == (204, "authorization")
        for key, status in (("sk-key", 200), ("wrong", 401)):
            answer = browser.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, "*")
