"""The cache of downloaded models under `XI_HOME/models`: content-addressed, whole or absent, and verified before it is used.

blobs/SHA256                     each file once, whatever models share it
SOURCE/ID/COMMIT/…               a model: links to its blobs, and `.xi-manifest.json` with sizes and hashes, written last
SOURCE/ID/refs/REVISION          which commit a revision's name meant when it was last asked for
partial/SOURCE/ID/COMMIT/…       what is being downloaded; it is gone on with after a break
locks/…                          who downloads what, who verifies it (`+used`), and who serves it (`+COMMIT`)

A blob is in use while something else links to it: a model, or a download that has it already.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from xi_core.errors import ArtifactError, Conflict, NotFound
from xi_core.models.cache_disk import disk_errors, link_to
from xi_core.models.hashing import SHA256_DIGITS, CachedFile, checked_hash, checked_name, git_sha1_of, sha256_of, verify_files
from xi_core.models.source import Progress

log = logging.getLogger(__name__)

MANIFEST = ".xi-manifest.json"
KEPT = ".kept"
"""In a download's folder: links to the blobs that it has."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
POLL = 0.2


class CachedModel(Struct, kw_only=True):
    """One model in the cache: its manifest."""

    source: str
    id: str
    revision: str
    """The commit, or whatever the source pins files by."""
    files: list[CachedFile]
    created: float
    """When it was complete, in seconds since 1970."""
    whole: bool = True
    """Whether these are all files that a launch of the repository gets, and not only some that were named."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


class Stored(Struct, frozen=True):
    """One commit of a model that takes room, whether it is complete, damaged, or came in part."""

    source: str
    id: str
    revision: str


class ModelCache:
    """The cache of one XI_HOME. Any number of processes may use it at once."""

    def __init__(self, home: Path) -> None:
        self.root = home / "models"
        self._blobs = self.root / "blobs"
        self._linking = threading.Lock()
        """Of the threads that download the files of one model, where two may have the same content."""

    # ---- reading --------------------------------------------------------------------------------

    def find(self, source: str, id: str, revision: str | None) -> Path | None:
        """The folder of a complete model, by commit or by a revision's name as it was last resolved; None where there is none."""
        place = self._place(source, id)
        with disk_errors(self.root):
            commit = self._commit(place, revision)
            path = place / commit if commit else None
            return path if path is not None and (path / MANIFEST).is_file() else None

    def manifest(self, path: Path) -> CachedModel:
        """The manifest of a model's folder. Raises `ArtifactError` where it can't be read."""
        try:
            return msgspec.json.decode((path / MANIFEST).read_bytes(), type=CachedModel)
        except (OSError, msgspec.DecodeError) as error:
            raise ArtifactError(
                f"the manifest of {path} can't be read ({error}); remove the model (xi remove-cache) and launch again"
            ) from None

    def models(self) -> list[CachedModel]:
        """All complete models, by source and id."""
        found = []
        for path in self.root.glob(f"*/*/[!.]*/{MANIFEST}"):  # not what `publish` was making when it was killed
            try:
                found.append(self.manifest(path.parent))
            except ArtifactError as error:
                log.warning("%s", error.message)
        return sorted(found, key=lambda model: (model.source, model.id, model.created))

    def stored(self) -> list[Stored]:
        """All that can be removed, whole or not, by source and id."""
        found = set()
        for path in (*self.root.glob("*/*/*"), *self.root.glob("partial/*/*/*")):
            source, id, revision = path.parts[-3], path.parts[-2].replace("--", "/", 1), path.name
            if source != "partial" and _COMMIT.fullmatch(revision) and _NAME.fullmatch(id) and path.is_dir():
                found.add((source, id, revision))
        return [Stored(*one) for one in sorted(found)]

    def path_of(self, model: CachedModel | Stored) -> Path:
        """The folder of a model."""
        return self._place(model.source, model.id) / model.revision

    def sizes_of(self, one: Stored) -> tuple[Path, list[int]]:
        """The folder of what is stored, and the sizes of its files, with those that came in part. They may go meanwhile."""
        folders = [self.path_of(one), self._partials(one.source, one.id) / one.revision]
        there = [folder for folder in folders if folder.is_dir()]
        return (there or folders)[0], [size for folder in there for size in _sizes(folder)]

    def came(self, source: str, id: str) -> int:
        """Bytes of a model that has been downloaded in part, by any process. It grows while bytes come."""
        return sum(_sizes(self._partials(source, id)))

    def verify(self, path: Path, progress: Progress, names: set[str] | None = None) -> None:
        """Hash the model's files, or those of `names`, in parallel. `progress` may raise to end it.

        Raises `ArtifactError`, naming the file that isn't as it was downloaded.
        """
        model = self.manifest(path)
        wanted = [file for file in model.files if names is None or file.name in names]
        before = 0

        def told(done: int, total: int) -> None:
            nonlocal before
            grown, before = done > before, done
            progress("verifying the files", done / total if grown else None)

        found = verify_files(path, wanted, told)
        if found is not None:
            file, wrong = found
            raise ArtifactError(
                f"{path / file.name} is damaged: {wrong}; nothing was loaded. Remove the model (xi remove-cache -n {model.id}) "
                f"and launch again to download it anew"
            )

    # ---- writing --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, source: str, id: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Only one downloads a model at a time. `waiting` is called while another does, and may raise."""
        with contextlib.ExitStack() as stack:
            with disk_errors(self.root):
                lock = stack.enter_context(self._lock(source, id))
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waiting()
                    time.sleep(POLL)
            yield

    @contextlib.contextmanager
    def used(self, source: str, id: str) -> Iterator[None]:
        """Nobody removes a model meanwhile; any number may use it. A cache that can't be written is used as it is."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                fcntl.flock(stack.enter_context(self._lock(source, id, "+used")), fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def serving(self, artifact: Path) -> Iterator[None]:
        """Nobody removes the commit of which this is the folder or a file. Otherwise as `used`; of what lies outside nothing is kept."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, ValueError, ArtifactError):  # it is in another place, or no model of a source
                source, name, commit = artifact.relative_to(self.root).parts[:3]
                lock = stack.enter_context(self._lock(source, name.replace("--", "/", 1), f"+{commit}"))
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def _lock(self, source: str, id: str, suffix: str = "") -> IO[str]:
        """The file that who downloads a model locks. It is never deleted: somebody may wait for it."""
        name = self._place(source, id).name
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return open(locks / f"{source}--{name}{suffix}", "w")

    def partial(self, source: str, id: str, commit: str) -> Path:
        """The folder for what is being downloaded of this commit; it outlives breaks."""
        with disk_errors(self.root):
            path = self._partials(source, id) / _checked_commit(commit)
            (path / KEPT).mkdir(parents=True, exist_ok=True)
            return path

    def has(self, sha256: str, size: int) -> bool:
        """Whether a file of this hash and size is there, without a look into it."""
        with contextlib.suppress(OSError):
            return self._blob(sha256).stat().st_size == size
        return False

    def reuse(self, sha256: str, size: int, folder: Path, each: Callable[[int], None] | None = None) -> bool:
        """Whether a file of this hash and size is there, undamaged. It is kept for the download of `folder` then.

        `each`, as in `sha256_of`, may raise to end it.
        """
        blob = self._blob(sha256)
        with contextlib.suppress(OSError):
            if blob.stat().st_size == size and sha256_of(blob, each) == sha256:
                with self._linking:
                    link_to(blob, folder / KEPT / sha256)
                return True
            log.warning("%s is damaged, and downloaded anew", blob)
            blob.unlink()  # models that link to it keep their copy, which is refused when it is verified
        return False

    def take(
        self,
        file: Path,
        folder: Path,
        sha256: str | None = None,
        git_sha1: str | None = None,
        each: Callable[[int], None] | None = None,
    ) -> tuple[str, int]:
        """Move a file that the download of `folder` has got among the blobs. Answers its hash and size.

        `each`, as in `sha256_of`, may raise to end it, up to the last moment; the file stays where it is then. Raises `ArtifactError`
        where it isn't what was expected, and deletes it.
        """
        with disk_errors(self.root):
            found, size = sha256_of(file, each), file.stat().st_size
            wrong = f"its SHA-256 is {found}, and the source says {sha256}" if sha256 not in (None, found) else ""
            if not wrong and git_sha1 is not None and (there := git_sha1_of(file)) != git_sha1:
                wrong = f"its git hash is {there}, and the source says {git_sha1}"
            if each is not None:
                each(0)  # hashing takes its time: by now the file may be another launch's
            if wrong:
                file.unlink()
                raise ArtifactError(wrong)
            self._blobs.mkdir(parents=True, exist_ok=True)
            file.chmod(0o444)
            with self._linking:  # a link to what is just being replaced would fail
                link_to(self._blobs / found, folder / KEPT / found, file)  # first: a blob that nothing links to may be swept away
                os.replace(file, self._blobs / found)
            return found, size

    def _blob(self, sha256: str) -> Path:
        return self._blobs / checked_hash(sha256, SHA256_DIGITS)

    def publish(self, model: CachedModel, revision: str | None) -> Path:
        """Make a model of blobs that are there, at once. `revision` is the name that was asked for."""
        place = self._place(model.source, model.id)
        path = place / _checked_commit(model.revision)
        with disk_errors(self.root):
            place.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=place))
            try:
                for file in model.files:
                    target = fresh / checked_name(file.name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_to(self._blob(file.sha256), target)
                (fresh / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(model)))
                fresh.chmod(0o755)
                old = fresh.with_name(f"{fresh.name}.old")
                if path.exists():
                    path.rename(old)  # a launch may be reading it: it is to miss its files for no longer than this
                fresh.rename(path)
                shutil.rmtree(old, ignore_errors=True)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            self._name(place, revision, model.revision)
            shutil.rmtree(self._partials(model.source, model.id) / model.revision, ignore_errors=True)
        return path

    def remove(self, source: str, id: str, revision: str | None = None) -> int:
        """Delete a model, or one commit of it, with what was downloaded of it in part. Answers the bytes that are free now.

        Raises `NotFound`; `Conflict` while it is being downloaded, verified or served; `ArtifactError` where the disk refuses.
        """
        place, partials = self._place(source, id), self._partials(source, id)
        gone = [path for path in (*_below(place), *_below(partials)) if path.name != "refs" and revision in (None, path.name)]
        if not gone:
            raise NotFound(f"'{id}' of source {source} is not in the cache; `xi cached` shows what is", param="model_name")

        def refuse() -> None:
            raise Conflict(f"'{id}' is being downloaded; terminate the launch that does, or wait for its end", param="model_name")

        served = {f"+{path.name}" for path in gone if _COMMIT.fullmatch(path.name)}
        with self.held(source, id, refuse), disk_errors(self.root), contextlib.ExitStack() as stack:
            for suffix in ("+used", *served):
                try:
                    fcntl.flock(stack.enter_context(self._lock(source, id, suffix)), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    why = "used by a replica of another worker with the same XI_HOME" if suffix in served else "being verified for a launch"
                    raise Conflict(f"'{id}' is {why}; terminate that first", param="model_name") from None
            parts = [file for path in gone if path.parent == partials for file in path.glob("*") if file.is_file()]
            freed = sum(file.stat().st_size for file in parts)
            for path in (*gone, *place.glob(".new-*")):  # these were left by a `publish` that was killed
                shutil.rmtree(path)
            if not any(path.name != "refs" for path in _below(place)):
                shutil.rmtree(place, ignore_errors=True)
            return freed + self._sweep()

    def _sweep(self) -> int:
        """Delete blobs that nothing uses. Answers their bytes."""
        # Where links are symbolic they don't count, so that those who have a blob are asked for its name.
        listed = {file.sha256 for model in self.models() for file in model.files}
        listed |= {link.name for link in self.root.glob(f"partial/*/*/*/{KEPT}/*")}
        freed = 0
        for blob in self._blobs.glob("*"):
            about = blob.stat()
            if about.st_nlink == 1 and blob.name not in listed:
                freed += about.st_size
                blob.unlink()
        return freed

    # ---- names ----------------------------------------------------------------------------------

    def _place(self, source: str, id: str) -> Path:
        if not _NAME.fullmatch(id) or ".." in id or len(id) > 200 or not _NAME.fullmatch(source) or "/" in source:
            raise ArtifactError(f"'{id[:200]}' is no id of a model; it reads NAME or OWNER/NAME, of letters, digits, '.', '_' and '-'")
        return self.root / source / id.replace("/", "--")

    def _partials(self, source: str, id: str) -> Path:
        return self.root / "partial" / source / self._place(source, id).name

    def _commit(self, place: Path, revision: str | None) -> str:
        name = _checked_revision(revision)
        if (place / name / MANIFEST).is_file():
            return name
        with contextlib.suppress(OSError):
            return (place / "refs" / name.replace("/", "--")).read_text().strip()
        return ""

    def _name(self, place: Path, revision: str | None, commit: str) -> None:
        refs = place / "refs"
        refs.mkdir(exist_ok=True)
        (refs / _checked_revision(revision).replace("/", "--")).write_text(commit)


def _checked_commit(commit: str) -> str:
    if not _COMMIT.fullmatch(commit):
        raise ArtifactError(f"the source pins the model by '{commit[:100]}', which is no commit")
    return commit


def _checked_revision(revision: str | None) -> str:
    name = revision or "main"
    if not _REVISION.fullmatch(name) or ".." in name or len(name) > 200:
        raise ArtifactError(f"'{name[:200]}' is no revision; give a branch, a tag or a commit")
    return name


def _below(path: Path) -> list[Path]:
    return [one for one in path.glob("*") if one.is_dir()]


def _sizes(folder: Path) -> list[int]:
    """The sizes of a model's files below a folder. They may go meanwhile."""
    sizes = []
    for place, _, names in os.walk(folder):
        for name in set(names) - {MANIFEST}:
            with contextlib.suppress(OSError):
                sizes.append(os.stat(os.path.join(place, name)).st_size)
    return sizes
