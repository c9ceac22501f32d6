"""The command line of SGLang's server, from a launch's plan. Pure; called by engine.py and pooling.py.

Names of options are those of SGLang 0.5.23's `ServerArgs`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xi_core.engine.child_options import count, flags
from xi_core.engine.child_sharding import network, spread
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.sglang import sleeping
from xi_plugins.engines.sglang.plugin import NAME

GPU_SLOTS = 256
"""Requests at once on a GPU, where the launch doesn't say; on a CPU it is XI_BATCH_SIZE."""
START = Path(__file__).with_name("start.py")
GRAMMARS = "llguidance"
"""The grammar backend whose dialect structured.py writes."""
_DEFAULTS = {"log_level_http": "warning", "grammar_backend": GRAMMARS}
_ON_CPU = {"device": "cpu", "disable_overlap_schedule": True, "disable_custom_all_reduce": True, "lora_backend": "torch_native"}
"""Where a launch has no devices: SGLang would look for a GPU, and its kernels for LoRA are written in Triton."""
_MOST_LORAS = 8
"""Adapters within one batch, SGLang's own default: each more costs memory, and requests for further ones take turns."""


def command_line(plan: LaunchPlan, *, port: int, template: str | None = None, embedding: bool = False) -> list[str]:
    """All words; `template` is the path of the chat template that the plan brings. Raises `UnknownOption`."""
    options = options_of(plan, port=port, template=template, embedding=embedding)
    return [sys.executable, "-P", str(START), *flags(options, negated=True)]


def options_of(plan: LaunchPlan, *, port: int, template: str | None = None, embedding: bool = False) -> dict[str, Any]:
    """The server's options by their names: what xi sets, what the launch says, and how the model is spread. Raises `UnknownOption`."""
    fixed = {"model_path": plan.artifact.path, "served_model_name": plan.uid, "host": "127.0.0.1", "port": port}
    return {
        **_DEFAULTS,
        **({} if plan.devices else _ON_CPU),
        "max_running_requests": slots_of(plan),
        **({"chat_template": template} if template else {}),
        **({"is_embedding": True} if embedding else {}),
        **_lora(plan),
        **sleeping.options(plan),
        **({"trust_remote_code": True} if plan.trust_remote_code else {}),
        **plan.options,
        **spread(NAME, plan, _spread_by(plan.options)),
        **_rank(plan),
        **fixed,
    }


def slots_of(plan: LaunchPlan) -> int:
    """Most requests that run at once. Raises `UnknownOption`."""
    return count(NAME, plan.options, "max_running_requests") or (GPU_SLOTS if plan.devices else plan.limits.batch_size)


def _lora(plan: LaunchPlan) -> dict[str, Any]:
    if not plan.lora_modules:
        return {}
    pairs = [f"{module.name}={module.path}" for module in plan.lora_modules]
    return {"enable_lora": True, "max_loras_per_batch": min(len(pairs) + 1, _MOST_LORAS), "lora_paths": pairs}


def rank_environment(plan: LaunchPlan) -> dict[str, str]:
    """Variables of one rank of several, where neither the worker nor the launch sets them."""
    return {} if plan.rendezvous is None else {"SGLANG_HOST_IP": plan.rendezvous.own.host, **network(plan.rendezvous)}


def _rank(plan: LaunchPlan) -> dict[str, Any]:
    """Options of one rank of several. The ranks meet at the first port of rank 0, from which SGLang counts six further ones on."""
    rendezvous = plan.rendezvous
    if rendezvous is None:
        return {}
    head, port = rendezvous.head, rendezvous.own.ports[-1]
    host = f"[{head.host}]" if ":" in head.host else head.host
    return {
        "nnodes": len(rendezvous.world),
        "node_rank": rendezvous.rank,
        "dist_init_addr": f"{host}:{head.ports[0]}",
        "nccl_port": port,
    }


def _spread_by(options: Mapping[str, Any]) -> tuple[str, ...]:
    """With attention in data parallel, the tensor parallel devices do both."""
    names = ("tensor_parallel_size", "pipeline_parallel_size")
    return names if options.get("enable_dp_attention") else (*names, "data_parallel_size")
