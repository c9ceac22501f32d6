"""The `modelscope` source: ModelScope's HTTP protocol, as its own client library (modelscope_hub, `_legacy_api.py`) speaks it.

    GET /api/v1/models/ID/repo/files?Revision=…&Recursive=True      Data.Files: Path, Size, Sha256, Type
    GET /api/v1/models/ID/repo?Revision=…&FilePath=…                a file; with Range from a byte on

`MODELSCOPE_ENDPOINT` names another hub, `MODELSCOPE_API_TOKEN` or `modelscope login` give the token.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import msgspec

from xi_core.errors import ArtifactError
from xi_core.models.downloading import Download, Transient, append, part_of
from xi_core.models.family import SourceRef
from xi_core.models.hub import CHUNK, HubSource, Listing, seconds_of
from xi_core.models.hub_files import HubFile

ENDPOINT = "https://modelscope.cn"
TIMEOUT = 10.0
"""Seconds without a byte after which a connection is given up."""
MOST_FILES = 3000
"""The hub lists no more files than this, without a word on the others."""
LARGEST_LISTING = 64 * 1024 * 1024


class ModelScopeSource(HubSource):
    """Models of ModelScope."""

    name = "modelscope"

    def listing(self, ref: SourceRef) -> Listing:
        query = urlencode({"Revision": _revision(ref), "Recursive": "True"})
        with _mapped(ref), _opened(f"/api/v1/models/{quote(ref.id)}/repo/files?{query}") as response:
            body = response.read(LARGEST_LISTING)
        try:
            entries = msgspec.json.decode(body)["Data"]["Files"] or []
            files = [
                HubFile(name=one["Path"], size=int(one["Size"]), sha256=one.get("Sha256") or None)
                for one in entries
                if one["Type"] != "tree"
            ]
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{_endpoint()} answers what is no listing of '{ref.id}' ({error!r}); is MODELSCOPE_ENDPOINT right?"
            ) from None
        if len(entries) >= MOST_FILES:
            raise ArtifactError(f"'{ref.id}' has more files than ModelScope lists ({MOST_FILES}); take it from another source (--source)")
        return Listing(commit=_pin(files), files=files)

    def download(self, ref: SourceRef, listing: Listing, file: HubFile, folder: Path, download: Download) -> Path:
        path, start = part_of(folder, file, download)
        if start == file.size > 0:
            return path
        query = urlencode({"Revision": _revision(ref), "FilePath": file.name})
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with _mapped(ref), _opened(f"/api/v1/models/{quote(ref.id)}/repo?{query}", headers) as response:
                append(path, start if response.status == 206 else 0, _chunks(response), file, download)
        except _BadRange:
            download.check()  # after the end it may be another launch's
            path.unlink(missing_ok=True)
            raise Transient(f"the hub has not as many bytes of {file.name} as are here; from the beginning") from None
        return path


class _BadRange(Exception):
    """Status 416."""


def _pin(files: list[HubFile]) -> str:
    """What pins the files: a hash of their names, sizes and hashes, for the listing tells no commit that the whole of it belongs to."""
    lines = sorted(f"{file.name}\n{file.size}\n{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:40]


def _revision(ref: SourceRef) -> str:
    return ref.revision or "master"


def _endpoint() -> str:
    given = os.environ.get("MODELSCOPE_ENDPOINT", "").strip().rstrip("/") or ENDPOINT
    return given if "://" in given else f"https://{given}"


def _token() -> str:
    """The token from the environment, or where the client library keeps it."""
    with contextlib.suppress(OSError, RuntimeError):
        kept = Path(os.environ.get("MODELSCOPE_CREDENTIALS_PATH") or "~/.modelscope/credentials").expanduser() / "git_token"
        return os.environ.get("MODELSCOPE_API_TOKEN") or kept.read_text().strip()
    return ""


class _OwnHostOnly(HTTPRedirectHandler):
    """Redirects lead to storage of others, whom the token is no concern of."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPError(newurl, code, "a redirect to no address of the web", headers, fp)
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            for name in ("Authorization", "Cookie"):
                found.remove_header(name)
        return found


@contextlib.contextmanager
def _opened(path: str, headers: dict[str, str] | None = None) -> Iterator[http.client.HTTPResponse]:
    token = _token()
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise ArtifactError("MODELSCOPE_API_TOKEN holds what no token does: blanks or other signs; set it again")
    own = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
    url = f"{_endpoint()}{path}"
    if urlsplit(url).scheme not in ("http", "https"):
        raise ArtifactError(f"MODELSCOPE_ENDPOINT: '{_endpoint()}' is no http or https address")
    request = Request(url, headers={"User-Agent": "xi-inference", "Accept-Encoding": "identity", **own, **(headers or {})})  # noqa: S310
    with build_opener(_OwnHostOnly).open(request, timeout=TIMEOUT) as response:
        yield response


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, as it comes. A connection that fails is a `Transient`, so that it isn't taken for the disk."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (http.client.HTTPException, OSError) as error:
            raise Transient(f"the connection broke ({type(error).__name__}: {error})") from error
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _mapped(ref: SourceRef) -> Iterator[None]:
    """The protocol's errors as `ArtifactError`, or `Transient` where they may pass. Errors of the disk go through."""
    try:
        yield
    except HTTPError as error:
        error.close()
        if error.code == 416:
            raise _BadRange from None
        raise _of_status(error.code, error.headers.get("Retry-After"), ref) from error
    except (URLError, TimeoutError, ConnectionError, socket.gaierror, ssl.SSLError, http.client.HTTPException) as error:
        raise Transient(f"no answer from {_endpoint()} ({type(error).__name__}: {error})") from error


def _of_status(status: int, retry_after: str | None, ref: SourceRef) -> Exception:
    token = "a token in MODELSCOPE_API_TOKEN, or `modelscope login`, on the worker's machine"  # noqa: S105 - words about one
    if status in (408, 429) or status >= 500:
        return Transient(f"the hub answers {status}{' (too many requests)' if status == 429 else ''}", seconds_of(retry_after))
    if status in (401, 403):
        return ArtifactError(f"ModelScope refuses '{ref.id}' ({status}): set {token} that may read it, and accept its licence on its page")
    if status == 404:
        return ArtifactError(
            f"there is no model '{ref.id}' with a revision '{_revision(ref)}' at ModelScope, or it is private: check both, or set {token}"
        )
    return ArtifactError(f"ModelScope refuses '{ref.id}' with status {status}")
