"""LoRA adapters beside a model: each row of a batch is answered by one of them, or by the model itself.

peft puts its layers into the model, in place. A pass learns which adapter each of its rows uses from `point`, which engine.py calls before
it, and which imports this module only for launches with adapters. Batches of several adapters are peft's own (`adapter_names`):
https://huggingface.co/docs/peft/developer_guides/lora
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file

from xi_core.errors import ArtifactError, XiError
from xi_core.models.adapter import CONFIG, AdapterFiles, read_adapter
from xi_core.wire.plan import LoraModule

BASE = "__base__"
"""peft's name for the model without any adapter."""

_SERVED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "use_dora": (False, None),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "megatron_config": (None, {}),
}
"""Fields of an adapter's configuration, with their values that leave the model itself as it is and that peft can mix in one batch."""


class Adapters:
    """All adapters of a launch. Names are the user's; within peft, where dots may not be, they are numbered."""

    def __init__(self, model: Any, modules: list[LoraModule]) -> None:
        """Loads `modules` into `model`, which answers without them until `point` says otherwise. Raises `ArtifactError`."""
        self._keys = {module.name: f"module{index}" for index, module in enumerate(modules)}
        self._rows: list[str] = []
        wrapper: Any = None
        own = model.state_dict()
        for module in modules:
            with _named(module):
                wrapper = _loaded(model, wrapper, read_adapter(module), self._keys[module.name], own)
        model.eval()
        layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer | ModulesToSaveWrapper)]
        for layer in layers:
            layer.register_forward_pre_hook(self._tell, with_kwargs=True)
        for module in modules:
            with _named(module):
                self._try(model, module.name)

    def point(self, names: list[str | None]) -> None:
        """The next pass answers its row i with the adapter `names[i]`, or with the model itself."""
        self._rows = [BASE if name is None else self._keys[name] for name in names]

    @property
    def names(self) -> Collection[str]:
        """What `point` knows."""
        return self._keys.keys()

    def _tell(self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a layer's forward: the adapters of the rows; without any, the model's own answers."""
        rows = self._rows or [BASE] * len(args[0])
        if isinstance(layer, ModulesToSaveWrapper):  # which doesn't expect adapters that leave its module as it is
            rows = [row if row in layer.modules_to_save else BASE for row in rows]
        return args, {**kwargs, "adapter_names": rows}

    @torch.inference_mode()
    def _try(self, model: Any, name: str) -> None:
        """A small pass beside a row without adapter: some kinds of layers can't mix them. Raises `ArtifactError`."""
        self.point([None, name])
        ids = torch.tensor([[1, 2, 3]] * 2, device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        self.point([])
        if not bool(torch.isfinite(logits[1]).all()):
            raise ArtifactError("with it the model computes numbers that are not finite")


@contextmanager
def _named(module: LoraModule) -> Iterator[None]:
    """Makes whatever fails in its block an `ArtifactError` that names the LoRA module: peft and torch raise many kinds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters among them is checked here
            yield
    except Exception as error:
        start = f"LoRA module '{module.name}'"
        reason = error.message if isinstance(error, XiError) else f"{type(error).__name__}: {error}"
        text = reason if reason.startswith(start) else f"{start} ({module.path}) can't be served: {reason}"
        raise ArtifactError(text, param="lora_modules") from error


def _loaded(model: Any, wrapper: Any, files: AdapterFiles, key: str, own: dict[str, torch.Tensor]) -> Any:
    """peft's wrapper of `model`, with this adapter too. `own` are the model's weights by their names before there was any."""
    config = _config(files)
    weights = _without(own, load_file(files.weights), config.modules_to_save or ())
    if wrapper is None:
        wrapper = PeftModel(model, config, adapter_name=key, autocast_adapter_dtype=False)
    else:
        wrapper.add_adapter(key, config, autocast_adapter_dtype=False)
    found: Any = set_peft_model_state_dict(wrapper, weights, adapter_name=key)
    missing = [name for name in found.missing_keys if key in name.split(".")]
    if missing:
        raise ArtifactError(f"its file lacks {len(missing)} weights, the first is {missing[0]}")
    if found.unexpected_keys:
        raise ArtifactError(f"its file holds weights that the model has no place for, such as {found.unexpected_keys[0]}")
    return wrapper


def _config(files: AdapterFiles) -> LoraConfig:
    for name, served in _SERVED.items():
        value = files.config.get(name, served[0])
        if value not in served:
            raise ArtifactError(f"{CONFIG}: {name} is {value!r}; such an adapter can't be served beside the model: merge it into a copy")
    config: LoraConfig = LoraConfig.from_pretrained(str(files.directory))
    config.inference_mode = True
    config.init_lora_weights = False  # all weights come from the file
    return config


def _without(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], saved: Iterable[str]) -> dict[str, torch.Tensor]:
    """`weights` without copies of the model's own, which peft saves beside an adapter of the embeddings.

    Raises `ArtifactError` for one that differs: it would change the model for all.
    """
    parts = tuple(f".{name}." for name in saved)
    kept: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if ".lora_" in name or any(part in f".{name}" for part in parts):
            kept[name] = value
            continue
        known = own.get(name.removeprefix("base_model.model.").replace(".base_layer.", "."))
        if known is None or known.shape != value.shape or not torch.equal(value.to(known.dtype), known.cpu()):
            raise ArtifactError(f"its file holds a weight of the model itself, {name}, that differs: merge it into a copy of the model")
    return kept
