"""Batches of requests in OpenAI's file format: read, sent many at once, answers written as they come. Called by `xi batch`.

    {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}          a line of the input
    {"id": "batch_req_…", "custom_id": "1", "response": {"status_code": 200, "request_id": "…", "body": {…}}, "error": null}

Format: https://platform.openai.com/docs/guides/batch. Answers come in any order; `custom_id` tells which is which. `read_requests` and
`Results` check everything before the first request is sent. `run` sends with any `Ask`: a server's, or an offline model's.
"""

from __future__ import annotations

import codecs
import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from xi_core.batch_results import Reply, Result, Results
from xi_core.errors import InvalidRequest, LaunchError, Overloaded, ProtocolMismatch, TransportError, Unavailable, XiError, envelope

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank")
MOST_COMPLAINTS = 10
"""Bad lines that are named; the others are counted."""
MAX_TRIES = 10
"""So often a request is sent that is answered with 429 or 503."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before another try, or more where the answer says so; they double each time."""

Ask = Callable[[str, bytes], bytes]
"""Sends a body to a route and returns the answer's body. Raises `XiError`. Called from many threads."""


class BatchRequest(Struct, kw_only=True):
    """One line of the input; `body` is a whole request of the API, as JSON."""

    custom_id: str
    url: str
    model: str
    body: bytes


class Counts(Struct, kw_only=True):
    """How a batch went. `skipped` were done before."""

    total: int
    skipped: int = 0
    done: int = 0
    failed: int = 0


class Watch(Protocol):
    """Told of each request that has an answer."""

    def __call__(self, counts: Counts, result: Result) -> None: ...


class _Line(Struct, kw_only=True):
    custom_id: str
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


def read_requests(path: Path, model: str | None) -> list[BatchRequest]:
    """The requests of a file; with `model`, each asks for that one. Raises `InvalidRequest`, naming every bad line with its number."""
    requests: dict[str, BatchRequest] = {}
    lines: dict[str, int] = {}
    complaints: list[str] = []
    for number, line in _lines(path):
        try:
            request = _request(line, model)
            if request.custom_id in requests:
                raise InvalidRequest(f"custom_id '{request.custom_id[:80]}' is that of line {lines[request.custom_id]} too")
        except InvalidRequest as error:
            complaints.append(f"line {number}: {error.message}")
            continue
        requests[request.custom_id], lines[request.custom_id] = request, number
    if complaints:
        more = f"\n… and {len(complaints) - MOST_COMPLAINTS} more" if len(complaints) > MOST_COMPLAINTS else ""
        raise InvalidRequest(f"{path} is no batch; nothing was sent:\n" + "\n".join(complaints[:MOST_COMPLAINTS]) + more)
    if not requests:
        raise InvalidRequest(f"{path} holds no requests")
    return list(requests.values())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers from 1 on."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line if number > 1 else line.removeprefix(codecs.BOM_UTF8)  # which editors of Windows write
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InvalidRequest(f"{path} can't be read: {error.strerror or error}") from None


def _request(line: bytes, model: str | None) -> BatchRequest:
    try:
        found = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(str(error)) from None
    if not found.custom_id:
        raise InvalidRequest("custom_id is empty")
    if found.url not in URLS:
        raise InvalidRequest(f"url '{found.url[:80]}' is none of {', '.join(URLS)}")
    if found.body.get("stream"):
        raise InvalidRequest("body.stream: answers of a batch can't be streamed; leave it out")
    if model is not None:
        found.body["model"] = model
    named = found.body.get("model")
    if not isinstance(named, str) or not named:
        raise InvalidRequest("body.model: the request names no model; add it, or name one for all with -m")
    return BatchRequest(custom_id=found.custom_id, url=found.url, model=named, body=msgspec.json.encode(found.body))


def run(requests: Iterable[BatchRequest], ask: Ask, results: Results, concurrency: int, watch: Watch) -> Counts:
    """Send what `results` doesn't hold yet, `concurrency` requests at a time. Returns when all have an answer.

    A `KeyboardInterrupt` of the caller stops it: answers that have come are kept, and nothing is written any more. So does what it raises:
    `Unavailable` or `LaunchError` where nobody answers any more, `OSError` of a results' file that can't be written.
    """
    given = list(requests)
    left = [request for request in given if request.custom_id not in results.finished]
    work = _Work(left, ask, results, Counts(total=len(given), skipped=len(given) - len(left)), watch)
    # Daemons: an interrupt must not wait for answers.
    threads = [threading.Thread(target=work.run, name=f"batch-{n}", daemon=True) for n in range(min(concurrency, len(left)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        work.stop()
    if work.failure is not None:
        raise work.failure
    return work.counts


class _Work:
    """What the threads of one run share."""

    def __init__(self, requests: list[BatchRequest], ask: Ask, results: Results, counts: Counts, watch: Watch) -> None:
        self.counts = counts
        self.failure: BaseException | None = None
        self._ask, self._results, self._watch = ask, results, watch
        self._waiting: queue.SimpleQueue[BatchRequest] = queue.SimpleQueue()
        for request in requests:
            self._waiting.put(request)
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def stop(self) -> None:
        """Start nothing more; when this returns, nothing is being written."""
        with self._lock:
            self._stopped.set()

    def run(self) -> None:
        """Send until there is nothing left. One thread's life."""
        try:
            while not self._stopped.is_set():
                self._one(self._waiting.get_nowait())
        except queue.Empty:
            return
        except BaseException as error:  # whatever it is, the caller of `run` gets it
            self.failure = error
            self._stopped.set()

    def _one(self, request: BatchRequest) -> None:
        result = self._sent(request)
        with self._lock:
            if result is None or self._stopped.is_set():
                return
            self._results.add(result)
            if result.ok:
                self.counts.done += 1
            else:
                self.counts.failed += 1
            self._watch(self.counts, result)

    def _sent(self, request: BatchRequest) -> Result | None:
        """The result of one request; None when the run was stopped.

        Raises `Unavailable` after the last try, and `LaunchError` of an offline model that has failed: the others would fare no better.
        """
        wait = FIRST_WAIT
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                return _answered(request, self._ask(request.url, request.body))
            except (Overloaded, Unavailable) as error:
                if not tries_left and isinstance(error, Unavailable):
                    raise
                if not tries_left:
                    return _refused(request, error)
                # The server says each time when to look again, not when it will be well: it alone would have all tries spent in seconds.
                # Spread a little, so that all don't come back in one moment.
                pause = max(error.retry_after or 0.0, wait) * random.uniform(1.0, 1.2)
                wait = min(2 * wait, LONGEST_WAIT)
                if self._stopped.wait(pause):
                    return None
            except LaunchError:
                raise
            except XiError as error:
                return _refused(request, error)
        return None


class _Named(Struct):
    id: Any = ""


def _answered(request: BatchRequest, body: bytes) -> Result:
    try:
        named = msgspec.json.decode(body, type=_Named).id
    except msgspec.DecodeError as error:  # nothing, or a page of a proxy's own
        return _refused(request, ProtocolMismatch(f"what came with status 200 is no answer: {error}"))
    named = named if isinstance(named, str) else ""
    if b"\n" in body:  # an answer is a line
        body = msgspec.json.format(body, indent=-1)
    return Result(
        custom_id=request.custom_id,
        response=Reply(status_code=200, request_id=named, body=msgspec.Raw(body)),
    )


def _refused(request: BatchRequest, error: XiError) -> Result:
    """A refusal is an answer with its status; where no answer came, it is the line's `error`."""
    body = error.body()
    if isinstance(error, TransportError):
        return Result(custom_id=request.custom_id, error={"code": error.code, "message": error.message})
    return Result(custom_id=request.custom_id, response=Reply(status_code=body.status, request_id="", body=msgspec.Raw(envelope(body))))
