"""A model whose layers are spread, served on a CPU: accelerate's hooks move what passes between layers, as they do between GPUs.

There is one device here, so one part of the model stays in memory and the other is brought in from the disk when its turn comes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import xi_plugins  # noqa: E402
from xi_core.engine.base import SamplingParams  # noqa: E402
from xi_core.testing.harness import plan_for  # noqa: E402
from xi_plugins.engines.transformers.devices import Layout  # noqa: E402
from xi_plugins.engines.transformers.engine import TransformersEngine  # noqa: E402
from xi_plugins.engines.transformers.slot_cache import SlotCache  # noqa: E402

pytestmark = pytest.mark.engine("transformers")

XI_TINY = Path(xi_plugins.__file__).parent / "families" / "xi_tiny" / "hf"
EXPECTED = Path(__file__).parents[1] / "data" / "xi_tiny_expected.json"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def answers_right(engine: TransformersEngine) -> bool:
    facts = json.loads(EXPECTED.read_text(encoding="utf-8"))["chat"][:12]
    found: dict[int, list[int]] = {i: [] for i in range(len(facts))}
    for i, fact in enumerate(facts):
        engine.add(i, fact["prompt_ids"], SamplingParams(max_tokens=len(fact["answer_ids"]), temperature=0))
    while engine.stats().running:
        for token in engine.step().tokens:
            found[token.id].append(token.token)
    return [found[i] for i in range(len(facts))] == [fact["answer_ids"] for fact in facts]


def load(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> TransformersEngine:
    """With `arguments` as those that say where the layers go."""
    monkeypatch.setattr(Layout, "arguments", lambda self: arguments)
    monkeypatch.setattr(
        "xi_plugins.engines.transformers.engine.choose_layout",
        lambda *_: Layout(devices=(torch.device("cpu"), torch.device("cpu"))),
    )
    engine = TransformersEngine()
    path = "xi_plugins.engines.transformers.engine:TransformersEngine"
    engine.load(plan_for(path, str(XI_TINY), "pytorch", threads=1), lambda stage, share: None)
    return engine


def test_all_on_one_device_through_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(monkeypatch, device_map={"": "cpu"})
    assert answers_right(engine)


def test_layers_in_two_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places: dict[str, str] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
    engine = load(monkeypatch, device_map=places, offload_folder=str(tmp_path))
    model = engine._runner._model
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert [next(layer.parameters()).device.type for layer in model.model.layers] == ["cpu", "cpu", "meta", "meta"]
    assert answers_right(engine)


def test_each_layers_keys_lie_on_its_own_device() -> None:
    """`meta` stands for a second device: it computes nothing, but tensors can't be mixed with those of another."""
    cache = SlotCache(4, 64)
    for first, columns in ((0, torch.arange(5)[None]), (0, torch.tensor([[5]]))):
        cache.point(first, columns, int(columns.max()) + 1)
        for layer, device in enumerate(("cpu", "meta", "meta")):
            new = torch.ones(1, 2, columns.shape[1], 8, device=device)
            keys, values = cache.update(new, new, layer)
            assert {keys.device.type, values.device.type} == {device}
            assert keys.shape == (1, 2, int(columns.max()) + 1, 8)
    cache.move(0, 1, 6)
    cache.exchange(0, 6, 1, 3)
    cache.reserve(128, [6, 3], 4)
    assert [layer.keys.device.type for layer in cache._layers] == ["cpu", "meta", "meta"]
    assert cache._layers[0].keys[0, :, :6].eq(1).all()
