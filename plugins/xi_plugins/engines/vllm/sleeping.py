"""vLLM's sleep mode: whether a launch has it, and the calls for it. Pure; called by engine.py.

The routes are those of vLLM's development mode. Some of them run any method of vLLM's workers, and none asks for the key: they may be
reached by a Unix socket in a folder of this user's alone, and not by a port.
"""

from __future__ import annotations

from xi_core.engine.child_address import Address
from xi_core.engine.child_words import ServerCall
from xi_core.errors import UnknownOption
from xi_core.wire.manifest import YES, Ability, limited, no
from xi_core.wire.plan import LaunchPlan

OPTION = "enable_sleep_mode"
DEVELOPMENT = "VLLM_SERVER_DEV_MODE"


def ability(plan: LaunchPlan) -> Ability:
    """At which levels a launch sleeps. vLLM reads the model's weights again after level 2, but not those of LoRA modules."""
    if not plan.options.get(OPTION):
        return no("launch it with --enable-sleep-mode")
    return limited("1", reason="its LoRA modules would be lost") if plan.lora_modules else YES


def environment(plan: LaunchPlan, address: Address) -> dict[str, str]:
    """What the server needs for it. Raises `UnknownOption` where its routes would be open to others.

    Whether the platform has a sleep mode is for vLLM to say, which refuses the option where it has none.
    """
    if not plan.options.get(OPTION):
        return {DEVELOPMENT: "0"}  # whatever `--env` of the launch says
    if not address.socket:
        raise UnknownOption(
            f"option '{OPTION}' of engine vLLM needs a Unix socket, for vLLM's routes for it ask for no key; the path of temporary files"
            " (TMPDIR, or XI_HOME) is too long for one here",
            param=OPTION,
        )
    return {DEVELOPMENT: "1"}


def sleep_calls(level: int) -> list[ServerCall]:
    """It answers once the memory is free."""
    return [ServerCall(method="POST", path=f"/sleep?level={level}")]


def wake_calls(level: int) -> list[ServerCall]:
    """After level 2 the weights are read again before there is a cache to fill."""
    if level == 1:
        return [ServerCall(method="POST", path="/wake_up")]
    return [
        ServerCall(method="POST", path="/wake_up?tags=weights"),
        ServerCall(method="POST", path="/collective_rpc", body={"method": "reload_weights"}),
        ServerCall(method="POST", path="/wake_up?tags=kv_cache"),
    ]
