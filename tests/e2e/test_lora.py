"""LoRA modules through `xi launch` and HTTP: xi-tiny with two adapters that are made here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from xinference_client import RESTfulClient

from xi_core.testing.server import RunningServer

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.engine("transformers")

XI_TINY = Path(__file__).parents[2] / "plugins" / "xi_plugins" / "families" / "xi_tiny" / "hf"
NAMES = ["tuned", "sql.v1", "law"]
PROMPT = [5, 17, 200, 44]


def save(directory: Path, seed: int) -> str:
    """An adapter of random numbers."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForCausalLM.from_pretrained(XI_TINY)
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        model.save_pretrained(str(directory))
    return str(directory)


@pytest.fixture(scope="module")
def adapters(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The launch `tuned` with two modules."""
    home = tmp_path_factory.mktemp("adapters")
    made = {"sql.v1": save(home / "sql", 1), "law": save(home / "law", 2)}
    pairs = [f"{name}={path}" for name, path in made.items()]
    done = server.xi("launch", "xi-tiny", "-u", "tuned", "--lora-modules", *pairs)  # the engine is chosen for its LoRA modules
    assert done.returncode == 0, done.stderr
    yield made
    server.client.terminate("tuned")


@pytest.fixture
def client(server: RunningServer, adapters: dict[str, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.endpoint}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_each_name_answers_as_itself_alone_and_beside_the_others(client: openai.OpenAI) -> None:
    def ask(name: str) -> str:
        answer = client.completions.create(model=name, prompt=PROMPT, max_tokens=16, temperature=0)
        assert answer.model == name
        return answer.choices[0].text

    alone = [ask(name) for name in NAMES]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(9) as pool:
        assert list(pool.map(ask, NAMES * 3)) == alone * 3
    assert alone[0] == client.completions.create(model="xi-tiny-torch", prompt=PROMPT, max_tokens=16, temperature=0).choices[0].text


def test_streamed_chats_carry_the_name(client: openai.OpenAI) -> None:
    events = list(client.chat.completions.create(model="law", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, stream=True))
    assert {event.model for event in events} == {"law"}


def test_models_shows_them(client: openai.OpenAI, server: RunningServer) -> None:
    cards = {card.id: card.model_extra or {} for card in client.models.list()}
    assert [(cards[name]["root"], cards[name]["parent"]) for name in NAMES] == [("tuned", None), ("tuned", "tuned"), ("tuned", "tuned")]
    card = client.models.retrieve("sql.v1").model_extra or {}
    assert (card["parent"], card["model_engine"]) == ("tuned", "transformers")
    assert server.client.model("law").model_uid == "tuned"
    listed = server.xi("list").stdout
    assert "LoRA module of tuned" in " ".join(listed.split())


def test_xinferences_client_finds_them(server: RunningServer, adapters: dict[str, str]) -> None:
    client = RESTfulClient(server.endpoint)
    answer = client.get_model("law").chat([{"role": "user", "content": "Hi"}], generate_config={"max_tokens": 2})
    assert answer["model"] == "law"
    lora_list = [{"lora_name": "other-law", "local_path": adapters["law"]}]
    uid = client.launch_model(
        "xi-tiny", model_engine="transformers", model_uid="second", peft_model_config={"lora_list": lora_list}, n_gpu=None
    )
    assert "other-law" in client.list_models()
    client.terminate_model(uid)
    assert "other-law" not in client.list_models()


def test_an_unknown_name_is_told_those_that_are_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"model 'lex' does not exist; ready: 'law', 'sql\.v1', 'tuned'"):
        client.completions.create(model="lex", prompt="Hi")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-u", "again", "--lora-modules", "law={law}"], "'law' is a LoRA module of 'tuned' already"),
        (["-u", "law"], "'law' is a LoRA module of 'tuned'; choose another uid"),
        (["-u", "again", "--lora-modules", "xi-tiny={law}"], "'xi-tiny' is the uid of another launch"),
        (["-u", "again", "--lora-modules", "again={law}"], "'again' is the launch's own uid"),
        (["-u", "again", "--lora-modules", "a/b={law}"], "can't be a name"),
        (["-u", "again", "-en", "llama.cpp", "--lora-modules", "new={law}"], "engine llama.cpp serves no LoRA modules; engines that can: "),
        (["-u", "again", "--lora-modules", "new={nowhere}"], "LoRA module 'new': {nowhere} is no directory"),
        (["-u", "again", "--lora-modules", "new={pickled}"], "no pickled weights (adapter_model.bin)"),
    ],
)
def test_launches_that_are_refused(
    server: RunningServer, adapters: dict[str, str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_bytes((Path(adapters["law"]) / "adapter_config.json").read_bytes())
    (pickled / "adapter_model.bin").write_bytes(b"no weights")
    places = {"law": adapters["law"], "nowhere": str(tmp_path / "nowhere"), "pickled": str(pickled)}
    done = server.xi("launch", "xi-tiny", *(argument.format(**places) for argument in arguments))
    assert done.returncode == 1, done.stdout
    assert words.format(**places) in " ".join(done.stderr.split())
    server.xi("terminate", "again")
