"""Fixtures that several integration tests share."""

from collections.abc import Iterator

import pytest

from xi_core.config import settings
from xi_core.models import hub as hub_module
from xi_core.models.hub import HubSource
from xi_core.testing.hub_standin import HubStandIn


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
