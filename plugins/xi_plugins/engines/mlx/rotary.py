"""What mlx-lm must be told of a model's rotary positions, which newer configurations hold where it doesn't look. Used by loading.py.

transformers 5 writes `rope_parameters`; most models of mlx-lm read only `rope_theta` and `rope_scaling`, and take defaults without a
word when these are missing. A model that reads positions with a wrong base writes nonsense, so what can't be told is refused.
"""

from __future__ import annotations

from typing import Any

from xi_core.errors import ArtifactError

USUAL_BASE = 10000.0
"""The base that a configuration means which names none."""
_BY_LAYER = {"full_attention", "sliding_attention"}


def complete(config: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """`config` with `rope_theta` and `rope_scaling` filled in from `rope_parameters`.

    `fields`: what mlx-lm's class for this model reads, each with its default, None where it has none. Raises `ArtifactError`.
    """
    found = config.get("rope_parameters")
    if "rope_theta" not in fields or "rope_parameters" in fields or not isinstance(found, dict) or not found:
        return config
    told = _by_layer(found, fields) if any(isinstance(value, dict) for value in found.values()) else _read(found)
    return {**config, **{name: value for name, value in told.items() if config.get(name) is None}}


def check_base(config: dict[str, Any], fields: dict[str, Any]) -> None:
    """Raises `ArtifactError` where mlx-lm would take a base of its own that isn't the usual one."""
    default = fields.get("rope_theta")
    if config.get("rope_theta") is None and not config.get("rope_parameters") and default not in (None, USUAL_BASE):
        raise ArtifactError(
            f"config.json has neither rope_theta nor rope_parameters, and mlx-lm would take {default:g}, which may be wrong: "
            f"write the model's rope_theta into config.json (most older models mean {USUAL_BASE:g})"
        )


def _by_layer(parameters: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """As Gemma 3 has them: one base for layers that see all tokens, one for those that see a window."""
    if set(parameters) != _BY_LAYER or "rope_local_base_freq" not in fields:
        raise ArtifactError(
            f"config.json gives rope_parameters by kind of layer ({', '.join(sorted(parameters))}), which mlx-lm doesn't read for this "
            f"model: use a copy that was converted for MLX, or the engine transformers"
        )
    return {**_read(parameters["full_attention"]), "rope_local_base_freq": _read(parameters["sliding_attention"])["rope_theta"]}


def _read(parameters: dict[str, Any]) -> dict[str, Any]:
    if "rope_theta" not in parameters:
        raise ArtifactError(
            "config.json has rope_parameters without rope_theta, which mlx-lm needs: add it, or use the engine transformers"
        )
    told: dict[str, Any] = {"rope_theta": parameters["rope_theta"]}
    if parameters.get("rope_type", "default") != "default":
        told["rope_scaling"] = {name: value for name, value in parameters.items() if name != "rope_theta"}
    return told
