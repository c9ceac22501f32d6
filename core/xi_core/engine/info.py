"""`EngineInfo`: what an engine plugin tells about itself without loading its library."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

from xi_core.errors import UnknownOption
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import Manifest


class Support(Struct, kw_only=True):
    """Whether an engine can run here, or run this model here; the reason in words (a version when it can)."""

    ok: bool
    reason: str = ""


class HostInfo(Struct, kw_only=True):
    """What an engine's `probe` and `match` may know of a worker's machine."""

    system: str
    machine: str
    python: str
    cpus: int
    memory: int
    device_kinds: tuple[str, ...] = ()
    device_memory: int = 0
    """Bytes of the largest device; `memory` are those of the machine, or of the container where it has fewer, and so are `cpus`."""


class ShardRequest(Struct, kw_only=True, frozen=True):
    """A model to be sharded over `n_worker` workers, with `n_gpu` devices on each (0 = CPU), and the engine's own options."""

    model: ModelSpec
    options: dict[str, Any]
    n_worker: int
    n_gpu: int


class EngineOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of an engine's options: a field per option, its type and bounds checked when a launch is asked for.

    Users write `--context-length 2048`, `--context_length=2048` or `{"context_length": 2048}`.
    """


O = TypeVar("O", bound=EngineOptions)


def read_options(engine: str, wanted: type[O], options: dict[str, Any]) -> O:
    """The options of a plan. Raises `UnknownOption`, naming `engine`; what `EngineInfo.check_options` has passed is right."""
    try:
        return msgspec.convert(options, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise UnknownOption(f"options of engine {engine}: {error}") from None


@cache
def _fields(options: type[EngineOptions]) -> dict[str, msgspec.structs.FieldInfo]:
    """By name. Remembered: msgspec evaluates all annotations anew each time, and each launch asks twice."""
    return {f.name: f for f in msgspec.structs.fields(options)}


class EngineInfo(Struct, kw_only=True):
    """Descriptor of one engine.

    `engine` is `module:Class`, imported only in the replica. `probe` and `match` live in a light module: they look at
    `importlib.util.find_spec` and package metadata only. `manifest` is an upper bound of what a loaded model will honour.
    `options` is None where only the engine's own parser, in its own interpreter, knows the options.
    """

    name: str
    engine: str
    formats: tuple[str, ...]
    manifest: Manifest
    probe: Callable[[HostInfo], Support]
    match: Callable[[ModelSpec, HostInfo], Support]
    requirements: tuple[str, ...] = ()
    inspect: Callable[[Path], ModelSpec | None] | None = None
    """Reads a local path in a format that only this engine knows; None for any other path. xi itself reads Hugging Face and GGUF."""
    options: type[EngineOptions] | None = None
    aliases: tuple[str, ...] = ()
    description: str = ""
    priority: int = 0
    """When a launch names no engine, the highest priority among those that match wins."""
    priority_by_host: Callable[[HostInfo], int] | None = None
    """The priority on a worker's machine, where it isn't the same on all."""
    own_parsers: bool = False
    """It parses tool calls and reasoning itself, so that a launch can't choose parsers."""
    lora: bool = False
    """It serves a plan's `lora_modules` beside a model of type LLM."""
    shard: Callable[[ShardRequest], Support] | None = None
    """Whether it can share a model over several workers so; None: it can't share any. Called in the supervisor: as light as `probe`."""
    memory_share: float = 0.0
    """Part of each device's memory that it takes, whatever the model; 0 where that depends on the model."""
    memory_share_option: str = ""
    """Name of the option that says so for one launch, such as `gpu_memory_utilization`."""
    engines_by_type: dict[str, str] = field(default_factory=dict)
    """Other classes for models of other types than LLM: `{"embedding": "module:Class", "rerank": "module:Class"}`."""
    preferred_formats: tuple[str, ...] = field(default_factory=tuple)
    pickles: bool = False
    """It heeds a plan's `pickled_weights`: it reads `pytorch_model*.bin` by `weights_only` loading there, and refuses it elsewhere."""

    def engine_for(self, model_type: str) -> str:
        """`module:Class` of the engine that serves models of this type."""
        return self.engines_by_type.get(model_type, self.engine)

    def priority_on(self, host: HostInfo) -> int:
        """The priority on this machine."""
        return self.priority if self.priority_by_host is None else self.priority_by_host(host)

    def check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """`options` with the defaults left out, names normalised and values converted.

        Raises `UnknownOption`, naming the option and listing the known ones.
        """
        if self.options is None:
            return options
        known = _fields(self.options)
        named = {name.replace("-", "_"): value for name, value in options.items()}
        for name in named:
            if name not in known:
                raise UnknownOption(
                    f"engine {self.name} has no option '{name}'; its options: {', '.join(sorted(known)) or 'none'}", param=name
                )
        for name, value in named.items():
            named[name] = self._converted(name, value, known[name].type)
        return named

    def _converted(self, name: str, value: Any, wanted: Any) -> Any:
        try:
            return msgspec.to_builtins(msgspec.convert(value, wanted, strict=False))
        except msgspec.ValidationError as error:
            raise UnknownOption(f"option '{name}' of engine {self.name}: {error}", param=name) from None
