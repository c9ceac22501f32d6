"""The library llama-cpp-python: its import, its log and the machine's memory as it sees it. Used by the modules beside it.

llama.cpp tells why it failed in its log only. Its log goes to Python's logging: errors as errors, warnings and information, of which
there is much, as debug messages, and its own debug messages, which are one per tensor, nowhere.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from typing import Any

from xi_core import machine
from xi_core.errors import EngineNotInstalled
from xi_plugins.engines.llama_cpp.plugin import PYTHON_INSTALL

log = logging.getLogger(__name__)

_DEBUG, _ERROR = 1, 4
"""Levels of ggml's log."""
_CPU = 0
"""A kind of ggml's devices."""
_SHOWN = 2
_KEPT = 20
_GENERAL = ("failed to load model", "failed to create context", "failed to initialize the context")

_errors: deque[str] = deque(maxlen=_KEPT)
_callbacks: list[Any] = []
"""What the library calls, kept for as long as the process lives."""


def load_library() -> Any:
    """The module `llama_cpp`, quiet. Raises `EngineNotInstalled` where it can't be imported."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared objects don't load
        raise EngineNotInstalled(
            f"the engine llama-cpp-python can't load its library ({error}); install it with: {PYTHON_INSTALL}"
        ) from None
    if not _callbacks:
        callback = llama_cpp.llama_log_callback(_take)
        _callbacks.append(callback)
        llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def _take(level: int, text: bytes, _: Any) -> None:
    if level <= _DEBUG:
        return
    line = text.decode("utf-8", "replace").strip(" .\n")
    if not line:
        return
    if level == _ERROR:
        _errors.append(line)
        log.error("%s", line)
    else:
        log.debug("%s", line)


def forget_errors() -> None:
    """Begin to collect errors for `reasons`."""
    _errors.clear()


def reasons() -> str:
    """The first errors since `forget_errors` that say something particular, without the names of functions, as one sentence."""
    told = [line.partition(": ")[2] or line for line in _errors]
    particular = [line for line in dict.fromkeys(told) if not line.startswith(_GENERAL)]
    return "; ".join((particular or told)[:_SHOWN]) or "its log does not say why"


def memory(on_devices: bool) -> tuple[int, int]:
    """Bytes: the devices' free memory, 0 where there is none or none is to be used, and all that the machine lets this process have."""
    from llama_cpp._ggml import libggml

    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    libggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)]
    whole_machine = free = 0
    for index in range(libggml.ggml_backend_dev_count()):
        device = libggml.ggml_backend_dev_get(index)
        left, whole = ctypes.c_size_t(), ctypes.c_size_t()
        libggml.ggml_backend_dev_memory(device, left, whole)
        if libggml.ggml_backend_dev_type(device) == _CPU:
            whole_machine = max(whole_machine, whole.value)
        else:
            free += left.value
    return free if on_devices else 0, machine.memory().total or whole_machine
