"""Sleep: a replica gives back the memory of its devices until it is woken. What its levels are, and which an engine has.

At level 1 the weights are kept in main memory; at level 2 they are dropped, and read from the disk again. 0 means awake.
"""

from __future__ import annotations

from xi_core.errors import ModelAsleep, UnsupportedField
from xi_core.wire.manifest import Ability, no

NO_SLEEP = no("it has no sleep mode; `xi terminate` frees the memory")


def asleep(uid: str) -> ModelAsleep:
    """The refusal of a model that sleeps."""
    return ModelAsleep(f"model '{uid}' is asleep; wake it with `xi wake {uid}`, or POST /v1/models/{uid}/wake", param="model")


def check_sleep(uid: str, engine: str, ability: Ability, level: int) -> None:
    """Raises `UnsupportedField`, with what to do, where a model can't sleep at this level."""
    if ability.state == "no":
        raise UnsupportedField(f"model '{uid}' can't sleep on engine {engine}: {ability.reason}", param="model_uid")
    if ability.values and str(level) not in ability.values:
        why = f": {ability.reason}" if ability.reason else ""
        can = " and ".join(ability.values)
        raise UnsupportedField(f"model '{uid}' can't sleep at level {level} on engine {engine}, only at {can}{why}", param="level")
