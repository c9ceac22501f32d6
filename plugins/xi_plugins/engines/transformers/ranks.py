"""One rank of a model that is sharded over several workers by tensor parallelism. Used by engine.py and loading.py.

transformers cuts the model itself by the plan of its class (https://huggingface.co/docs/transformers/perf_infer_gpu_multi). Here the
ranks meet, by torch.distributed: gloo on CPUs, NCCL on GPUs. Rank 0's messages to the others always go over gloo.
"""

from __future__ import annotations

import datetime
import logging
import os
from typing import Any

import torch
import torch.distributed as dist

from xi_core.engine.rank_link import RankLink
from xi_core.errors import EngineError, EngineNotInstalled, LaunchFailed, UnknownOption
from xi_core.wire.plan import LaunchPlan, Rendezvous
from xi_plugins.engines.transformers.plugin import INSTALL, SHARDED

log = logging.getLogger(__name__)

PATIENCE = 1800.0
"""Least seconds that a rank waits for another one. An idle rank 0 asks the model for a token every half minute, so that no link is idle
for long; a rank that hangs is found by its worker."""
_WIDTHS = ("num_key_value_heads", "num_attention_heads", "intermediate_size")
"""What is cut into as many parts as there are ranks."""


def check(plan: LaunchPlan, config: Any, quantized: bool) -> None:
    """Raises `UnknownOption` or `LaunchFailed` for a model that can't be cut into so many parts, or not as the launch asks."""
    world = _rendezvous(plan).world
    names = config.architectures or [config.model_type]
    if not set(names) & set(SHARDED):
        raise LaunchFailed(f"engine transformers shards {', '.join(SHARDED)}; this model is {names[0]}", param="n_worker")
    if quantized:
        raise UnknownOption("engine transformers shards weights that aren't quantized: leave quantize out, or n_worker", param="quantize")
    if plan.lora_modules:
        raise UnknownOption("engine transformers serves no LoRA modules beside a sharded model", param="lora_modules")
    for name in _WIDTHS:
        width = getattr(config, name, None)
        if isinstance(width, int) and width % len(world):
            raise LaunchFailed(f"{name} of this model is {width}, which can't be shared by {len(world)} workers evenly", param="n_worker")


def join(plan: LaunchPlan, device: torch.device) -> None:
    """Meet the other ranks at rank 0's first port. Raises `EngineError` when they don't come."""
    where = _rendezvous(plan)
    own, head = where.own, where.head
    if own.interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", own.interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={own.interface}")  # that very name, and not what begins with it
    interface = os.environ.get("NCCL_SOCKET_IFNAME" if device.type == "cuda" else "GLOO_SOCKET_IFNAME", "any").removeprefix("=")
    # What transformers reads; a rank has one device, which is the first that its process sees.
    os.environ.update(RANK=str(where.rank), WORLD_SIZE=str(len(where.world)), LOCAL_RANK="0")
    address = f"[{head.host}]:{head.ports[0]}" if ":" in head.host else f"{head.host}:{head.ports[0]}"
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    log.info("rank %d of %d: %s at %s, link %s, interface %s", where.rank, len(where.world), backend, address, where.link, interface)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{address}",
            rank=where.rank,
            world_size=len(where.world),
            timeout=datetime.timedelta(seconds=max(PATIENCE, plan.limits.launch_timeout)),
        )
    except (RuntimeError, ValueError) as error:  # torch.distributed raises both
        raise EngineError(f"the ranks did not meet at {address}: {error}") from error


def arguments(plan: LaunchPlan) -> dict[str, Any]:
    """Arguments of `from_pretrained` that make it load one rank's part. Raises `EngineNotInstalled`."""
    if plan.rendezvous is None:
        return {}
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=len(plan.rendezvous.world), tp_plan="auto")}
    except (ImportError, TypeError) as error:
        raise EngineNotInstalled(f"this transformers can't shard a model: {error}; 5.23 can: {INSTALL}") from error


def check_parts(model: Any, world: int) -> None:
    """Raises `EngineError` where the library has loaded the whole model after all, as it does when it doesn't take the plan."""
    sizes = {name: (weight, getattr(weight, "to_local", None)) for name, weight in model.named_parameters()}
    held = [weight if local is None else local() for weight, local in sizes.values()]
    log.info("this rank holds %.2f MB of the weights", sum(weight.nbytes for weight in held) / 1e6)
    for end in ("self_attn.k_proj.weight", "self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.down_proj.weight"):
        found = [(name, *pair) for name, pair in sizes.items() if name.endswith(end)]
        whole = [name for name, weight, local in found if local is None or local().numel() * world != weight.numel()]
        if whole or not found:
            raise EngineError(f"transformers has not cut {whole[0] if whole else end} into {world} parts")


class TorchLink(RankLink):
    """Messages as byte tensors: the length first, then the bytes."""

    def __init__(self, plan: LaunchPlan) -> None:
        """Call on all ranks at once, after `join`."""
        self._leads = _rendezvous(plan).rank == 0
        seconds = max(PATIENCE, plan.limits.launch_timeout)
        self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=seconds))

    def broadcast(self, message: bytes) -> bytes:
        length = torch.tensor([len(message)])
        dist.broadcast(length, src=0, group=self._group)
        data = torch.frombuffer(bytearray(message), dtype=torch.uint8) if self._leads else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, src=0, group=self._group)
        return message if self._leads else data.numpy().tobytes()


def _rendezvous(plan: LaunchPlan) -> Rendezvous:
    if plan.rendezvous is None:
        raise EngineError("this replica has one rank only")
    return plan.rendezvous
