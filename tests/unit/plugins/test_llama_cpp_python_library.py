"""What llama-cpp-python's log becomes, and what is told where the library is absent or can't be loaded."""

from __future__ import annotations

import importlib.abc
import logging
import sys
from collections.abc import Iterator

import pytest

from xi_core.errors import EngineNotInstalled
from xi_plugins.engines.llama_cpp.llama_cpp_python import library

DEBUG, INFO, WARNING, ERROR = 1, 2, 3, 4


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    library.forget_errors()
    yield
    library.forget_errors()


def test_only_errors_are_errors(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for level, text in ((DEBUG, "tensor"), (INFO, "n_ctx = 5"), (WARNING, "odd"), (ERROR, "bad"), (INFO, "."), (INFO, " \n")):
            library._take(level, text.encode(), None)
    found = [(record.levelno, record.message) for record in caplog.records]
    assert found == [(logging.DEBUG, "n_ctx = 5"), (logging.DEBUG, "odd"), (logging.ERROR, "bad")]


def test_reasons_are_the_particular_errors() -> None:
    assert library.reasons() == "its log does not say why"
    library._take(ERROR, b"load_model: failed to load model", None)
    assert library.reasons() == "failed to load model"
    for text in ("read: file is cut\n", "read: file is cut\n", "x: second", "x: third"):
        library._take(ERROR, text.encode(), None)
    assert library.reasons() == "file is cut; second"
    library.forget_errors()
    library._take(ERROR, b"\xff no function", None)
    assert library.reasons() == "\ufffd no function"


@pytest.mark.parametrize(
    "error", [ImportError("no module"), OSError("libllama.so: cannot open"), RuntimeError("Failed to load shared library")]
)
def test_a_library_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "llama_cpp":
                raise error

    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(EngineNotInstalled, match="llama-cpp-python") as caught:
        library.load_library()
    assert str(error) in caught.value.message
    assert "pip install" in caught.value.message
