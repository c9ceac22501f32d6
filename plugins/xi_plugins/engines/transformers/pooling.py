"""`TransformersEmbedder` and `TransformersReranker`: Hugging Face models that give vectors or scores. Loaded in the replica.

Rows of a batch are padded on the right and masked, so that a row's result doesn't depend on the others.
"""

from __future__ import annotations

import inspect
import threading
from abc import abstractmethod
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
import torch
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as library_logging

from xi_core.engine.base import EngineStats, LoadedModel, Progress
from xi_core.engine.info import read_options
from xi_core.engine.pooling import EmbeddingEngine, PoolingEngine, PoolingInput, RerankEngine
from xi_core.errors import ArtifactError, EngineError, LaunchFailed, UnknownOption
from xi_core.machine import cpus
from xi_core.models.checkpoint import check_weights, named_tokens, read_json
from xi_core.wire.manifest import pooling_manifest
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.transformers.devices import choose_device
from xi_plugins.engines.transformers.loading import OWN_CODE_REFUSED, choose_dtype, read_config
from xi_plugins.engines.transformers.plugin import TransformersOptions
from xi_plugins.engines.transformers.sentence import Recipe, read_recipe
from xi_plugins.engines.transformers.tokenizer import HubTokenizer, TrustingTokenizer

OPTIONS = ("dtype", "device", "batch_size", "context_length", "threads")
"""Those of the engine's options that mean something here."""
BATCH_SIZE = 256
"""Most inputs of a batch, where the launch doesn't say: what bounds a batch is mostly its tokens."""
BATCH_TOKENS = {"cpu": 512, "cuda": 65536}
"""Most tokens of a batch, by kind of device. On a CPU larger ones are slower: what they compute no longer fits in its caches."""


class TransformersPooling(PoolingEngine):
    """What the two have in common: loading, encoding, running a padded batch."""

    kind: str
    library: Any

    def __init__(self) -> None:
        self._model: Any = None
        self._tokenizer: Any = None
        self._device = torch.device("cpu")
        self._end: int | None = None
        self._trust = False
        self._pad = self._size = 0
        self._arguments: frozenset[str] = frozenset()
        self._stats = EngineStats()
        self._lock = threading.Lock()
        """The tokenizer's: its settings are its own, and two threads encode."""

    # ---- life ----

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        options = _options(plan.options)
        directory = Path(plan.artifact.path)
        torch.set_num_threads(options.threads or cpus())
        progress("reading the configuration", None)
        recipe = read_recipe(directory)
        folder = directory / recipe.transformer
        self._trust = plan.trust_remote_code
        config = self._config(folder)
        self._device = choose_device(options.device, plan.devices)
        dtype = choose_dtype(options.dtype, config.dtype, self._device)
        progress("loading the weights", None)
        self._model = _load(self.library, folder, config, dtype, self._device, plan)
        self._size = self._model.get_input_embeddings().weight.shape[0]
        self._arguments = frozenset(inspect.signature(self._model.forward).parameters)
        most = self._read_tokenizer(folder, config)
        self._prepare(recipe, directory)
        context = _context_length(self._model, config, recipe.most_tokens or most, options.context_length)
        progress("checking the model", None)
        self._check()
        return LoadedModel(context_length=context, slots=options.batch_size or BATCH_SIZE, manifest=pooling_manifest(self.kind))

    def _config(self, directory: Path) -> Any:
        if not (directory / "config.json").is_file():
            raise ArtifactError(f"{directory}: config.json is missing; is it a Hugging Face model directory?")
        config = read_config(directory, self._trust)
        if "AutoModel" in (getattr(config, "auto_map", None) or {}) and not self._trust:
            raise ArtifactError(f"{directory}: {OWN_CODE_REFUSED}", param="trust_remote_code")
        if getattr(config, "is_encoder_decoder", False):
            raise ArtifactError(
                f"{directory}: a {config.model_type} model has an encoder and a decoder, which engine transformers doesn't pool"
            )
        return config

    def _prepare(self, recipe: Recipe, directory: Path) -> None:
        """Take in what the directory says besides the model."""

    def _read_tokenizer(self, directory: Path, config: Any) -> int | None:
        """The tokenizer in `directory`; the answer is the longest text, in tokens, that its files allow, where they say."""
        file = directory / "tokenizer.json"
        convert = (TrustingTokenizer if self._trust else HubTokenizer).convert
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file)) if file.is_file() else convert(directory)
        except Exception as error:  # the libraries raise bare Exception; each means that these files are no tokenizer
            raise ArtifactError(f"{directory}: no tokenizer that can be loaded: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = read_json(directory / "tokenizer_config.json")
        special = named_tokens(directory, settings)
        pad = getattr(config, "pad_token_id", None)  # the model may look for it: to count positions, or to find a row's end
        found = pad if pad is not None else self._tokenizer.token_to_id(special.get("pad_token", ""))
        self._pad = found if isinstance(found, int) and 0 <= found < self._size else 0
        end = self._tokenizer.token_to_id(special.get("eos_token", ""))
        self._end = end if settings.get("add_eos_token") is True else None
        most = settings.get("model_max_length")
        return most if isinstance(most, int) and 0 < most < 2**31 else None

    def _check(self) -> None:
        """Run a batch of two lengths, so that a model that doesn't work is refused at launch."""
        inputs = [PoolingInput([0 if self._pad else 1] * length) for length in (1, 3)]
        try:
            self._run_check(inputs)
        except Exception as error:  # whatever the model's code raises, it can't serve
            raise ArtifactError(f"the model can't be run: {type(error).__name__}: {error}") from error

    @abstractmethod
    def _run_check(self, inputs: list[PoolingInput]) -> None:
        """Raise if `inputs` can't be run."""

    def close(self, grace: float) -> None:
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def stats(self) -> EngineStats:
        return msgspec.structs.replace(self._stats)

    @property
    def vocabulary_size(self) -> int:
        return self._size

    @property
    def batch_tokens(self) -> int:
        return BATCH_TOKENS[self._device.type]

    # ---- text to ids ----

    def _encode(self, texts: list[Any]) -> list[PoolingInput]:
        """`texts` are texts, or pairs of them."""
        with self._lock:
            found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=True)
        return [self._input(one) for one in found]

    def _input(self, encoding: Any) -> PoolingInput:
        ids, types = list(encoding.ids), list(encoding.type_ids)
        if self._end is not None and (not ids or ids[-1] != self._end):
            ids.append(self._end)
            types.append(types[-1] if types else 0)
        return PoolingInput(ids, types if any(types) else None)

    # ---- a batch ----

    def _run(self, inputs: list[PoolingInput]) -> tuple[Any, torch.Tensor]:
        """The model's output and the mask (rows, columns) of the batch's real tokens. Raises `EngineError`."""
        lengths = [len(one.ids) for one in inputs]
        width = max(lengths)
        ids = torch.tensor([one.ids + [self._pad] * (width - len(one.ids)) for one in inputs])
        mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).to(self._device)
        given: dict[str, Any] = {"input_ids": ids.to(self._device), "attention_mask": mask.long()}
        if "token_type_ids" in self._arguments and any(one.type_ids for one in inputs):
            rows = [(one.type_ids or [0] * len(one.ids)) + [0] * (width - len(one.ids)) for one in inputs]
            given["token_type_ids"] = torch.tensor(rows).to(self._device)
        if "use_cache" in self._arguments:
            given["use_cache"] = False
        self._stats.running = 1
        try:
            output = self._model(**given)
        except (RuntimeError, IndexError) as error:  # what torch raises, on any device; the next batch may well fit
            raise EngineError(f"the model failed on a batch of {len(inputs)} inputs of up to {width} tokens: {error}") from error
        finally:
            self._stats.running = 0
        self._stats.steps += 1
        self._stats.tokens += sum(lengths)
        return output, mask


class TransformersEmbedder(TransformersPooling, EmbeddingEngine):
    """Vectors by the model's own pooling, always of length 1."""

    kind = "embeddings"
    library = AutoModel

    def __init__(self) -> None:
        super().__init__()
        self._recipe = Recipe()
        self._dense: list[torch.nn.Module] = []
        self._dimensions = 0

    def _prepare(self, recipe: Recipe, directory: Path) -> None:
        self._recipe = recipe
        self._dense = [_dense(folder, self._device) for folder in recipe.dense]

    def _run_check(self, inputs: list[PoolingInput]) -> None:
        self._dimensions = len(self.embed(inputs)[0]) // 4

    @property
    def dimensions(self) -> int:
        return self._dimensions

    def encode(self, texts: list[str]) -> list[PoolingInput]:
        given = [self._recipe.prefix + text for text in texts] if self._recipe.prefix else texts
        return self._encode([text.lower() for text in given] if self._recipe.lower else given)

    @torch.inference_mode()
    def embed(self, inputs: list[PoolingInput]) -> list[bytes]:
        output, mask = self._run(inputs)
        vectors = _pooled(output.last_hidden_state.float(), mask, self._recipe.pooling)
        for layer in self._dense:
            vectors = layer(vectors)
        rows = torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy().astype("<f4", copy=False)
        return [row.tobytes() for row in rows]


class TransformersReranker(TransformersPooling, RerankEngine):
    """Cross-encoders with one label. Scores are what sentence-transformers gives: sigmoids, or logits where the model's files say so."""

    kind = "rerank"
    library = AutoModelForSequenceClassification

    def __init__(self) -> None:
        super().__init__()
        self._sigmoid = True

    def _config(self, directory: Path) -> Any:
        config = super()._config(directory)
        if config.num_labels != 1:
            raise ArtifactError(f"{directory}: a classifier with {config.num_labels} labels; a reranker has one")
        ours = getattr(config, "sentence_transformers", None) or {}
        activation = ours.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None) or "Sigmoid"
        name = str(activation).rpartition(".")[2]
        if name not in ("Sigmoid", "Identity"):
            raise ArtifactError(f"{directory}: scores by {activation} are not served; Sigmoid and Identity are")
        self._sigmoid = name == "Sigmoid"
        return config

    def _run_check(self, inputs: list[PoolingInput]) -> None:
        self.score(inputs)

    def encode_pairs(self, query: str, documents: list[str]) -> list[PoolingInput]:
        return self._encode([(query, document) for document in documents])

    @torch.inference_mode()
    def score(self, inputs: list[PoolingInput]) -> list[float]:
        output, _ = self._run(inputs)
        logits = output.logits.float()[:, 0]
        return [float(score) for score in (torch.sigmoid(logits) if self._sigmoid else logits).tolist()]


def _options(options: dict[str, Any]) -> TransformersOptions:
    other = next((name for name in options if name not in OPTIONS), None)
    if other is not None:
        raise UnknownOption(
            f"option '{other}' means nothing for a model that generates no text; options: {', '.join(OPTIONS)}", param=other
        )
    return read_options("transformers", TransformersOptions, options)


def _load(library: Any, directory: Path, config: Any, dtype: torch.dtype, device: torch.device, plan: LaunchPlan) -> Any:
    """The model in memory, in evaluation mode. Raises `ArtifactError`, `LaunchFailed`."""
    safe = check_weights(directory, pickled=plan.pickled_weights)
    library_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = library.from_pretrained(
            str(directory), config=config, dtype=dtype, use_safetensors=safe, weights_only=True, local_files_only=True,
            trust_remote_code=plan.trust_remote_code, output_loading_info=True,
        )  # fmt: skip
        model = model.to(device).eval()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LaunchFailed(f"{directory}: not enough memory on {device} for the weights: {error}") from error
    except Exception as error:  # as above
        raise ArtifactError(f"{directory}: the weights can't be loaded: {error}") from error
    missing = sorted(name for name in info["missing_keys"] if library is not AutoModel or not name.startswith("pooler."))
    if missing:  # the pooler of BERT and its like is a head that no embedding uses
        raise ArtifactError(f"{directory}: the checkpoint lacks {len(missing)} weights of the model, the first is {missing[0]}")
    return model


def _context_length(model: Any, config: Any, most: int | None, wanted: int | None) -> int:
    """Most tokens of an input. Raises `UnknownOption` if more are wanted than the model has positions."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    positions = found if isinstance(found, int) and found > 0 else None
    for name, layer in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(layer, torch.nn.Embedding):
            first = 0 if layer.padding_idx is None else layer.padding_idx + 1  # RoBERTa counts from there
            positions = layer.num_embeddings - first
    if wanted is not None and positions is not None and wanted > positions:
        raise UnknownOption(f"context_length {wanted} is more than the {positions} that this model was made for", param="context_length")
    return wanted or min(most or positions or 512, positions or 2**31)


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """One vector per row of `hidden` (rows, columns, size); `mask` (rows, columns) is true for real tokens, which come first."""
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    if mode == "max":
        return hidden.masked_fill(~mask[..., None], float("-inf")).amax(1)
    return hidden.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)


def _dense(folder: Path, device: torch.device) -> torch.nn.Module:
    """A linear layer and its activation. Raises `ArtifactError`."""
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in ("Identity", "Tanh"):
        raise ArtifactError(f"{folder}: a dense layer with the activation {activation} is not served; Identity and Tanh are")
    check_weights(folder)
    try:
        weights = load_file(folder / "model.safetensors")
        layer = torch.nn.Linear(int(config["in_features"]), int(config["out_features"]), bias="linear.bias" in weights)
        layer.load_state_dict({name.removeprefix("linear."): weight.float() for name, weight in weights.items()})
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        raise ArtifactError(f"{folder}: a dense layer that can't be loaded: {error}") from error
    module: torch.nn.Module = layer if activation == "Identity" else torch.nn.Sequential(layer, torch.nn.Tanh())
    return module.to(device).eval()
