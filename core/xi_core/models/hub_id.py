"""Hub ids: models that no family names, as `Qwen/Qwen2.5-0.5B-Instruct`. What the id itself tells; the files say the rest."""

from __future__ import annotations

import re
from pathlib import Path

from xi_core.models.family import ModelSpec, SourceRef

HUB = "huggingface"
"""The source of an id, unless the launch or `XI_MODEL_SRC` names another."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{1,96}")
_FORMATS = (
    ("ggufv2", r"[._-]gguf\b"),
    ("awq", r"\bawq\b"),
    ("gptq", r"\bgptq\b"),
    ("fp8", r"\bfp8\b"),
    ("mlx", r"\bmlx\b|^mlx-community/"),
)
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


def is_hub_id(name: str) -> bool:
    """Whether a model name is meant as `owner/name` at a hub: it has that form, and nothing is there under this path."""
    if not _ID.fullmatch(name) or name.lower().endswith((".gguf", ".safetensors")) or set(name.rpartition("/")[2]) == {"."}:
        return False
    try:
        return not Path(name).exists()
    except OSError:
        return True


def spec_of_hub(
    hub_id: str, model_type: str, model_format: str | None = None, quantization: str | None = None, source: str = HUB
) -> ModelSpec:
    """The spec of a hub's model by its id alone; format and quantization as they are given, else as the id has them."""
    name = hub_id.rpartition("/")[2]
    form = model_format or format_of(hub_id)
    wanted = f"*{quantization}*.gguf" if quantization else "*.gguf"
    return ModelSpec(
        name=name,
        format=form,
        source=SourceRef(source=source, id=hub_id, files=(wanted,) if form == "ggufv2" else ()),
        size_in_billions=size_of(name),
        quantization=quantization,
        model_type=model_type,
        abilities={"embedding": ["embed"], "rerank": ["rerank"]}.get(model_type, ["generate", "chat"]),
    )


def format_of(hub_id: str) -> str:
    """The format that an id tells by the words in it; `pytorch` where it tells none."""
    lower = hub_id.lower()
    return next((name for name, words in _FORMATS if re.search(words, lower)), "pytorch")


def size_of(name: str) -> str | None:
    """Billions of weights, from the first `7B` or `135M` in a name."""
    found = _SIZE.search(name)
    if found is None:
        return None
    billions = float(found[1]) / (1000 if found[2] in "mM" else 1)
    return f"{billions:.6g}"
