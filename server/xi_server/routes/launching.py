"""From the body of `POST /v1/models` to a `LaunchSpec`.

Field names are xinference-client's; what isn't a field is an option of the engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from xi_core.api.body import decode_body, invalid_field
from xi_core.api.control import MODEL_TYPES, LaunchSpec, Uid, model_type_of
from xi_core.errors import InvalidRequest
from xi_server.routes.lora_fields import lora_modules, peft_model_config

RENAMED = {"model_size_in_billions": "size_in_billions", "envs": "env", "peft_model_config": "lora_modules", "download_hub": "source"}
"""Other names of fields, as clients of Xinference send them."""

NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "request_limits": (),
}
"""Fields of Xinference that xi can't honour yet, with the values besides null that ask for nothing."""

_FIELDS = frozenset(LaunchSpec.__struct_fields__)
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def launch_spec(body: bytes) -> LaunchSpec:
    """The launch that `body` asks for. Raises `InvalidRequest`, with the field as `param`."""
    given = decode_body(_decode, body)
    fields: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name in NOT_YET:
            _refuse_unless_default(name, value)
        elif name == "options":
            options.update(_options(value))
        elif RENAMED.get(name, name) in _FIELDS:
            _set(fields, name, value)
        elif value is not None:
            options[name] = value
    if not fields.get("model_name"):
        raise InvalidRequest("the launch names no model; set model_name to a model's name, a directory or a .gguf file", param="model_name")
    return _converted({**fields, "options": options})


def size_text(size: Any, param: str) -> str:
    """A size in billions in its one form: 7, 7.0 and "7" are "7"; 0.5, "0_5" and "0.5" are "0.5"."""
    if isinstance(size, int | float) and not isinstance(size, bool):
        size = f"{size:.12g}"
    text = size.replace("_", ".") if isinstance(size, str) else ""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise InvalidRequest(f"{param}: {size!r} is no size in billions; write 7, 0.5 or 0_5", param=param)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _refuse_unless_default(name: str, value: Any) -> None:
    if value is not None and value not in NOT_YET[name]:
        raise InvalidRequest(f"{name} is not supported yet; leave it out", param=name)


def _options(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("options: expected an object of engine options", param="options")
    return value


def _set(fields: dict[str, Any], name: str, value: Any) -> None:
    field = RENAMED.get(name, name)
    if value is None:
        if field == "n_gpu":
            fields[field] = None  # the one null that says something: no GPU
        return
    if field in fields:
        raise InvalidRequest(f"{name}: given twice, once as '{field}'; give one of them", param=name)
    if field == "size_in_billions":
        value = size_text(value, name)
    elif field == "gpu_idx":
        value = _gpu_idx(value)
    elif field == "n_gpu":
        value = _n_gpu(value)
    elif field == "model_type":
        value = _model_type(value)
    elif field == "lora_modules":
        value = peft_model_config(value) if name == "peft_model_config" else lora_modules(value)
    elif field == "model_uid" and isinstance(value, str):
        _check_uid(value)
    fields[field] = value


def _model_type(value: Any) -> str:
    found = model_type_of(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidRequest(f"model_type: {value!r} is not served; {', '.join(MODEL_TYPES)} are", param="model_type")
    return found


def _check_uid(value: str) -> None:
    """What the struct's own pattern says, in words."""
    try:
        msgspec.convert(value, Uid)
    except msgspec.ValidationError:
        raise InvalidRequest(
            f"model_uid: {value[:200]!r} can't be a uid: it has 1 to 128 letters (A-Z), digits, '.', '_' and '-', and not dots alone",
            param="model_uid",
        ) from None


def _n_gpu(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise InvalidRequest(f'n_gpu: {value!r} should be "auto", a number of devices, or null for none', param="n_gpu")


def _gpu_idx(value: Any) -> list[int]:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise InvalidRequest(f"gpu_idx: {value!r} should be a device number or a list of them, from 0", param="gpu_idx")
    if len(set(numbers)) < len(numbers):
        raise InvalidRequest(f"gpu_idx: {value!r} names a device twice", param="gpu_idx")
    return numbers


def _converted(fields: dict[str, Any]) -> LaunchSpec:
    try:
        return msgspec.convert(fields, LaunchSpec)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None
