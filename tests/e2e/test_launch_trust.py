"""Code and pickles that a model brings, end to end: both the launch and the operator must say yes; then they work, and no more than that."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.errors import Forbidden, LaunchError, XiError
from xi_core.testing.hub_standin import HubModel, HubStandIn
from xi_core.testing.server import RunningServer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

HF = Path(__file__).parents[2] / "plugins" / "xi_plugins" / "families" / "xi_tiny" / "hf"
QUESTION = [{"role": "user", "content": "What is 1 + 1?"}]
CONFIGURATION = """
from transformers import Qwen2Config

class OwnConfig(Qwen2Config):
    model_type = "own"
"""
MODEL = """
from transformers import Qwen2ForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


class Hostile:
    """What makes a file when it is unpickled without `weights_only`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories `own` (code of its own), `bin` (pickled weights) and `hostile` (a pickle that does something)."""
    from safetensors.torch import load_file

    root = tmp_path_factory.mktemp("models")
    for name in ("own", "bin", "hostile"):
        shutil.copytree(HF, root / name)
    config = json.loads((HF / "config.json").read_text()) | {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }
    (root / "own" / "config.json").write_text(json.dumps(config))
    (root / "own" / "configuration_own.py").write_text(CONFIGURATION)
    (root / "own" / "modeling_own.py").write_text(MODEL)
    for name in ("bin", "hostile"):
        for file in (root / name).glob("model.safetensors*"):
            file.unlink()
    torch.save(load_file(HF / "model.safetensors"), root / "bin" / "pytorch_model.bin")
    (root / "hostile" / "pytorch_model.bin").write_bytes(pickle.dumps({"model.embed_tokens.weight": Hostile(root / "mark")}))
    return root


@pytest.fixture(scope="module")
def hub(models: Path) -> Iterator[HubStandIn]:
    """The same models at a hub: `people/own`…"""
    pytest.importorskip("huggingface_hub")
    with HubStandIn() as hub:
        for folder in models.iterdir():
            hub.models[f"people/{folder.name}"] = HubModel(files={file.name: file.read_bytes() for file in folder.iterdir()})
        yield hub


def asking(hub: HubStandIn) -> dict[str, str]:
    """Variables of a server that downloads from it."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory, hub: HubStandIn) -> Iterator[RunningServer]:
    """The defaults."""
    with RunningServer(tmp_path_factory.mktemp("careful"), env=asking(hub)) as server:
        yield server


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory, hub: HubStandIn) -> Iterator[RunningServer]:
    """Both opt-ins, and a server that other machines reach, as far as the rules for variables go."""
    home = tmp_path_factory.mktemp("trusting")
    opted = {
        "XI_ALLOW_REMOTE_CODE": "1",
        "XI_ALLOW_PICKLED_WEIGHTS": "1",
        "HF_MODULES_CACHE": str(home / "modules"),
        "XI_ENV_ALLOW": "MINE_",
        **asking(hub),
    }
    with RunningServer(home, "--host", "0.0.0.0", "--no-auth", env=opted) as server:
        yield server


def launched(server: RunningServer, path: Path, **fields: Any) -> str:
    """The model's answer. Raises the error of the launch."""
    uid = server.client.start(LaunchSpec(model_name=str(path), model_uid=path.name, **fields))
    try:
        server.client.wait_ready(uid)
        answer: Any = server.client.chat(uid, QUESTION, temperature=0)
        return str(answer.choices[0].message.content)
    finally:
        server.client.terminate(uid)


def test_neither_without_the_operator(careful: RunningServer, models: Path) -> None:
    with pytest.raises(Forbidden, match=r"--trust-remote-code.*XI_ALLOW_REMOTE_CODE=1") as caught:
        launched(careful, models / "own", trust_remote_code=True)
    assert caught.value.param == "trust_remote_code"
    done = careful.xi("launch", str(models / "own"), "--trust-remote-code")
    assert done.returncode == 1
    assert "XI_ALLOW_REMOTE_CODE=1" in done.stderr
    with pytest.raises(LaunchError, match="XI_ALLOW_PICKLED_WEIGHTS=1"):
        launched(careful, models / "bin")


def test_code_of_its_own(trusting: RunningServer, models: Path) -> None:
    with pytest.raises(XiError, match="launch it with --trust-remote-code"):
        launched(trusting, models / "own", model_engine="transformers")
    assert not (trusting.home / "modules" / "transformers_modules" / "own").exists()
    assert "2" in launched(trusting, models / "own", model_engine="transformers", trust_remote_code=True)


def test_pickled_weights(trusting: RunningServer, models: Path) -> None:
    assert "2" in launched(trusting, models / "bin")
    with pytest.raises(LaunchError, match="weights can't be loaded"):
        launched(trusting, models / "hostile")
    assert not (models / "mark").exists()


def test_a_hub_gives_neither_without_the_operator(careful: RunningServer, hub: HubStandIn) -> None:
    with pytest.raises(Forbidden, match="XI_ALLOW_REMOTE_CODE=1"):
        launched(careful, Path("people/own"), model_engine="transformers", trust_remote_code=True)
    with pytest.raises(LaunchError, match=r"pytorch_model\.bin.* are pickles.*XI_ALLOW_PICKLED_WEIGHTS=1.*engine transformers"):
        launched(careful, Path("people/bin"), model_engine="transformers")
    assert not hub.gets("pytorch_model.bin")
    done = careful.xi("pull", "people/own", "--trust-remote-code")
    assert done.returncode == 1
    assert "XI_ALLOW_REMOTE_CODE=1" in done.stderr
    assert not [one for one in hub.asked if one.path.endswith(".py")]


def test_code_of_a_hub_comes_with_both_words_only(trusting: RunningServer, hub: HubStandIn) -> None:
    """Also where a plain launch has put the model into the cache without it."""
    with pytest.raises(XiError, match="launch it with --trust-remote-code"):
        launched(trusting, Path("people/own"), model_engine="transformers")
    assert hub.gets("model.safetensors")
    assert not [one for one in hub.asked if one.path.endswith(".py")]
    weights = len(hub.gets("/storage/people/own/model.safetensors"))
    assert "2" in launched(trusting, Path("people/own"), model_engine="transformers", trust_remote_code=True)
    assert {one.path.rpartition("/")[2] for one in hub.asked if one.path.endswith(".py")} == {"configuration_own.py", "modeling_own.py"}
    assert len(hub.gets("/storage/people/own/model.safetensors")) == weights, "what was there isn't got again"


def test_pickled_weights_of_a_hub(trusting: RunningServer, hub: HubStandIn, models: Path) -> None:
    assert "2" in launched(trusting, Path("people/bin"), model_engine="transformers")
    assert hub.gets("/storage/people/bin/pytorch_model.bin")
    with pytest.raises(LaunchError, match="weights can't be loaded"):
        launched(trusting, Path("people/hostile"), model_engine="transformers")
    assert not (models / "mark").exists()


def test_variables_of_a_server_that_other_machines_reach(trusting: RunningServer) -> None:
    done = trusting.xi("launch", "xi-tiny", "--env", "GIT_DIR", "x")
    assert done.returncode == 1
    assert "XI_ENV_ALLOW" in done.stderr
    done = trusting.xi("launch", "xi-tiny", "--env", "MINE_LEVEL", "x", "--context-length", "512")
    assert done.returncode == 0, done.stderr
    assert trusting.client.model("xi-tiny").context_length == 512
