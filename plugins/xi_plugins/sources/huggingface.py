"""The `huggingface` source, over the library huggingface_hub, whose own are `HF_ENDPOINT`, `HF_TOKEN`, `hf auth login` and proxies.

Files come over plain HTTP, which can go on after a break. Xet, Hugging Face's other way, can't: it is used where it must be, for files of
more than 50 GB, and where `HF_XET_HIGH_PERFORMANCE` asks for it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from xi_core.errors import ArtifactError
from xi_core.models.downloading import Download, Transient, append, part_of
from xi_core.models.family import SourceRef
from xi_core.models.hub import HubSource, Listing, seconds_of
from xi_core.models.hub_files import HubFile

TIMEOUT = 10.0
"""Seconds without a byte after which a connection is given up."""
LARGEST_BY_HTTP = 50 * 1000**3


class HuggingFaceSource(HubSource):
    """Models of the Hugging Face hub, or of another that speaks its protocol."""

    name = "huggingface"

    def listing(self, ref: SourceRef) -> Listing:
        hub = _library()
        with _mapped(ref):
            info = hub.HfApi(endpoint=_endpoint()).model_info(ref.id, revision=ref.revision, files_metadata=True, timeout=TIMEOUT)
        files = []
        for one in info.siblings or []:
            if one.size is None:
                raise ArtifactError(f"{self.name} doesn't tell the size of {one.rfilename} of '{ref.id}'; what came is no listing of a hub")
            lfs = one.lfs
            files.append(
                HubFile(name=one.rfilename, size=one.size, sha256=lfs.sha256 if lfs else None, git_sha1=None if lfs else one.blob_id)
            )
        return Listing(commit=info.sha or "", files=files)

    def download(self, ref: SourceRef, listing: Listing, file: HubFile, folder: Path, download: Download) -> Path:
        hub = _library()
        if file.size > LARGEST_BY_HTTP or os.environ.get("HF_XET_HIGH_PERFORMANCE", "").lower() in ("1", "on", "yes", "true"):
            return _by_library(ref, listing, file, folder, download)
        path, start = part_of(folder, file, download)
        if start == file.size > 0:
            return path
        url = hub.hf_hub_url(ref.id, file.name, revision=listing.commit, endpoint=_endpoint())
        headers = hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with _mapped(ref), hub.get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
            if response.status_code == 416:
                download.check()  # after the end it may be another launch's
                path.unlink(missing_ok=True)
                raise Transient(f"the hub has not as many bytes of {file.name} as are here; from the beginning")
            hub.utils.hf_raise_for_status(response)
            _check_commit([*response.history, response], listing, file)
            append(path, start if response.status_code == 206 else 0, response.iter_bytes(), file, download)
        return path


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _library() -> Any:
    try:
        return import_module("huggingface_hub")
    except ImportError:
        raise ArtifactError(
            "downloads from Hugging Face need the library huggingface_hub; install it and start xi again: "
            "pip install 'xi-inference[huggingface]'"
        ) from None


def _check_commit(responses: list[Any], listing: Listing, file: HubFile) -> None:
    told = next((found for one in responses if (found := one.headers.get("X-Repo-Commit"))), listing.commit)
    if told != listing.commit:
        raise ArtifactError(f"the hub sends {file.name} of commit {told[:40]}, and was asked for {listing.commit}; launch again")


def _by_library(ref: SourceRef, listing: Listing, file: HubFile, folder: Path, download: Download) -> Path:
    """By the library's own download, which uses Xet where it can. It begins anew after a break."""
    tqdm: Any = import_module("tqdm").tqdm
    download.resume(0)

    class Told(tqdm):  # type: ignore[misc]
        """Tells the bytes to the launch in place of drawing them."""

        def __init__(self, *_: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(**{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            download.came(int(n or 0))
            return None

    with _mapped(ref):
        return Path(
            _library().hf_hub_download(ref.id, file.name, revision=listing.commit, local_dir=folder, tqdm_class=Told, endpoint=_endpoint())
        )


@contextlib.contextmanager
def _mapped(ref: SourceRef) -> Iterator[None]:
    """The library's errors as `ArtifactError`, or `Transient` where they may pass. Errors of the disk go through."""
    errors = import_module("huggingface_hub.errors")
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        raise Transient(f"the hub can't be reached ({error.__cause__ or error})") from error
    except errors.OfflineModeIsEnabled:
        raise ArtifactError(f"'{ref.id}' is not in the cache, and HF_HUB_OFFLINE is set: unset it, or pull the model elsewhere") from None
    except errors.HfHubHTTPError as error:
        raise _of_status(error, ref) from error
    except errors.HFValidationError as error:
        raise ArtifactError(f"'{ref.id}' is no id of a model at Hugging Face: {error}") from None
    except errors.HTTPError as error:  # the HTTP library's own: no connection, a time-out, a broken answer
        raise Transient(f"no answer from {_endpoint() or 'the hub'} ({type(error).__name__}: {error})") from error


def _of_status(error: Any, ref: SourceRef) -> Exception:
    status, headers = error.response.status_code, error.response.headers
    code = headers.get("X-Error-Code", "")
    if status == 429 or status == 408 or status >= 500:
        reset = re.search(r";\s*t=(\d+)", headers.get("ratelimit", "")) if status == 429 else None
        asked = seconds_of(headers.get("Retry-After"))
        wait = asked if asked is not None else float(reset[1]) if reset else None
        return Transient(f"the hub answers {status}{' (too many requests)' if status == 429 else ''}", wait)
    return ArtifactError(_refusal(status, code, ref))


def _refusal(status: int, code: str, ref: SourceRef) -> str:
    """What the hub's refusal means, and what to do."""
    token = "a token in HF_TOKEN, or `hf auth login`, on the worker's machine"  # noqa: S105 - words about one
    page = f"https://huggingface.co/{ref.id}"
    if code == "GatedRepo":
        return f"'{ref.id}' is gated: accept its licence at {page} and set {token}; then launch again"
    if code == "RevisionNotFound":
        return f"'{ref.id}' has no revision '{ref.revision}' at Hugging Face; its branches and tags: {page}/tree/main"
    if code == "EntryNotFound":
        return f"a file of '{ref.id}' is no longer there; launch again"
    if code == "RepoNotFound" or status == 404:
        return f"there is no model '{ref.id}' at Hugging Face, or it is private: check the id, or set {token}"
    if status in (401, 403):
        return f"Hugging Face refuses '{ref.id}' ({status}): set {token} that may read it, and accept its licence at {page} if it has one"
    return f"Hugging Face refuses '{ref.id}' with status {status}{f' ({code})' if code else ''}"
