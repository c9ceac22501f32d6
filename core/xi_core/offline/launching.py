"""What an `LLM` launches: the caller's keywords as a launch's spec, and which engine spreads a model over devices. Used by `llm`."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from xi_core.api.control import LaunchSpec
from xi_core.engine.info import EngineInfo
from xi_core.errors import InvalidRequest, LaunchError
from xi_core.offline.private import PrivateModel

FIXED = ("model_name", "model_uid", "model_engine", "options")
"""Fields of the launch that an `LLM` sets itself. An option that is another of its fields is the launch's; all others are the engine's."""


def spec_of(model: str, engine: str | None, options: dict[str, Any]) -> LaunchSpec:
    """The launch of `model`. Raises `InvalidRequest`, naming the field."""
    ours = {name: options.pop(name) for name in set(options) & set(LaunchSpec.__struct_fields__) - set(FIXED)}
    try:
        return msgspec.convert({"model_name": model, "model_engine": engine, "options": options, **ours}, LaunchSpec)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"LLM: {error}") from None


def sizes_of(**sizes: Any) -> dict[str, int]:
    """The sizes over 1. Raises `InvalidRequest` for what is no number of devices."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InvalidRequest(f"{name} is {size!r}; it is a number of devices, 1 or more", param=name)
    return {name: size for name, size in sizes.items() if size > 1}


def spread(spec: LaunchSpec, sizes: dict[str, int], private: PrivateModel) -> LaunchSpec:
    """The spec for an engine that spreads the model over devices as `sizes` says. Raises `LaunchError` where none can.

    Where this machine has devices and the caller names no `n_gpu`, the launch gets as many as the sizes come to.
    """
    if not sizes:
        return spec
    taking = _taking(spec, private)
    able = next((engine for engine in taking if _has(engine, sizes)), None)
    if taking and able is None:
        names = ("engines " if len(taking) > 1 else "engine ") + " and ".join(engine.name for engine in taking)
        said = " and ".join(f"{name} can't be {size}" for name, size in sizes.items())
        raise LaunchError(
            f"{names} can't spread a model over devices, so {said}; leave it out, or name an engine that can", param=next(iter(sizes))
        )
    if able is None:
        return spec  # nothing takes it: the launch says why
    n_gpu = math.prod(sizes.values()) if spec.n_gpu == "auto" and private.has_devices() else spec.n_gpu
    return msgspec.structs.replace(spec, model_engine=able.name, n_gpu=n_gpu, options={**spec.options, **sizes})


def _taking(spec: LaunchSpec, private: PrivateModel) -> list[EngineInfo]:
    """The engines that may run it, the best first."""
    engines = private.hub.engines
    if spec.model_engine:
        return [engines.get(spec.model_engine, param="engine")]
    found = private.engines(spec.model_path or spec.model_name)
    host = private.host()
    return sorted((engines.get(e.name) for e in found if e.available and e.model == "yes"), key=lambda e: -e.priority_on(host))


def _has(engine: EngineInfo, sizes: dict[str, int]) -> bool:
    """Whether an engine has the options; one whose own parser knows the options may have them."""
    return engine.options is None or sizes.keys() <= set(engine.options.__struct_fields__)
