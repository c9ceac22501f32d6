"""SGLang's way to sleep, by its memory saver: whether a launch has it, and the calls for it. Pure; called by command.py and engine.py."""

from __future__ import annotations

from typing import Any

from xi_core.engine.child_words import ServerCall
from xi_core.errors import UnknownOption
from xi_core.wire.manifest import Ability, limited, no
from xi_core.wire.plan import LaunchPlan

OPTION = "enable_memory_saver"
BACKUP = "enable_weights_cpu_backup"
IDLE = 10
"""Seconds in which the requests that xi has ended must be over in SGLang, too."""


def ability(plan: LaunchPlan) -> Ability:
    """At which levels a launch sleeps. Without the copy in main memory SGLang would wake with weights of no meaning."""
    if not plan.options.get(OPTION):
        return no("launch it with --enable-memory-saver")
    if not plan.options.get(BACKUP, True):
        return no("launch it with --enable-weights-cpu-backup")
    return limited("1", reason="SGLang does not read the weights again by itself")


def options(plan: LaunchPlan) -> dict[str, Any]:
    """What goes with the memory saver. Raises `UnknownOption` on a CPU, where SGLang has none."""
    if not plan.options.get(OPTION):
        return {}
    if not plan.devices:
        raise UnknownOption(f"option '{OPTION}' of engine SGLang: it has none on a CPU; leave it out, or give GPUs", param=OPTION)
    return {BACKUP: True}


def sleep_calls() -> list[ServerCall]:
    """SGLang's scheduler dies where it is asked while anything runs, so that the first call sees to it that nothing does."""
    return [
        ServerCall(method="POST", path=f"/flush_cache?timeout={IDLE}"),
        ServerCall(method="POST", path="/release_memory_occupation", body={}),
    ]


def wake_calls() -> list[ServerCall]:
    """Weights and cache."""
    return [ServerCall(method="POST", path="/resume_memory_occupation", body={})]
