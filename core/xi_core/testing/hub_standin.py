"""A stand-in for model hubs on this machine, which speaks Hugging Face's and ModelScope's HTTP protocols, and fails as it is told to.

Hugging Face: `/api/models/ID[/revision/REV]`, `/ID/resolve/REV/FILE`, which sends large files from another host, as the hub does.
ModelScope: `/api/v1/models/ID/repo/files` and `/api/v1/models/ID/repo`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from msgspec import Struct, field

LARGE = 1000
"""Files from so many bytes on are kept as LFS files are: with a SHA-256, and elsewhere."""
PIECE = 16 * 1024


class HubModel(Struct):
    """A model of the stand-in. `token`: who doesn't send it is refused."""

    files: dict[str, bytes]
    token: str = ""
    gated: bool = False
    revision: int = 0

    @property
    def commit(self) -> str:
        """Changes with `revision`."""
        return hashlib.sha1(b"%d" % self.revision, usedforsecurity=False).hexdigest()


class Fault(Struct, kw_only=True):
    """What goes wrong with requests whose path and query contain `where`, `times` times."""

    where: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    stall_after: int | None = None
    """Send so many bytes and then none, until the stand-in is told to go on (`resume`)."""
    shorten: int = 0
    """Have the file end so many bytes early, as if it were whole."""
    flip: int | None = None
    """Change the byte at this place."""
    commit: str = ""
    """Tell another commit."""
    after: str = ""
    """Answer only once a request whose path and query contain this has come."""
    times: int = 1


class Asked(Struct):
    """A request that came."""

    method: str
    path: str
    host: str
    range: str
    authorization: str


class HubStandIn:
    """A context manager: listens at `endpoint` of a free loopback port. `models` by id; `faults` are used up."""

    def __init__(self) -> None:
        self.models: dict[str, HubModel] = {}
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.most_at_once = 0
        """Most files that were sent, or held back, at a time."""
        self.resume = threading.Event()
        self.stalled = threading.Event()
        self._lock = threading.Condition()
        self._sending = 0
        self._stopped = False
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_address[1]

    @property
    def endpoint(self) -> str:
        """For `HF_ENDPOINT` and `MODELSCOPE_ENDPOINT`."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer no more."""
        self.resume.set()
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def fault_of(self, path: str) -> Fault | None:
        """The fault that a request meets."""
        with self._lock:
            for fault in self.faults:
                if fault.where in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def came(self, request: Asked) -> None:
        """A request comes."""
        with self._lock:
            self.asked.append(request)
            self._lock.notify_all()

    @contextmanager
    def sending(self, after: str) -> Iterator[None]:
        """While a file is sent, not before a request with `after` has come."""
        with self._lock:
            self._sending += 1
            self.most_at_once = max(self.most_at_once, self._sending)
            self._lock.wait_for(lambda: self._stopped or any(after in one.path for one in self.asked))
        try:
            yield
        finally:
            with self._lock:
                self._sending -= 1

    def gets(self, part: str) -> list[Asked]:
        """The GET requests whose path contains `part`."""
        return [one for one in self.asked if one.method == "GET" and part in one.path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubStandIn

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up: that is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """One request of either protocol."""
        hub, url = self.server.hub, urlsplit(self.path)
        path, query = unquote(url.path), {name: values[0] for name, values in parse_qs(url.query).items()}
        get = self.headers.get
        hub.came(Asked(self.command, unquote(self.path), get("Host", ""), get("Range", ""), get("Authorization", "")))
        fault = hub.fault_of(unquote(self.path))
        if fault is not None and fault.status:
            self._answer(fault.status, b"{}", fault.headers)
            return
        for pattern, answer in (
            (r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", self._hf_info),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._hf_file),
            (r"/storage/([^/]+/[^/]+)/(.+)", self._storage),
            (r"/api/v1/models/([^/]+/[^/]+)/repo/files", self._ms_files),
            (r"/api/v1/models/([^/]+/[^/]+)/repo", self._ms_file),
        ):
            if found := re.fullmatch(pattern, path):
                answer(fault or Fault(where=""), query, *found.groups())
                return
        self._answer(404, b"{}")

    # ---- Hugging Face ---------------------------------------------------------------------------

    def _known(self, id: str) -> HubModel | None:
        model = self.server.hub.models.get(id)
        if model is None:
            self._answer(404 if self.headers.get("Authorization") else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        if model.token and self.headers.get("Authorization") != f"Bearer {model.token}":
            self._answer(403 if model.gated else 401, b"{}", {"X-Error-Code": "GatedRepo"} if model.gated else {})
            return None
        return model

    def _hf_info(self, fault: Fault, query: dict[str, str], id: str, revision: str | None) -> None:
        model = self._known(id)
        if model is None:
            return
        if revision not in (None, "main", model.commit):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for name, body in model.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
            lfs = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest(), "pointerSize": 130}
            siblings.append({"rfilename": name, "size": len(body), "blobId": git, **({"lfs": lfs} if len(body) >= LARGE else {})})
        self._answer(200, json.dumps({"id": id, "modelId": id, "sha": model.commit, "siblings": siblings}).encode())

    def _hf_file(self, fault: Fault, query: dict[str, str], id: str, revision: str, name: str) -> None:
        model = self._known(id)
        if model is None:
            return
        if revision not in ("main", model.commit):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        body = model.files.get(name)
        if body is None:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        sha256 = hashlib.sha256(body).hexdigest()
        headers = {"X-Repo-Commit": fault.commit or model.commit, "ETag": f'"{sha256}"'}
        if len(body) < LARGE:
            self._send(body, headers, fault)
            return
        linked = {"X-Linked-Size": str(len(body)), "X-Linked-Etag": f'"{sha256}"'}
        self._answer(302, b"", headers | linked | {"Location": f"http://localhost:{self.server.hub.port}/storage/{id}/{name}"})

    def _storage(self, fault: Fault, query: dict[str, str], id: str, name: str) -> None:
        self._send(self.server.hub.models[id].files[name], {}, fault)

    # ---- ModelScope -----------------------------------------------------------------------------

    def _ms_files(self, fault: Fault, query: dict[str, str], id: str) -> None:
        model = self._known(id)
        if model is None:
            return
        files = [
            {
                "Path": name,
                "Name": name,
                "Size": len(body),
                "Sha256": hashlib.sha256(body).hexdigest(),
                "Type": "blob",
                "Revision": model.commit,
            }
            for name, body in model.files.items()
        ]
        folder = {"Path": "folder", "Name": "folder", "Size": 0, "Sha256": "", "Type": "tree", "Revision": model.commit}
        self._answer(200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": [folder, *files]}}).encode())

    def _ms_file(self, fault: Fault, query: dict[str, str], id: str) -> None:
        model = self._known(id)
        if model is None:
            return
        body = model.files.get(query.get("FilePath", ""))
        self._send(body, {}, fault) if body is not None else self._answer(404, b"{}")

    # ---- answering ------------------------------------------------------------------------------

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, whole: bytes, headers: dict[str, str], fault: Fault) -> None:
        """A file, or what is left of it from `Range` on."""
        with self.server.hub.sending(fault.after):
            self._send_now(whole, headers, fault)

    def _send_now(self, whole: bytes, headers: dict[str, str], fault: Fault) -> None:
        body = whole[: len(whole) - fault.shorten]
        if fault.flip is not None:
            body = body[: fault.flip] + bytes([body[fault.flip] ^ 1]) + body[fault.flip + 1 :]
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        if start and start >= len(body):
            self._answer(416, b"")
            return
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in {**headers, "Content-Length": str(len(body) - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._pieces(body[start:], fault)

    def _pieces(self, body: bytes, fault: Fault) -> None:
        for place in range(0, len(body), PIECE):
            if fault.cut_after is not None and place >= fault.cut_after:
                self.close_connection = True
                self.connection.close()
                return
            if fault.stall_after is not None and place >= fault.stall_after:
                self.server.hub.stalled.set()
                self.server.hub.resume.wait()
                fault.stall_after = None
            self.wfile.write(body[place : place + PIECE])
            self.wfile.flush()
