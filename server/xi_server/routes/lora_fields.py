"""The LoRA modules of a launch's body, in each form that clients send: `lora_modules`, and Xinference's `peft_model_config`."""

from __future__ import annotations

from typing import Any

import msgspec

from xi_core.api.control import Name, Uid
from xi_core.errors import InvalidRequest

_NAMES, _PATHS = ("name", "lora_name"), ("path", "local_path")


def lora_modules(value: Any, param: str = "lora_modules") -> dict[str, str]:
    """Name → directory, from an object of these, or from a list of objects as vLLM's `{"name": …, "path": …}` or as Xinference's
    `{"lora_name": …, "local_path": …}`. Raises `InvalidRequest`."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = [_pair(entry, f"{param}[{index}]") for index, entry in enumerate(value)]
    else:
        raise InvalidRequest(f"{param}: expected an object of names and directories", param=param)
    found: dict[str, str] = {}
    for name, path in pairs:
        if name in found:
            raise InvalidRequest(f"{param}: the name '{name}' is given twice", param=param)
        found[name] = _checked(name, path, param)
    return found


def peft_model_config(value: Any) -> dict[str, str]:
    """The LoRA modules of Xinference's `peft_model_config`. Raises `InvalidRequest`, also for its options of image models."""
    param = "peft_model_config"
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param}: expected an object with lora_list", param=param)
    other = next((name for name, given in value.items() if name != "lora_list" and given), None)
    if other is not None:
        raise InvalidRequest(f"{param}.{other} is not supported; leave it out", param=f"{param}.{other}")
    return lora_modules(value.get("lora_list") or [], f"{param}.lora_list")


def _pair(entry: Any, param: str) -> tuple[str, Any]:
    given = {name: value for name, value in entry.items() if value is not None} if isinstance(entry, dict) else {}
    names = [given.pop(key) for key in _NAMES if key in given]
    paths = [given.pop(key) for key in _PATHS if key in given]
    given.pop("base_model_name", None)  # vLLM's; the launch has one model only
    if len(names) != 1 or len(paths) != 1 or given or not isinstance(names[0], str):
        raise InvalidRequest(f'{param}: expected an object such as {{"name": "sql", "path": "/adapters/sql"}}', param=param)
    return names[0], paths[0]


def _checked(name: str, path: Any, param: str) -> str:
    try:
        msgspec.convert(name, Uid)
    except msgspec.ValidationError:
        raise InvalidRequest(
            f"{param}: {name[:200]!r} can't be a name: it has 1 to 128 letters (A-Z), digits, '.', '_' and '-', and not dots alone",
            param=param,
        ) from None
    try:
        found: str = msgspec.convert(path, Name)
    except msgspec.ValidationError:
        found = ""
    if not found:
        raise InvalidRequest(f"{param}: the directory of '{name}' should be a path of at most 4096 characters", param=param)
    return found
