"""Whether a launch's LoRA modules can be had: their names, the engine, the model. Called by `resolve` and `lifecycle`."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.api.control import LaunchSpec
from xi_core.cluster.launches import LaunchEntry
from xi_core.engine.info import EngineInfo, Support
from xi_core.errors import Conflict, InvalidRequest, LaunchError
from xi_core.models.family import ModelSpec

FIELD = "lora_modules"


def check_names(spec: LaunchSpec) -> None:
    """Raises `InvalidRequest` where a LoRA module has the launch's own name."""
    if spec.model_uid in spec.lora_modules:
        raise InvalidRequest(f"{FIELD}: '{spec.model_uid}' is the launch's own uid; give the LoRA module another name", param=FIELD)


def check_engine(spec: LaunchSpec, engine: EngineInfo, known: Iterable[EngineInfo]) -> None:
    """Raises `LaunchError` where the engine that the launch names serves no LoRA modules, naming those that do."""
    if spec.lora_modules and not engine.lora:
        able = ", ".join(other.name for other in known if other.lora) or "none"
        raise LaunchError(f"engine {engine.name} serves no LoRA modules; engines that can: {able}", param=FIELD)


def takes_lora(spec: LaunchSpec, engine: EngineInfo, support: Support) -> Support:
    """`support`, unless the launch has LoRA modules and the engine serves none."""
    return Support(ok=False, reason="it serves no LoRA modules") if support.ok and spec.lora_modules and not engine.lora else support


def check_lora(spec: LaunchSpec, model: ModelSpec) -> None:
    """Raises `LaunchError` for LoRA modules beside a model that generates no text."""
    if spec.lora_modules and model.model_type != "LLM":
        raise LaunchError(
            f"{FIELD}: LoRA modules are served beside models of type LLM; {model.name} is of type {model.model_type}", param=FIELD
        )


def check_taken(spec: LaunchSpec, launches: Iterable[LaunchEntry]) -> None:
    """Raises `Conflict` where another launch that users can see has one of the names that `spec` wants, its uid or a LoRA module's."""
    for other in launches:
        if other.uid == spec.model_uid:
            continue
        if other.uid in spec.lora_modules:
            raise Conflict(
                f"{FIELD}: '{other.uid}' is the uid of another launch; terminate that first, or choose another name", param=FIELD
            )
        theirs = () if other.end else other.wanted.spec.lora_modules
        if spec.model_uid in theirs:
            raise Conflict(f"'{spec.model_uid}' is a LoRA module of '{other.uid}'; choose another uid", param="model_uid")
        both = next((name for name in spec.lora_modules if name in theirs), None)
        if both is not None:
            raise Conflict(f"{FIELD}: '{both}' is a LoRA module of '{other.uid}' already; choose another name", param=FIELD)
