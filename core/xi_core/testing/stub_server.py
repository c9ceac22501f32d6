"""An OpenAI server for tests, standard library only, run by path: `python stub_server.py --uds PATH`. Its key is STUB_SERVER_API_KEY.

It answers every prompt with the same text, a token per character, and honours what the conformance kits check, those of embeddings and
rerank included. It can misbehave:
`--die-at-start TEXT`, `--hang-at-start`, and by words in a prompt: `#die`, `#hang`, `#error`, `#abort`, `#cut`, `#garbage`. With
`#prefill` it takes a while to read the prompt, of which its metrics and its log tell, but no event.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXT = "one two three four five six seven eight nine ten 😀 你好 eleven twelve thirteen fourteen fifteen"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = 257
METRICS = """# TYPE stub_running gauge
stub_running{{rank="0"}} 2.0
stub_running{{rank="1"}} 3.0
# TYPE stub_cache gauge
stub_cache{{rank="0"}} 0.25
stub_cache{{rank="1"}} 0.5
# TYPE stub_tokens_total counter
stub_tokens_total {tokens}
"""
CHUNKS = 30
"""Parts of a long prompt…"""
CHUNK = 0.05
"""…and the seconds that each takes."""
KEY = "STUB_SERVER_API_KEY"
SLEEP_ROUTES = ("/sleep", "/wake_up", "/collective_rpc", "/flush_cache", "/release_memory_occupation", "/resume_memory_occupation")


class Server(ThreadingHTTPServer):
    """Serves on a Unix socket or a port of loopback."""

    daemon_threads = True
    request_queue_size = 128
    """More than a test sends at once: a Unix socket refuses connections beyond it, where one of TCP would have them wait."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.names = [options.name, *options.adapter]
        self.tokens = 1e3
        """What its metrics count."""
        self.asleep = 0
        """Level of sleep, as vLLM's and SGLang's servers have it; then it answers requests with 500."""
        if options.uds:
            self.address_family = socket.AF_UNIX
        super().__init__(options.uds or ("127.0.0.1", options.port), Answering)

    def server_bind(self) -> None:
        self.socket.bind(self.options.uds or ("127.0.0.1", self.options.port))

    def get_request(self) -> tuple[Any, Any]:
        connection, _ = self.socket.accept()
        return connection, ("local", 0)


class Refused(Exception):
    """A request that is answered with an error object."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": "BadRequestError", "param": param, "code": status}}


class Answering(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests read the log."""

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._answer(200, "text/plain; version=0.0.4", METRICS.format(tokens=self.server.tokens).encode())
        elif self.path == "/is_sleeping":
            self._whole(200, {"is_sleeping": bool(self.server.asleep)})
        else:
            self._whole(200, {"data": [{"id": name, "max_model_len": self.server.options.context} for name in self.server.names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"null")
        try:
            if self.headers["Authorization"] != f"Bearer {os.environ[KEY]}":
                raise Refused("wrong key", status=401)
            if self._sleeps(body):
                return
            self._check(body)
        except Refused as refused:
            self._whole(refused.status, refused.body)
            return
        if not self.path.endswith("/completions"):
            self._whole(200, pooled(body))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        try:
            self.end_headers()
            for event in self._events(body):
                self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:  # the client has left
            self.close_connection = True

    def _sleeps(self, body: Any) -> bool:
        """Whether the request was one of those for sleep, and is answered."""
        path, _, query = self.path.partition("?")
        server, what = self.server, query.partition("=")[2]
        if not server.options.sleep_mode or path not in SLEEP_ROUTES:
            if server.asleep:
                raise Refused("it is asleep", status=500)
            return False
        say(f"asked for {self.path} {json.dumps(body)}")
        if server.options.sleep_mode == "broken":
            raise Refused("no memory", status=500)
        if server.options.sleep_mode == "busy":
            raise Refused("it is busy")
        if path in ("/sleep", "/release_memory_occupation"):
            server.asleep = int(what or 1)
        elif path in ("/wake_up", "/resume_memory_occupation") and (what == "kv_cache" or server.asleep == 1):
            server.asleep = 0
        self._whole(200, {})
        return True

    def _check(self, body: dict[str, Any]) -> None:
        prompts = body.get("input") or body.get("documents") or [body.get("messages") or body.get("prompt")]
        if body["model"] not in self.server.names:
            raise Refused(f"no model {body['model']}", status=404)
        if any(len(str(prompt)) > self.server.options.context for prompt in prompts):
            raise Refused(f"This model's maximum context length is {self.server.options.context} tokens", "input_tokens")
        ids = [id for one in prompts if isinstance(one, list) for id in one if isinstance(id, int)]
        if any(id >= VOCABULARY for id in ids):
            raise Refused("a token id is outside the vocabulary")
        wrong = [token for token in body.get("logit_bias", {}) if int(token) >= VOCABULARY]
        if wrong:
            raise Refused(f"logit_bias holds {wrong[0]}, which is no token")

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        chat = self.path.endswith("/chat/completions")
        text, finish, tokens = script(body, TEXT if body["model"] == self.server.options.name else f"{body['model']} {TEXT}")
        if "#prefill" in str(body.get("messages") or body.get("prompt")):
            self._prefill()
        for done, piece in enumerate(text):
            time.sleep(self.server.options.pace)
            logprobs = {"content": [logprob(piece, body)]} if body.get("logprobs") is not None else None
            choice: dict[str, Any] = {"index": 0, "delta": {"content": piece}} if chat else {"index": 0, "text": piece}
            if body.get("return_token_ids"):
                choice["token_ids"] = [ord(piece)]
            first = {"prompt_token_ids": [1, 2, 3]} if body.get("return_token_ids") and not done else {}
            yield {"choices": [{**choice, "logprobs": logprobs, "finish_reason": None}], **first}
            if done == 2:
                yield from self._misbehave(str(body.get("messages") or body.get("prompt")))
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": finish}
        if body.get("return_token_ids"):
            last["token_ids"] = [VOCABULARY - 1] * (tokens - len(text))
        yield {"choices": [last]}
        yield {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}}

    def _prefill(self) -> None:
        for part in range(CHUNKS):
            time.sleep(CHUNK)
            self.server.tokens += 1
            say(f"prefilled {part}")

    def _misbehave(self, prompt: str) -> Iterator[dict[str, Any]]:
        if "#die" in prompt:
            say("something broke")
            os._exit(7)
        if "#hang" in prompt:
            threading.Event().wait()
        if "#error" in prompt:
            yield {"error": {"message": "it came apart", "type": "InternalServerError", "param": None, "code": 500}}
        if "#abort" in prompt:
            raw = b'{"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}'
            self._chunk(b"data: " + raw + b"\n\n")
        if "#cut" in prompt:
            self.connection.shutdown(socket.SHUT_RDWR)
        if "#garbage" in prompt:
            self.wfile.write(b"this is no chunk\r\n")

    def _whole(self, status: int, body: dict[str, Any]) -> None:
        self._answer(status, "application/json", json.dumps(body).encode())

    def _answer(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def script(body: dict[str, Any], text: str) -> tuple[str, str, int]:
    """The text of an answer, how it finishes, and its tokens."""
    if body["temperature"] > 1e-5:
        chooser = random.Random(body.get("seed"))
        text = "".join(chooser.choice(LETTERS) for _ in TEXT)
    if body.get("logit_bias"):
        text = chr(int(max(body["logit_bias"], key=body["logit_bias"].get))) * len(TEXT)
    most = body.get("max_tokens") or 400
    if body["ignore_eos"]:
        text = (text * (most // len(text) + 1))[:most]
    for stop in body["stop"]:
        if stop in text[:most]:
            end = text.index(stop)
            return text[:end], "stop", end + len(stop)
    return (text[:most], "length", most) if most <= len(text) else (text, "stop", len(text) + 1)


def pooled(body: dict[str, Any]) -> dict[str, Any]:
    """Vectors of length 1, or scores: how often characters come, by their numbers' last digit."""
    if "documents" in body:
        query = vector(body["query"])
        scores = [math.fsum(a * b for a, b in zip(query, vector(text), strict=True)) for text in body["documents"]]
        usage = {"prompt_tokens": 0, "total_tokens": sum(len(body["query"]) + len(text) for text in body["documents"])}
        return {"results": [{"index": index, "relevance_score": score} for index, score in enumerate(scores)], "usage": usage}
    vectors = [struct.pack("<10f", *vector(one)) for one in body["input"]]
    data = [{"index": index, "embedding": base64.b64encode(one).decode()} for index, one in enumerate(vectors)]
    return {"data": data, "usage": {"prompt_tokens": sum(map(len, body["input"]))}}


def vector(text: str | list[int]) -> list[float]:
    """Ten numbers for a text or for token ids."""
    counts = [1] * 10
    for one in text:
        counts[(ord(one) if isinstance(one, str) else one) % 10] += 1
    return [count / math.hypot(*counts) for count in counts]


def logprob(piece: str, body: dict[str, Any]) -> dict[str, Any]:
    """The entry of one token, with as many alternatives as were asked for."""
    asked = body.get("top_logprobs") or (0 if body["logprobs"] is True else body["logprobs"])
    tokens = [piece, *(chr(0x100 + other) for other in range(asked - 1))]
    top = [{"token": token, "logprob": math.log(0.5 ** (rank + 1)), "bytes": list(token.encode())} for rank, token in enumerate(tokens)]
    return {**top[0], "top_logprobs": top[:asked]}


def say(line: str) -> None:
    """A line of the server's log."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--adapter", action="append", default=[], help="another name to serve, whose answers begin with it")
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--sleep-mode", default="", help="it can sleep; 'broken' or 'busy': but it fails, or refuses to")
    parser.add_argument("--die-at-start", default="")
    parser.add_argument("--hang-at-start", action="store_true")
    parser.add_argument("--with-sibling", action="store_true", help="start a process that outlives the server, and hides")
    options = parser.parse_args()
    say(f"loading with the key {os.environ[KEY]}")
    if options.die_at_start:
        say(options.die_at_start)
        sys.exit(5)
    if options.with_sibling:
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={}, start_new_session=True)
        say(f"sibling {sleeper.pid}")
    if options.hang_at_start:
        threading.Event().wait()
    server = Server(options)
    say("ready")
    server.serve_forever()


if __name__ == "__main__":
    main()
