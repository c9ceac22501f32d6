"""Reads the files of a Hugging Face directory before any weight is loaded, so that what is wrong is said in words. Used by engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xi_core.errors import ArtifactError
from xi_core.models import inspect
from xi_core.models.sampling import recommended


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty when there is no such file. Raises `ArtifactError` when it is not a JSON object."""
    return inspect.read_json(path) if path.is_file() else {}


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json`, checked to be of a text generation model. Raises `ArtifactError`."""
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such directory; a Hugging Face model directory is expected")
    config = read_json(directory / "config.json")
    if not config:
        raise ArtifactError(f"{directory}: config.json is missing or empty; is it a Hugging Face model directory?")
    architectures = config.get("architectures") or []
    if architectures and not any("CausalLM" in name or "LMHead" in name for name in architectures):
        raise ArtifactError(f"{directory}: {', '.join(architectures)} is not a text generation model")
    return config


def check_weights(directory: Path, *, pickled: bool = False) -> bool:
    """Whether the weights are in safetensors form. Raises `ArtifactError` if a file of them is missing or cut off.

    Without `pickled`, the operator's opt-in, `pytorch_model*.bin` raises it too.
    """
    found = _weight_files(directory, pickled)
    safe = [path for path in found if path.suffix == ".safetensors"]
    for path in safe:
        inspect.check_safetensors(path)
    return bool(safe)


def _weight_files(directory: Path, pickled: bool) -> list[Path]:
    _check_named(directory)
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        return inspect.indexed(index)
    others = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    if pickled and (found := inspect.pickled_files(directory)):
        return found
    if others:
        raise ArtifactError(
            f"{directory}: only pickled weights ({others[0]}); xi loads safetensors, which can't run code: convert the model"
            + (" (of pickles only pytorch_model*.bin is read)" if pickled else inspect.OPT_IN)
        )
    raise ArtifactError(f"{directory}: no model.safetensors; download the model again")


def _check_named(directory: Path) -> None:
    """transformers loads the file that `transformers_weights` of config.json names, whatever it was told of safetensors."""
    named = read_json(directory / "config.json").get("transformers_weights")
    if named is not None and not (isinstance(named, str) and named.removesuffix(".index.json").endswith(".safetensors")):
        raise ArtifactError(f"{directory}: config.json names its weights {str(named)[:200]!r}; xi loads .safetensors only from there")


def end_tokens(config: dict[str, Any], generation: dict[str, Any]) -> set[int]:
    """Ids that end an answer, from `config.json` and `generation_config.json`, where each is a number, a list or absent."""
    found: set[int] = set()
    for source in (config, generation):
        value = source.get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return found


def default_sampling(generation: dict[str, Any]) -> dict[str, Any]:
    """Sampling values that the model's own `generation_config.json` recommends; none where it means greedy decoding."""
    if generation.get("do_sample") is not True:
        return {}
    return recommended(generation)


def recommended_sampling(directory: Path) -> dict[str, Any]:
    """The same of the model in `directory`. Raises `ArtifactError` for a file that can't be read."""
    return default_sampling(read_json(directory / "generation_config.json"))


def chat_template(directory: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """Jinja source of the chat template: `chat_template.jinja`, or the one (or the one named `default`) in `tokenizer_config.json`."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = tokenizer_config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def named_tokens(directory: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and their like, by name. Each stands in the files as text or as an object with `content`."""
    found: dict[str, str] = {}
    for source in (read_json(directory / "special_tokens_map.json"), tokenizer_config):
        for name, value in source.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
    return found
