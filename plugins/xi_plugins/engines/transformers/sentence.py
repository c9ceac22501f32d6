"""Reads how a directory's model makes one vector of a text: sentence-transformers' files, where there are any. Used by pooling.py.

The files are `modules.json` (the steps and their folders), `sentence_bert_config.json`, `config_sentence_transformers.json` and each
step's own `config.json`: https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from xi_core.errors import ArtifactError
from xi_core.models.checkpoint import read_json

MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
"""sentence-transformers' older names; newer files have `pooling_mode` with one of the values."""
LARGEST = 1024 * 1024


class Recipe(Struct, kw_only=True):
    """How texts become vectors. Without sentence-transformers' files: the mean of the last layer's tokens."""

    pooling: str = "mean"
    """`mean`, `cls` (the first token), `max` or `lasttoken`."""
    dense: list[Path] = field(default_factory=list)
    """Folders of linear layers that come after the pooling."""
    most_tokens: int | None = None
    """Tokens that the model's makers let it read."""
    prefix: str = ""
    """What the model wants before every text."""
    lower: bool = False
    transformer: str = ""
    """Folder of the model itself, within the directory."""


def read_recipe(directory: Path) -> Recipe:
    """The recipe in `directory`. Raises `ArtifactError` for steps that xi doesn't have, by name, and for damaged files."""
    recipe = Recipe()
    if not (directory / "modules.json").is_file():
        return recipe
    for step in _steps(directory / "modules.json"):
        kind, folder = str(step.get("type", "")).rpartition(".")[2], _inside(directory, str(step.get("path", "")))
        if kind == "Transformer":
            recipe.transformer = str(step.get("path", ""))
            config = read_json(folder / "sentence_bert_config.json")
            most = config.get("max_seq_length")
            recipe.most_tokens = most if isinstance(most, int) and most > 0 else None
            recipe.lower = config.get("do_lower_case") is True
        elif kind == "Pooling":
            recipe.pooling = _pooling(folder)
        elif kind == "Dense":
            recipe.dense.append(folder)
        elif kind != "Normalize":  # xi always normalises
            raise ArtifactError(f"{directory}: modules.json has a step '{kind or step}', which engine transformers doesn't have")
    recipe.prefix = _prefix(read_json(directory / "config_sentence_transformers.json"))
    return recipe


def _steps(file: Path) -> list[dict[str, Any]]:
    if file.stat().st_size > LARGEST:
        raise ArtifactError(f"{file} is over {LARGEST} bytes: no list of steps is that long")
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is damaged: {error}; download it again") from None
    if not isinstance(found, list) or not all(isinstance(step, dict) for step in found):
        raise ArtifactError(f"{file} is damaged: it holds no list of objects; download it again")
    return found


def _inside(directory: Path, name: str) -> Path:
    if name and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise ArtifactError(f"{directory}: modules.json names '{name}', which is outside this directory")
    return directory / name


def _pooling(folder: Path) -> str:
    config = read_json(folder / "config.json")
    newer = config.get("pooling_mode")
    known = {"mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens", "weightedmean": "pooling_mode_weightedmean_tokens"}
    names = [name for name, wanted in config.items() if name.startswith("pooling_mode_") and wanted is True]
    modes = [MODES.get(name, name) for name in names] or ([newer] if isinstance(newer, str) else newer if isinstance(newer, list) else [])
    modes = [known.get(str(mode), str(mode)) for mode in modes] or ["mean"]
    if len(modes) != 1 or modes[0] not in MODES.values():
        raise ArtifactError(
            f"{folder}: pooling by {' and '.join(modes)} is not one that engine transformers has: {', '.join(MODES.values())}"
        )
    return modes[0]


def _prefix(config: dict[str, Any]) -> str:
    """The text of the default prompt, where there is one: sentence-transformers puts it before every text."""
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    found = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    return found if isinstance(found, str) else ""
