"""Lets SGLang start on a machine without CUDA: empty modules in the place of packages that it imports but does not call on a CPU.

For tests of xi's engine only; `tests/engines/sglang_environment.sh` puts it into an environment of its own, where a `.pth` file imports
it when Python starts. What would really be called fails with an error that names it.
"""

import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any, NoReturn

MISSING = frozenset({"sgl_kernel", "torchvision"})


class _Absent:
    """Stands for a class or function of a package that isn't there. May be imported, subclassed and compared, not called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{self._name} is not in this environment, which has no CUDA")

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self._name}.{name}")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (object,)


class _Module(types.ModuleType):
    """A module that has every public name."""

    __version__ = "0"  # libraries that compare versions take it for too old to use

    def __getattr__(self, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")


class _Finder:
    """Finds the missing packages and all modules below them. Asked last, so that a package that is there wins."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in MISSING:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


sys.meta_path.append(_Finder())
