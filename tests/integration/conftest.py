"""Fixtures that several integration tests share. What they make, and functions beside it, are in modules here that the tests import."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xi_core.config import settings
from xi_core.models import hub as hub_module
from xi_core.models.hub import HubSource
from xi_core.testing.hub_standin import HubStandIn

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("joining_town", "llama_cpp_loaded", "supervisor_stage", "transformers_models")

from joining_town import Town  # noqa: E402
from supervisor_stage import Stage, of_runtime  # noqa: E402

if TYPE_CHECKING:
    from llama_cpp_loaded import Loaded

    from xi_plugins.engines.transformers.engine import TransformersEngine


@pytest.fixture
def model_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """An empty stand-in for both hubs, which the sources of this process ask; they wait for 1 s at most."""
    pytest.importorskip("huggingface_hub")
    from xi_plugins.sources import huggingface, modelscope

    with HubStandIn() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "XI_OFFLINE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN_PATH", "none")
        monkeypatch.setattr(hub_module, "BACKOFF", 0.02)
        for module in (huggingface, modelscope):
            monkeypatch.setattr(module, "TIMEOUT", 1.0)
        settings.cache_clear()
        yield hub
    settings.cache_clear()


@pytest.fixture(params=["huggingface", "modelscope"])
def source(request: pytest.FixtureRequest) -> HubSource:
    """Each source over the network."""
    pytest.importorskip("huggingface_hub")
    from xi_plugins.sources import huggingface, modelscope

    return {"huggingface": huggingface.HuggingFaceSource, "modelscope": modelscope.ModelScopeSource}[request.param]()


@pytest.fixture
async def stage(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A supervisor with its worker and a client; settings as the parameter."""
    made = Stage(tmp_path, **getattr(request, "param", {}))
    made.supervise()
    try:
        await made.work()
        made.client()
        yield made
    finally:
        await made.stack.aclose()
        await made.supervisor.close()
    assert not of_runtime(tmp_path), "processes are left"


@pytest.fixture
async def workerless(tmp_path: Path) -> AsyncIterator[Stage]:
    """A supervisor and a client; no worker ever joins."""
    made = Stage(tmp_path)
    made.supervise()
    made.client()
    yield made
    await made.stack.aclose()
    await made.supervisor.close()


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    """A supervisor on TCP that nobody has joined yet."""
    made = Town(tmp_path)
    yield made
    await made.close()


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """What the engine sets for the whole process is undone after a module."""
    import torch
    import transformers

    before = torch.get_num_threads()
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a small random model for the engine `transformers`."""
    import transformers
    from transformers_models import SMALL, save_small

    return save_small(tmp_path_factory.mktemp("small"), transformers.LlamaConfig(**SMALL))


@pytest.fixture(scope="module")
def tiny() -> TransformersEngine:
    """The bundled model on the engine `transformers`."""
    from transformers_models import XI_TINY, load

    return load(XI_TINY)


@pytest.fixture
def small(small_dir: Path) -> TransformersEngine:
    """The small random model on the engine `transformers`, with eight slots."""
    from transformers_models import load

    return load(small_dir, prefill_chunk=32, batch_size=8)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    """The bundled model on the engine `llama.cpp`."""
    from llama_cpp_loaded import Loaded

    loaded = Loaded()
    yield loaded
    loaded.engine.close(5.0)
