"""What xi costs an embedding model: 256 short texts in one request through the whole of xi, beside the model in this process, in turns.

The model is a random BERT of MiniLM's shape (6 layers of 384). The peer reads batches of 32 sorted by length, as sentence-transformers.
"""

from __future__ import annotations

import base64
import json
import os
import random
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.results import ratio, report
from benchmarks.served import launch, xi_serve

TEXTS = 256
BATCH = 32
TARGET = 0.9
TOKENIZER = ROOT / "plugins" / "xi_plugins" / "families" / "xi_tiny" / "hf" / "tokenizer.json"
TOLERANCE = 1e-4

Embed = Callable[[list[str]], Any]
"""Vectors of these texts: rows of a float32 array."""


def texts(repetition: int) -> list[str]:
    """Those of one repetition: about 4 to 24 words."""
    choose = random.Random(repetition)
    words = ("the", "capital", "of", "France", "is", "what", "time", "it", "in", "Paris", "a", "cat", "rain")
    return [" ".join(choose.choices(words, k=choose.randint(4, 24))) for _ in range(TEXTS)]


def make(folder: Path) -> Path:
    """A directory with the model."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(20)
    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    model: Any = BertModel(BertConfig(vocab_size=30522, **shape))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    return folder


def in_process(folder: Path, threads: int) -> Embed:
    """The model and the tokenizer themselves."""
    import tokenizers
    import torch
    from transformers import BertModel

    torch.set_num_threads(threads)
    library: Any = BertModel
    model = library.from_pretrained(folder).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    @torch.inference_mode()
    def embed(given: list[str]) -> Any:
        ids = [one.ids for one in tokenizer.encode_batch_fast(given)]
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        found = torch.empty(len(ids), model.config.hidden_size)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            width = len(ids[rows[0]])
            mask = torch.tensor([[1] * len(ids[row]) + [0] * (width - len(ids[row])) for row in rows])
            padded = torch.tensor([ids[row] + [0] * (width - len(ids[row])) for row in rows])
            hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state * mask[..., None]
            found[rows] = torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1, keepdim=True), dim=-1)
        return found.numpy()

    return embed


def over_http(url: str, model: str, encoding: str) -> Embed:
    """One request at a server."""
    import numpy

    def embed(given: list[str]) -> Any:
        body = json.dumps({"model": model, "input": given, "encoding_format": encoding}).encode()
        asking = urllib.request.Request(f"{url}/v1/embeddings", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asking, timeout=120) as answer:
            data = json.loads(answer.read())["data"]
        if encoding == "float":
            return numpy.array([entry["embedding"] for entry in data], numpy.float32)
        return numpy.stack([numpy.frombuffer(base64.b64decode(entry["embedding"]), numpy.float32) for entry in data])

    return embed


def run(*, quick: bool, save: bool, threads: int | None = None) -> bool:
    """Print the table. Whether the target is met."""
    threads = threads or max(1, (os.cpu_count() or 2) - 1)
    repetitions = 2 if quick else 5
    pairs: dict[str, list[tuple[float, float]]] = {"base64": [], "float": []}
    with tempfile.TemporaryDirectory() as temporary, xi_serve(Path(temporary) / "home") as (_, url):
        folder = make(Path(temporary) / "model")
        launch(url, model_name=str(folder), model_uid="bench", model_type="embedding", threads=threads, n_gpu=None)
        bare = in_process(folder, threads)
        for repetition in range(repetitions + 1):
            given = texts(repetition)
            for encoding, found in pairs.items():
                ours, one = _timed(over_http(url, "bench", encoding), given)
                theirs, other = _timed(bare, given)
                if abs(one - other).max() > TOLERANCE:
                    raise AssertionError(f"the vectors differ by {abs(one - other).max():g}")
                if repetition:  # the first warms both up
                    found.append((TEXTS / ours, TEXTS / theirs))
    rows = [
        ratio(f"{TEXTS} texts, {encoding}", "texts/s", "the model in process", found, least=TARGET) for encoding, found in pairs.items()
    ]
    return report("embeddings", rows, {"texts": TEXTS, "threads": threads, "repetitions": repetitions}, save=save)


def _timed(embed: Embed, given: list[str]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = embed(given)
    return time.perf_counter() - began, found
