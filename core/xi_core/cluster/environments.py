"""Environments of models: an interpreter with packages of its own for one launch's replicas, beside the worker's.

uv solves what is asked for into a lock of exact versions with hashes; the hash of the lock names the environment, so that launches that
solve alike share one, and a later launch uses it at once. xi itself is never installed there: the environment sees the worker's own
`xi_core` and plugins through links, so that both sides of a replica's pipe are always the same code.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

from xi_core.errors import EnvironmentFailed, InvalidRequest, NotFound
from xi_core.models.source import Progress

BASE = ("msgspec", "pyzmq", "jinja2", "pluggy")
"""What a replica itself imports, in the worker's own versions; pluggy because an engine's module imports its plugin's."""
PACKAGES = ("xi_core", "xi_plugins")
KEPT_VARIABLES = re.compile(
    r"PATH|HOME|TMPDIR|LANG|LC_\w+|SSL_CERT_\w+|(HTTPS?|ALL|NO)_PROXY|UV_\w+|XDG_CACHE_HOME|CC|CXX|CFLAGS|CXXFLAGS|CMAKE_ARGS|CUDA_HOME",
    re.I,
)
"""Of the worker's environment, all that building sees: no keys and tokens of anything else."""
LAST_LINES = 12
POLL = 0.1
_NAME = re.compile(r"[0-9a-f]{16}")


class Environment(Struct, kw_only=True):
    """One environment on disk."""

    name: str
    packages: list[str]
    """As locked: `name==version`."""
    used: float
    """When it was last used, in seconds since 1970."""
    size: int
    """Bytes."""


class Environments:
    """The environments under `XI_HOME/envs` of one worker."""

    def __init__(self, home: Path, environ: Mapping[str, str]) -> None:
        self._root = home / "envs"
        self._environ = {name: value for name, value in environ.items() if KEPT_VARIABLES.fullmatch(name)}

    def build(self, packages: Sequence[str], find_links: Sequence[str], overlay: Iterable[str], progress: Progress) -> Path:
        """The interpreter of an environment with these packages. In a thread; `progress` may raise to end it.

        `overlay` names importable packages of the worker that it sees beside xi's own. Raises `EnvironmentFailed` with the solver's words,
        `InvalidRequest` for a folder that isn't there.
        """
        links = [_folder(text) for text in find_links]
        uv = _uv(self._environ)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="solving-", dir=self._root) as work:
                progress("environment: solving", None)
                lock = self._solved(uv, packages, links, Path(work), progress)
                name = hashlib.sha256(f"{sys.version}\n{lock}".encode()).hexdigest()[:16]
            with self._held(name, progress):
                path = self._root / name
                if not (path / "lock.txt").is_file():
                    self._install(uv, path, lock, links, progress)
                _link(path, [*PACKAGES, *overlay])
        except OSError as error:
            raise EnvironmentFailed(f"the environment can't be built in {self._root}: {error.strerror or error}") from error
        os.utime(path)
        return path / "bin" / "python"

    def found(self) -> list[Environment]:
        """All environments, the last used first."""
        found = []
        for path in self._root.glob("*"):
            if _NAME.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it isn't whole, or is being removed
                    found.append(_described(path))
        return sorted(found, key=lambda one: -one.used)

    def remove(self, name: str) -> None:
        """Delete one. Raises `NotFound`."""
        path = self._root / name
        if not _NAME.fullmatch(name) or not path.is_dir():
            known = ", ".join(one.name for one in self.found()) or "none"
            raise NotFound(f"there is no environment '{name}' here; environments: {known}", param="name")
        shutil.rmtree(path)

    # ---- building -------------------------------------------------------------------------------

    def _solved(self, uv: Sequence[str], packages: Sequence[str], links: Sequence[Path], work: Path, progress: Progress) -> str:
        own = [f"{name}=={version(name)}" for name in BASE]
        (work / "in.txt").write_text("\n".join([*own, *packages]) + "\n")
        arguments = ["pip", "compile", "in.txt", "--quiet", "--generate-hashes", "--no-header", "--no-annotate", "-o", "lock.txt"]
        self._run([*uv, *arguments, "--python", sys.executable, *_links(links)], work, progress, "the packages can't be had together")
        return (work / "lock.txt").read_text()

    def _install(self, uv: Sequence[str], path: Path, lock: str, links: Sequence[Path], progress: Progress) -> None:
        """Build beside its place and move it there when it is whole. Scripts in it would point to the first place: none is used."""
        fresh = path.with_name(f"{path.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        count = sum(1 for line in lock.splitlines() if line[:1].isalnum())
        progress(f"environment: installing {count} packages", None)
        try:
            fresh.mkdir()
            (fresh / "wanted.txt").write_text(lock)
            self._run([*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, "."], fresh, progress, "uv can't make it")
            sync = [*uv, "pip", "sync", "--quiet", "--require-hashes", "--python", "bin/python", "wanted.txt", *_links(links)]
            self._run(sync, fresh, progress, "the packages can't be installed")
            (fresh / "wanted.txt").rename(fresh / "lock.txt")
            shutil.rmtree(path, ignore_errors=True)
            fresh.rename(path)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def _run(self, command: Sequence[str], folder: Path, progress: Progress, failed: str) -> None:
        """Run uv to its end, or kill it when `progress` raises. Raises `EnvironmentFailed` with its last lines."""
        with (
            open(folder / "uv.log", "w+b") as output,
            subprocess.Popen(
                command, cwd=folder, env=self._environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            ) as process,
        ):
            try:
                while process.poll() is None:
                    time.sleep(POLL)
                    progress("environment: working", None)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                raise
            if process.returncode:
                output.seek(0)
                lines = output.read().decode("utf-8", "replace").strip().splitlines()[-LAST_LINES:]
                raise EnvironmentFailed(f"the environment was not built: {failed}; uv says:\n" + "\n".join(lines))

    @contextlib.contextmanager
    def _held(self, name: str, progress: Progress) -> Iterator[None]:
        """Only one builds an environment at a time, over all processes of this XI_HOME."""
        with open(self._root / f"{name}.lock", "w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    progress("environment: another launch builds it", None)
                    time.sleep(POLL)
            yield


def _uv(environ: Mapping[str, str]) -> list[str]:
    """The command that runs uv: the module that the extra brings, or the one in the PATH. Raises `EnvironmentFailed`."""
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-P", "-m", "uv"]
    found = shutil.which("uv", path=environ.get("PATH"))
    if found is None:
        raise EnvironmentFailed(
            "environments of models are built by uv, which is not installed here: pip install 'xi-inference[environments]'"
        )
    return [found]


def _folder(text: str) -> Path:
    path = Path(os.path.expanduser(text))  # unlike Path's own, it leaves a `~somebody` that isn't known
    try:
        found = path.is_absolute() and path.is_dir()
    except OSError:  # too long a name, or a place that may not be looked at
        found = False
    if not found:
        raise InvalidRequest(
            f"virtual_env_find_links: '{text}' is no directory of the worker's machine; give its absolute path",
            param="virtual_env_find_links",
        )
    return path


def _links(folders: Sequence[Path]) -> list[str]:
    return [word for folder in folders for word in ("--find-links", str(folder))]


def _link(path: Path, packages: Iterable[str]) -> None:
    """Let the environment import the worker's own code: links to its packages in a folder that a `.pth` file names."""
    overlay = path / "overlay"
    overlay.mkdir(exist_ok=True)
    for name in dict.fromkeys(packages):
        spec = importlib.util.find_spec(name)
        origin = spec.origin if spec is not None else None
        if origin is None:
            raise EnvironmentFailed(f"the environment can't see the worker's package {name}: it is no package in files")
        target = Path(origin).parent if Path(origin).name == "__init__.py" else Path(origin)
        link, fresh = overlay / target.name, overlay / f"{target.name}.new"
        if not link.is_symlink() or link.readlink() != target:
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.replace(link)
    (next((path / "lib").glob("python*")) / "site-packages" / "xi-overlay.pth").write_text(f"{overlay}\n")


def _described(path: Path) -> Environment:
    lock = (path / "lock.txt").read_text()
    packages = [line.split()[0] for line in lock.splitlines() if line[:1].isalnum()]
    size = 0
    for place, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):  # while a model of it starts, files come and go
                size += os.lstat(os.path.join(place, name)).st_size
    return Environment(name=path.name, packages=packages, used=path.stat().st_mtime, size=size)
