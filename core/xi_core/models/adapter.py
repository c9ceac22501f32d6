"""Reads a LoRA adapter's directory before anything is loaded: peft's form, `adapter_config.json` and `adapter_model.safetensors`.

Form: https://huggingface.co/docs/peft/developer_guides/checkpoint. Used by workers, and by engines that want the ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from xi_core.errors import ArtifactError
from xi_core.models.inspect import check_safetensors, local_path, read_json
from xi_core.wire.plan import LoraModule

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = (".bin", ".pt", ".pth")


class AdapterFiles(Struct, kw_only=True, frozen=True):
    """One adapter on disk. `rank` is the highest of its layers'; `config` is all that its `adapter_config.json` says."""

    directory: Path
    rank: int
    config: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.directory / WEIGHTS


def read_adapter(module: LoraModule) -> AdapterFiles:
    """What a LoRA module's directory holds. Raises `ArtifactError`, naming the module and the file, for what is no whole LoRA adapter."""
    try:
        return _read(local_path(module.path))
    except (ArtifactError, OSError) as error:
        reason = error.message if isinstance(error, ArtifactError) else f"{module.path}: {error.strerror or error}"
        raise ArtifactError(f"LoRA module '{module.name}': {reason}", param="lora_modules") from None


def _read(directory: Path) -> AdapterFiles:
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory; one with {CONFIG} and {WEIGHTS} is expected")
    path = directory / CONFIG
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; is it the directory of an adapter in peft's form?")
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ArtifactError(f"{path}: peft_type is {config.get('peft_type')!r}; only LORA is served")
    rank = _rank(path, config)
    if not (directory / WEIGHTS).is_file():
        pickled = sorted(file.name for file in directory.iterdir() if file.suffix in _PICKLED)
        why = f"; xi loads no pickled weights ({pickled[0]}), which can run code: save the adapter as safetensors" if pickled else ""
        raise ArtifactError(f"{directory / WEIGHTS} is missing{why}")
    check_safetensors(directory / WEIGHTS)
    return AdapterFiles(directory=directory, rank=rank, config=config)


def _rank(path: Path, config: dict[str, Any]) -> int:
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    found = [rank for rank in ranks if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1]
    if len(found) < len(ranks):
        raise ArtifactError(f"{path}: r, the rank, is to be a number from 1 on, and so are those of rank_pattern")
    return max(found)
