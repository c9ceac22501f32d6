"""The model and its vocabulary in memory, loaded by llama-cpp-python's low-level functions. Made by `engine.py`."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

from xi_core.engine.base import Progress
from xi_core.errors import ArtifactError, EngineError, UnknownOption
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.llama_cpp.llama_cpp_python.library import forget_errors, reasons
from xi_plugins.engines.llama_cpp.options import LlamaCppPythonOptions

_NUMA = {"off": 0, "distribute": 1, "isolate": 2, "numactl": 3}
_SPLIT = {"none": 0, "layer": 1, "row": 2}
_VALUE = 1024
"""Longest metadata value that is asked for."""


class Model:
    """A loaded model. Its memory is freed when the last reference goes, the tokenizer's among them."""

    def __init__(self, library: Any, pointer: Any) -> None:
        self.library = library
        self.pointer = pointer
        self.vocabulary = library.llama_model_get_vocab(pointer)
        self.size: int = library.llama_vocab_n_tokens(self.vocabulary)
        """Token ids are below this."""
        free = weakref.finalize(self, library.llama_model_free, pointer)
        free.atexit = False  # a thread may still compute with it

    def metadata(self, key: str) -> str | None:
        """A metadata value as text; None where the file has no such key."""
        buffer = ctypes.create_string_buffer(_VALUE)
        length = self.library.llama_model_meta_val_str(self.pointer, key.encode(), buffer, _VALUE)
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the model's chat template."""
        found = self.library.llama_model_chat_template(self.pointer, None)
        return found.decode("utf-8", "replace") if found else None

    @property
    def rewinds(self) -> bool:
        """Whether the end of a sequence can be taken off its cache: not from the state of a recurrent model."""
        library = self.library
        return not (library.llama_model_is_recurrent(self.pointer) or library.llama_model_is_hybrid(self.pointer))

    @property
    def window(self) -> int:
        """Tokens of sliding-window attention, 0 without it."""
        found: int = self.library.llama_model_n_swa(self.pointer)
        return found


def load_model(library: Any, plan: LaunchPlan, options: LlamaCppPythonOptions, progress: Progress) -> Model:
    """Load the plan's artifact. Raises `ArtifactError`, `EngineError`, `UnknownOption`."""
    if plan.devices and not library.llama_supports_gpu_offload():
        raise UnknownOption(
            "llama-cpp-python, as it is installed here, computes on the CPU only: launch with --n-gpu none, or install it again with "
            "CMAKE_ARGS=-DGGML_CUDA=on, or what its documentation says for your device"
        )
    if options.numa != "off":
        library.llama_numa_init(_NUMA[options.numa])
    parameters, kept = _parameters(library, plan, options, progress)
    forget_errors()
    pointer = library.llama_model_load_from_file(plan.artifact.path.encode(), parameters)
    del kept
    if not pointer:
        why = reasons()
        if "alloc" in why or "out of memory" in why:
            raise EngineError(f"not enough memory for {plan.artifact.path}: {why}; choose a smaller quantization")
        raise ArtifactError(f"llama.cpp can't load {plan.artifact.path}: {why}")
    model = Model(library, pointer)
    _check_kind(model, plan.artifact.path)
    return model


def _check_kind(model: Model, path: str) -> None:
    library = model.library
    if library.llama_model_has_encoder(model.pointer) or not library.llama_model_has_decoder(model.pointer):
        raise EngineError(f"{path} is a model with an encoder; the engine llama-cpp-python serves decoders only")
    if library.llama_model_is_diffusion(model.pointer):
        raise EngineError(f"{path} is a diffusion model; the engine llama-cpp-python serves models that write token by token")
    if not model.size or not model.vocabulary:
        raise ArtifactError(f"{path} holds no vocabulary")


def _parameters(library: Any, plan: LaunchPlan, options: LlamaCppPythonOptions, progress: Progress) -> tuple[Any, list[Any]]:
    """llama.cpp's structure, and what must live until the model is loaded."""
    parameters = library.llama_model_default_params()

    def tell(share: float, _: Any) -> bool:
        progress("loading the weights", share)
        return True  # go on

    told = library.llama_progress_callback(tell)
    parameters.progress_callback = told
    parameters.n_gpu_layers = options.n_gpu_layers if options.n_gpu_layers is not None else (-1 if plan.devices else 0)
    parameters.main_gpu = options.main_gpu
    parameters.split_mode = _SPLIT[options.split_mode]
    parameters.load_mode = _load_mode(library, options)
    parameters.check_tensors = options.check_tensors
    if not options.tensor_split:
        return parameters, [told]
    shares = (ctypes.c_float * max(library.llama_max_devices(), len(options.tensor_split)))(*options.tensor_split)
    parameters.tensor_split = shares
    return parameters, [told, shares]


def _load_mode(library: Any, options: LlamaCppPythonOptions) -> int:
    if options.mmap is None and not options.mlock:
        return int(library.LLAMA_LOAD_MODE_AUTO)
    names = {(True, True): "MMAP_MLOCK", (True, False): "MMAP", (False, True): "MLOCK", (False, False): "NONE"}
    return int(getattr(library, f"LLAMA_LOAD_MODE_{names[options.mmap is not False, options.mlock]}"))
