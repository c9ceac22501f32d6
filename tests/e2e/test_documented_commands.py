"""Every command and snippet of five guides, in xi's words: run against xi-tiny where a CPU can, else listed with the reason why not.

The guides: Xinference's on launching, using and distributed inference; vLLM's to distributed serving; the Kempner guide to distributed
inference, which shows models and no commands. `docs/coming-from-xinference.md` has xi's words for each; a test holds the two together.
Models of the guides come from a stand-in for the hubs, which has xi-tiny's files under their names.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import guided_runs as runs
import pytest
from msgspec import Struct

from xi_core.testing.hub_standin import HubModel, HubStandIn
from xi_core.testing.server import RunningServer

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-xinference.md"
ROW = re.compile(r"^\| `([^`]+)` \| (.+) \|$", re.MULTILINE)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*xi [^`]+")
PLACES = {"xi", "-e", "URL", "-p", "9997"}
"""Words of a command that say where the server is: the tests' own is elsewhere."""
PLACEHOLDER = re.compile(r"[A-Z]+")

VLLM = "needs vLLM, which is no part of the development environment; `make test-engines` runs what of it runs on a CPU"
GPUS = "needs several GPUs"
RAY = "needs Ray and several machines with GPUs; xi passes the option on to vLLM and never stops a runtime that it joins"
DOCKER = "needs Docker and an image; the command inside is run without it"
IMAGES = "xi serves text, embeddings and rerank; text-to-image isn't served"
INSTALLS = "installs from PyPI; the packaging tests install what is built"
NO_UI = "xi has no web UI; `xi chat` and /docs take its place"


class Guided(Struct):
    """What runs a guide's command in xi's words, or the `reason` why nothing does. What is cached runs once for several commands."""

    run: Callable[[RunningServer], None] | None = None
    reason: str = ""


# ---- the table --------------------------------------------------------------------------------------

GUIDED: dict[str, Guided] = {
    "XINFERENCE_ALLOW_MULTI_REPLICA_PER_GPU": Guided(runs.shares_devices),
    "XINFERENCE_LAUNCH_STRATEGY": Guided(runs.serving(XINFERENCE_LAUNCH_STRATEGY="IDLE_FIRST")),
    "xinference launch xxx --env A 0 --env B 1": Guided(
        runs.launched("xi launch xi-tiny -en llama.cpp --env A 0 --env B 1", runs.has_the_variables)
    ),
    "VLLM_USE_V1=0": Guided(reason=VLLM),
    "XINFERENCE_BATCH_SIZE=32 XINFERENCE_BATCH_INTERVAL=0.003 xinference-local --log-level debug": Guided(
        runs.serving("--log-level", "debug", XINFERENCE_BATCH_SIZE="32", XINFERENCE_BATCH_INTERVAL="0.003")
    ),
    "xinference launch -e URL --model-engine transformers -n qwen1.5-chat -s 4 -f pytorch -q none": Guided(
        runs.launched("xi launch --model-engine transformers -n qwen1.5-chat -s 4 -f pytorch -q none", runs.on_transformers)
    ),
    "XINFERENCE_TEXT_TO_IMAGE_BATCHING_SIZE=1024*1024 xinference-local --log-level debug": Guided(reason=IMAGES),
    "xinference launch -n qwen3-xxx --model-engine vllm --enable-thinking": Guided(runs.thinking),
    "xinference-local --host 0.0.0.0 --port 9997": Guided(runs.serving("-H", "0.0.0.0", XI_API_KEY="a-long-secret-of-the-test")),
    "XINFERENCE_HOME=/tmp/xinference xinference-local --host 0.0.0.0 --port 9997": Guided(runs.home_of_their_name),
    "http://127.0.0.1:9997/ui": Guided(reason=NO_UI),
    "http://127.0.0.1:9997/docs": Guided(runs.http_docs),
    "pip install xinference": Guided(reason=INSTALLS),
    "xinference --help": Guided(runs.shows_commands),
    "pip install xinference-client==${SERVER_VERSION}": Guided(reason=INSTALLS),
    "xinference engine -e URL --model-name qwen-chat": Guided(runs.says("xi engines -n qwen-chat", "llama.cpp", "transformers")),
    "xinference engine -e URL --model-name qwen-chat --model-engine vllm": Guided(
        runs.says("xi engines -n qwen-chat -en vllm", "vLLM", "Int4")
    ),
    "xinference engine -e URL --model-name qwen-chat -f ggufv2": Guided(runs.says("xi engines -n qwen-chat -f ggufv2", "ggufv2", "Q4_K_M")),
    "XINFERENCE_MODEL_SRC=modelscope xinference-local --host 0.0.0.0 --port 9997": Guided(runs.from_modelscope),
    "xinference launch --model-engine ENGINE -n qwen2.5-instruct -s 0_5 -f pytorch": Guided(
        runs.launched("xi launch --model-engine transformers -n qwen2.5-instruct -s 0_5 -f pytorch", runs.on_transformers)
    ),
    "curl -X POST /v1/models -d {model_engine, model_name, model_format, size_in_billions}": Guided(runs.http_launch),
    "RESTfulClient.launch_model(model_engine, model_name, model_format, size_in_billions)": Guided(runs.python_launch),
    "xinference launch --model-engine vllm -n qwen2.5-instruct -s 0_5 -f pytorch --gpu_memory_utilization 0.9": Guided(
        runs.passes_options_on
    ),
    "curl -X POST /v1/chat/completions": Guided(runs.http_chat),
    "RESTfulClient.get_model(uid).chat(messages)": Guided(runs.python_chat),
    "OpenAI(base_url).chat.completions.create(model, messages)": Guided(runs.openais_client),
    "xinference registrations -t LLM": Guided(runs.says("xi registrations -t LLM", "xi-tiny")),
    "curl /v1/model_registrations/LLM": Guided(runs.http_registrations),
    "RESTfulClient.list_model_registrations(model_type)": Guided(runs.python_registrations),
    "xinference list": Guided(runs.says("xi list", "xi-tiny")),
    "curl /v1/models": Guided(runs.http_list),
    "RESTfulClient.list_models()": Guided(runs.python_list),
    "xinference terminate --model-uid UID": Guided(runs.terminates),
    "curl -X DELETE /v1/models/UID": Guided(runs.http_launch),
    "RESTfulClient.terminate_model(model_uid)": Guided(runs.python_launch),
    "xinference-supervisor -H HOST": Guided(runs.in_a_cluster),
    "xinference-worker -e URL -H HOST": Guided(runs.in_a_cluster),
    "xinference launch -n qwen2.5-instruct -s 0_5 -f pytorch -e URL": Guided(runs.in_a_cluster),
    "docker run --gpus all xprobe/xinference:VERSION xinference-local -H 0.0.0.0 --log-level debug": Guided(
        runs.serving("-H", "0.0.0.0", "--log-level", "debug", XI_API_KEY="a-long-secret-of-the-test")
    ),
    "docker run xprobe/xinference:VERSION-cpu xinference-local -H 0.0.0.0 --log-level debug": Guided(reason=DOCKER),
    "xinference cached": Guided(runs.from_modelscope),
    "xinference cal-model-mem": Guided(runs.says("xi cal-model-mem -n qwen2.5-instruct -s 0_5 -f pytorch", "total:")),
    "xinference chat": Guided(runs.chats),
    "xinference generate": Guided(runs.generates),
    "xinference login": Guided(runs.asks_for_a_key),
    "xinference register / unregister": Guided(runs.registers_and_unregisters),
    "xinference remove-cache": Guided(runs.from_modelscope),
    "xinference stop-cluster": Guided(runs.in_a_cluster),
    "xinference vllm-models": Guided(runs.says("xi vllm-models", "qwen2.5-instruct")),
    "xinference launch … --n-worker N": Guided(runs.in_a_cluster),
    "xinference launch … --n-worker 2 --tensor_parallel_size 2 --pipeline_parallel_size 1": Guided(reason=VLLM),
    "xinference launch … --n-gpu N": Guided(runs.shares_devices),
    'LLM("facebook/opt-13b", tensor_parallel_size=4).generate(prompt)': Guided(runs.offline),
    "python -m vllm.entrypoints.api_server --model facebook/opt-13b --tensor-parallel-size 4": Guided(reason=GPUS),
    "--distributed-executor-backend mp / ray": Guided(reason=GPUS),
    "pip install ray; ray start --head; ray start --address=HEAD": Guided(reason=RAY),
    "Llama 3.1 70B": Guided(runs.plans("-n llama-3.1-instruct -s 70 -f pytorch", 1, 80, "tensor parallel 4, pipeline parallel 1")),
    "Llama 3.1 405B": Guided(runs.plans("-n llama-3.1-instruct -s 405 -f pytorch", 4, 80, "tensor parallel 16, pipeline parallel 1")),
    "DeepSeek-R1 671B": Guided(runs.plans("-n deepseek-r1 --network slow", 2, 141, "tensor parallel 4, pipeline parallel 2")),
    "DeepSeek-R1-0528 671B": Guided(runs.plans("-n deepseek-r1-0528", 2, 141, "tensor parallel 8, pipeline parallel 1")),
}


# ---- the tests --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with xi-tiny, as the guides have theirs."""
    files = {file.name: file.read_bytes() for file in runs.TINY.iterdir()}
    with HubStandIn() as hub:
        hub.models |= {id: HubModel(files=files) for id in ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen1.5-4B-Chat")}
        gguf = (runs.FAMILY / "xi-tiny-f16.gguf").read_bytes()
        hub.models["Qwen/Qwen2.5-0.5B-Instruct-GGUF"] = HubModel(files={"qwen2.5-0.5b-instruct-q4_k_m.gguf": gguf})
        env = {"HF_ENDPOINT": hub.endpoint, "MODELSCOPE_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        with RunningServer(tmp_path_factory.mktemp("guided"), env=env) as server:
            runs.xi(server, "xi launch xi-tiny -en llama.cpp")
            yield server


@pytest.mark.parametrize("theirs", GUIDED)
def test_the_guides_command_in_xis_words(guided: RunningServer, theirs: str) -> None:
    entry = GUIDED[theirs]
    if entry.run is None:
        pytest.skip(entry.reason)
    entry.run(guided)


def test_every_entry_runs_or_says_why_not() -> None:
    assert all((entry.run is None) == bool(entry.reason) for entry in GUIDED.values())


def test_the_page_has_xis_words_for_each() -> None:
    assert [theirs for theirs, _ in rows()] == list(GUIDED)


def test_what_is_run_is_what_the_page_shows() -> None:
    """Of the commands that are run as one line: the others are spread over several calls."""
    compared = 0
    for theirs, ours in rows():
        shown, run = COMMAND.match(ours.removeprefix("`")), line_of(GUIDED[theirs])
        if shown is not None and run:
            missing = words(shown.group()) - words(run)
            assert not missing, f"{theirs}: the page shows {shown.group()!r}, and {run!r} is run"
            compared += 1
    assert compared >= 15


def test_the_page_opens_no_server_without_a_key() -> None:
    for _, ours in rows():
        for command in COMMAND.findall(ours):
            if re.search(r"\bxi (serve|supervisor|gateway)\b.* (-H|--host) ", command):
                assert "XI_API_KEY=" in command, command


def rows() -> list[tuple[str, str]]:
    """The page's tables: their commands and what stands beside them."""
    return ROW.findall(PAGE.read_text(encoding="utf-8"))


def line_of(entry: Guided) -> str:
    """The command that an entry of `serving`, `launched`, `says` or `plans` runs; empty for others."""
    known = inspect.getclosurevars(inspect.unwrap(entry.run)).nonlocals if entry.run is not None else {}
    if "arguments" in known:
        variables = [f"{name}={value}" for name, value in known["env"].items()]
        return shlex.join([*variables, "xi", "serve", *known["arguments"]])
    return known.get("line", "")


def words(command: str) -> set[str]:
    """What a command says: its words but for placeholders; of the secret, its name; Xinference's names of variables as xi's."""
    said = {word.replace("XINFERENCE_", "XI_") for word in shlex.split(command) if not PLACEHOLDER.fullmatch(word)}
    return {re.sub("^XI_API_KEY=.*", "XI_API_KEY", word) for word in said} - PLACES
