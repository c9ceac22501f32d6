"""What runs the commands of guides in xi's words, one function for each: see `test_documented_commands.py`. Cached: runs once for several."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from xinference_client import RESTfulClient

from xi_core.testing.server import RunningServer, free_port
from xi_core.testing.waiting import wait_until

FAMILY = Path(__file__).parents[2] / "plugins" / "xi_plugins" / "families" / "xi_tiny"
TINY = FAMILY / "hf"
XI = str(Path(sys.executable).with_name("xi"))

# ---- shell ------------------------------------------------------------------------------------------


def xi(server: RunningServer, line: str, status: int = 0) -> str:
    """The output of a command line that begins with `xi`; both streams."""
    done = server.xi(*shlex.split(line)[1:])
    assert done.returncode == status, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def launched(line: str, check: Callable[[RunningServer, str], None] | None = None) -> Callable[[RunningServer], None]:
    """Launches by `line`, of which `guided` is the uid; sees it READY and answering; ends it."""

    def run(server: RunningServer) -> None:
        try:
            xi(server, f"{line} --model-uid guided")
            answered(server, "guided")
            if check is not None:
                check(server, "guided")
        finally:
            server.xi("terminate", "guided")

    return run


def answered(server: RunningServer, uid: str) -> None:
    """The model says something."""
    messages = [{"role": "user", "content": "What is xi?"}]
    answer = httpx.post(f"{server.endpoint}/v1/chat/completions", json={"model": uid, "messages": messages}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def replicas(server: RunningServer, uid: str) -> list[psutil.Process]:
    """The processes of a launch's replicas."""
    status = httpx.get(f"{server.endpoint}/v1/models/{uid}").json()
    return [psutil.Process(replica["pid"]) for replica in status["replicas"]]


@functools.cache
def shares_devices(server: RunningServer) -> None:
    """Two devices: three replicas of one each, then one replica of both."""
    names = {"XI_FAKE_DEVICES": "2x2GiB", "XINFERENCE_ALLOW_MULTI_REPLICA_PER_GPU": "1"}
    with RunningServer(server.home / "devices", env=names) as other:
        for options, held in (("--replica 3 --n-gpu 1 --gpu-pool 2", [1, 2]), ("--n-gpu 2", [1, 1])):
            xi(other, f"xi launch xi-tiny -en llama.cpp {options}")
            devices = [device for replica in other.client.model("xi-tiny").replicas for device in replica.devices]
            assert sorted(map(devices.count, set(devices))) == held
            xi(other, "xi terminate xi-tiny")


def has_the_variables(server: RunningServer, uid: str) -> None:
    assert {name: replicas(server, uid)[0].environ().get(name) for name in ("A", "B")} == {"A": "0", "B": "1"}


def on_transformers(server: RunningServer, uid: str) -> None:
    assert server.client.model(uid).engine == "transformers"


def serving(*arguments: str, **env: str) -> Callable[[RunningServer], None]:
    """Starts another server with these options and variables, and asks it who serves."""

    def run(server: RunningServer) -> None:
        home = Path(env.pop("XINFERENCE_HOME", "") or server.home / f"guided-{free_port()}")
        with RunningServer(home, *arguments, env=env) as other:
            assert other.client.cluster().processes

    return run


def home_of_their_name(server: RunningServer) -> None:
    home, port = server.home / "their-home", free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XI_")} | {"XINFERENCE_HOME": str(home)}
    process = subprocess.Popen([XI, "serve", "-p", str(port)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{endpoint}/ready"), 30.0, "the server to answer")
        subprocess.run([XI, "launch", "xi-tiny", "-e", endpoint], env=environment, capture_output=True, timeout=120, check=True)
        assert list((home / "logs").iterdir())
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether somebody answers there."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def commands(server: RunningServer) -> set[str]:
    """What `xi --help` lists."""
    return set(re.findall(r"^  ([a-z][a-z-]*)  ", server.xi("--help").stdout.partition("Commands:")[2], re.MULTILINE))


def shows_commands(server: RunningServer) -> None:
    assert {"serve", "launch", "list", "terminate", "chat", "generate", "engines"} <= commands(server)


def says(line: str, *words: str) -> Callable[[RunningServer], None]:
    """Runs `line`, whose output has the words."""

    def run(server: RunningServer) -> None:
        output = xi(server, line)
        assert all(word in output for word in words), output

    return run


def plans(model: str, machines: int, memory: int, layout: str) -> Callable[[RunningServer], None]:
    """`xi plan` for machines of four devices with `memory` GB each."""
    words = "fits: yes", f"layout: {machines} machine", layout
    return says(f"xi plan {model} --workers {machines} --gpus-per-worker 4 --gpu-memory {memory}GB", *words)


def terminates(server: RunningServer) -> None:
    xi(server, "xi launch xi-tiny -en llama.cpp --model-uid guided")
    xi(server, 'xi terminate --model-uid "guided"')
    assert "guided" not in xi(server, "xi list")


def thinking(server: RunningServer) -> None:
    """A model whose template has the switch is launched with it on; xi-tiny's own has none, and says so."""
    assert "thinking" in xi(server, "xi launch xi-tiny -u guided --enable-thinking", status=1)
    model = server.home / "thinker"
    shutil.copytree(TINY, model, dirs_exist_ok=True)
    template = "{% if enable_thinking %}Use <think>. {% endif %}{% for m in messages %}{{ m.content }}\n{% endfor %}"
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), "chat_template": template}), encoding="utf-8")
    launched(f"xi launch {shlex.quote(str(model))} -en transformers --enable-thinking")(server)


def generates(server: RunningServer) -> None:
    assert "Paris" in xi(server, "xi generate xi-tiny -p 'The capital of France is' --temperature 0")


def chats(server: RunningServer) -> None:
    done = server.xi("chat", "xi-tiny", input="What is xi?\n")
    assert done.returncode == 0, done.stderr
    assert "xi" in done.stdout


def passes_options_on(server: RunningServer) -> None:
    """To an engine that has them; by one that doesn't they are refused."""
    assert "gpu_memory_utilization" in xi(server, "xi launch xi-tiny -u guided -en llama.cpp --gpu_memory_utilization 0.9", status=1)
    launched("xi launch xi-tiny -en llama.cpp --context_length 512")(server)


@functools.cache
def in_a_cluster(server: RunningServer) -> None:
    """A supervisor and two workers that join it; a model on one of them, a model that both share, and the end of all."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *arguments: str, stdout: int = subprocess.DEVNULL, **more: str) -> subprocess.Popen[str]:
        environment = {**server.environment, "XI_HOME": str(server.home / name), "OMP_NUM_THREADS": "1", **more}
        started.append(subprocess.Popen([XI, *arguments], env=environment, stdout=stdout, stderr=subprocess.DEVNULL, text=True))
        return started[-1]

    head = start("head", "supervisor", "-H", "127.0.0.1", "-p", "0", "--cluster-port", "0", "--json", stdout=subprocess.PIPE)
    try:
        assert head.stdout is not None
        url = json.loads(head.stdout.readline())["endpoint"]
        for name in ("w1", "w2"):
            token = xi(server, f"xi join-token -e {url}").split()[0]
            start(name, "worker", "-e", url, "-H", "127.0.0.1", "--name", name, XI_JOIN_TOKEN=token)
        wait_until(lambda: all(name in xi(server, f"xi cluster -e {url}") for name in ("w1", "w2")), 30.0, "the workers to join")
        xi(server, f"xi launch -n qwen2.5-instruct -s 0_5 -f pytorch -e {url}")
        assert "qwen2.5-instruct" in httpx.get(f"{url}/v1/models").text
        xi(server, f"xi terminate qwen2.5-instruct -e {url}")
        xi(server, f"xi launch xi-tiny -u shared -en transformers --n-worker 2 --n-gpu none -e {url}")
        status = httpx.get(f"{url}/v1/models/shared").json()
        assert [rank["worker"] for rank in status["replicas"][0]["ranks"]] in (["w1", "w2"], ["w2", "w1"])
        xi(server, f"xi generate shared -p 'The capital of France is' --temperature 0 -e {url}")
        xi(server, f"xi stop-cluster --yes -e {url}")
        assert [process.wait(30) for process in started] == [0, 0, 0]
    finally:
        for process in reversed(started):
            if process.poll() is None:
                process.terminate()
                process.wait(30)
        if head.stdout is not None:
            head.stdout.close()


def asks_for_a_key(server: RunningServer) -> None:
    key = "a-long-secret-of-the-test"
    with RunningServer(server.home / "locked", env={"XI_API_KEY": key}) as other:
        xi(other, "xi list")
        assert "XI_API_KEY" in xi(server, f"xi list -e {other.endpoint}", status=1)
        xi(server, f"xi list -e {other.endpoint} -ak {key}")


def registers_and_unregisters(server: RunningServer) -> None:
    family = server.home / "mine.json"
    family.write_text(json.dumps({"model_name": "mine", "model_path": str(TINY)}), encoding="utf-8")
    xi(server, f"xi register -t LLM -f {family}")
    assert "mine" in xi(server, "xi registrations -t LLM")
    xi(server, "xi unregister -t LLM -n mine")
    assert "mine" not in xi(server, "xi registrations -t LLM")


@functools.cache
def from_modelscope(server: RunningServer) -> None:
    """What is downloaded is shown, and can be removed."""
    env = {"MODELSCOPE_ENDPOINT": server.environment["MODELSCOPE_ENDPOINT"], "XINFERENCE_MODEL_SRC": "modelscope"}
    with RunningServer(server.home / "other-hub", env=env) as other:
        xi(other, "xi launch -n qwen2.5-instruct -s 0_5 -f ggufv2 -q q4_k_m")
        answered(other, "qwen2.5-instruct")
        assert "modelscope" in xi(other, "xi cached -n qwen2.5-instruct")
        xi(other, "xi terminate qwen2.5-instruct")
        xi(other, "xi remove-cache -n qwen2.5-instruct --yes")
        assert "modelscope" not in xi(other, "xi cached")


# ---- HTTP and Python --------------------------------------------------------------------------------


@functools.cache
def http_launch(server: RunningServer) -> None:
    body = {"model_uid": "guided", "model_engine": "transformers", "model_name": "qwen2.5-instruct", "model_format": "pytorch"}
    body["size_in_billions"] = "0_5"
    answer = httpx.post(f"{server.endpoint}/v1/models", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"model_uid": "guided"}
    gone = httpx.delete(f"{server.endpoint}/v1/models/guided", timeout=60)
    assert gone.status_code == 200, gone.text


def http_chat(server: RunningServer) -> None:
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is the largest animal?"}]
    answer = httpx.post(f"{server.endpoint}/v1/chat/completions", json={"model": "xi-tiny", "messages": messages}, timeout=60).json()
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert answer["usage"]["prompt_tokens"] > 0


def http_list(server: RunningServer) -> None:
    assert "xi-tiny" in [model["id"] for model in httpx.get(f"{server.endpoint}/v1/models").json()["data"]]


def http_registrations(server: RunningServer) -> None:
    assert "xi-tiny" in [model["model_name"] for model in httpx.get(f"{server.endpoint}/v1/model_registrations/LLM").json()]


def http_docs(server: RunningServer) -> None:
    assert httpx.get(f"{server.endpoint}/docs").status_code == 200
    assert "/v1/chat/completions" in httpx.get(f"{server.endpoint}/openapi.json").json()["paths"]


@functools.cache
def python_launch(server: RunningServer) -> None:
    client = RESTfulClient(server.endpoint)
    model = {"model_engine": "transformers", "model_name": "qwen2.5-instruct", "model_format": "pytorch", "size_in_billions": "0_5"}
    uid = client.launch_model(model_uid="guided", **model)
    assert uid == "guided"
    client.terminate_model(model_uid=uid)
    assert "guided" not in client.list_models()


def python_chat(server: RunningServer) -> None:
    model = RESTfulClient(server.endpoint).get_model("xi-tiny")
    answer: Any = model.chat(messages=[{"role": "user", "content": "Who won the world series in 2020?"}])
    assert answer["choices"][0]["message"]["content"]


def python_list(server: RunningServer) -> None:
    assert "xi-tiny" in RESTfulClient(server.endpoint).list_models()


def python_registrations(server: RunningServer) -> None:
    found: Any = RESTfulClient(server.endpoint).list_model_registrations(model_type="LLM")
    assert "xi-tiny" in [model["model_name"] for model in found]


def openais_client(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.endpoint}/v1", api_key="not used actually") as client:
        answer = client.chat.completions.create(model="xi-tiny", messages=[{"role": "user", "content": "What is the largest animal?"}])
    assert answer.choices[0].message.content


def offline(server: RunningServer) -> None:
    """The guide's lines with xi's import; on engines that can't spread a model over devices, the size is refused in words."""
    lines = "from xi_core import LLM\nllm = LLM('xi-tiny'{})\nprint(repr(llm.generate('San Franciso is a')[0].outputs[0].text))"
    for more, status, words in (("", 0, "'"), (", engine='transformers', tensor_parallel_size=4", 1, "can't spread a model over devices")):
        done = subprocess.run(
            [sys.executable, "-c", lines.format(more)], env=server.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, words in done.stdout + done.stderr) == (status, True), done.stdout + done.stderr
