"""vLLM itself, shared by two workers of this machine by its own multiprocessing. `make test-engine-vllm` runs this, in minutes.

Each start of vLLM takes half a minute, so the tests of a class go on with the launch that the one before has left.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from xi_core.api.control import LaunchSpec, ModelStatus
from xi_core.client import Client
from xi_core.errors import LaunchError, UnknownOption, XiError
from xi_core.testing.cluster import LocalCluster, pids, rank
from xi_core.testing.waiting import wait_until

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-engine-vllm` builds an environment for it", allow_module_level=True)

pytestmark = [pytest.mark.engine("vllm"), pytest.mark.slow, pytest.mark.timeout(600)]

START = 240.0
"""Longest time for a start of vLLM on a busy machine, in seconds."""
HANG = 8.0
NOTICED = 30.0 + 3 * HANG
"""An idle engine is asked for a token every 30 s; the rest is HANG, and room for a busy machine."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "XI_HANG_TIMEOUT": str(HANG), "XI_LAUNCH_TIMEOUT": str(START), "XI_GRACE": "20"}
    with LocalCluster(tmp_path_factory.mktemp("cluster"), env=settings) as made:
        made.client = Client(made.client.endpoint, timeout=START)
        yield made
    assert not made.ports_held()


def spec(**options: Any) -> LaunchSpec:
    return LaunchSpec(
        model_name="xi-tiny", model_uid="tiny", model_engine="vllm", n_worker=2, n_gpu=None, options={"dtype": "float32", **options}
    )


def launch(cluster: LocalCluster, *options: str) -> None:
    """As a user does, by the command; it waits until the model is READY."""
    command = [str(Path(sys.executable).with_name("xi")), "launch", "xi-tiny", "-u", "tiny", "-en", "vllm", "--n-worker", "2", *options]
    environment = {**os.environ, "XI_ENDPOINT": cluster.client.endpoint, "XI_HOME": str(cluster.home("cli"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def family(status: ModelStatus, number: int) -> list[psutil.Process]:
    """The replica's process of a rank and all below it."""
    top = psutil.Process(rank(status, number).pid)
    return [top, *top.children(recursive=True)]


def everything(status: ModelStatus) -> list[psutil.Process]:
    return family(status, 0) + family(status, 1)


def named(processes: list[psutil.Process], *words: str) -> psutil.Process:
    """The first whose command line has one of the words; vLLM names its processes by it."""
    return next(one for one in processes if any(word in " ".join(one.cmdline()) for word in words))


def ended(cluster: LocalCluster, processes: list[psutil.Process]) -> None:
    """Terminated: none of its processes is left. Killed ones may take a moment."""
    wait_until(lambda: gone(processes) and not cluster.replicas("tiny"), 5.0, "the end of all that was terminated")


def gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def check_answers(cluster: LocalCluster, expected: dict[str, Any], count: int = 5) -> None:
    for fact in expected["chat"][:count]:
        asked = [{"role": "user", "content": fact["prompt"]}]
        whole = cluster.client.chat("tiny", asked, temperature=0)
        assert whole.choices[0].message.content == fact["answer"]
        streamed = list(cluster.client.chat("tiny", asked, temperature=0, stream=True))
        assert "".join(delta.text for delta in streamed) == fact["answer"]
        assert len(streamed) > 1


def check_relaunched(cluster: LocalCluster, before: ModelStatus, processes: list[psutil.Process], expected: dict[str, Any]) -> ModelStatus:
    """The whole replica has ended on both workers and was started again as one."""
    wait_until(lambda: gone(processes), NOTICED, f"the end of {[one for one in processes if one.is_running()]}")
    after = cluster.wait_ready("tiny", unlike=pids(before), timeout=START)
    assert after.replicas[0].restarts == before.replicas[0].restarts + 1
    check_answers(cluster, expected, 2)
    return after


def log(cluster: LocalCluster, status: ModelStatus, number: int) -> str:
    name = "tiny-0.log" if number == 0 else f"tiny-0.rank{number}.log"
    return (cluster.home(rank(status, number).worker) / "logs" / name).read_text()


# ---- asked for wrongly ------------------------------------------------------------------------------


def test_sizes_that_do_not_come_to_the_workers_are_refused(shared: LocalCluster) -> None:
    with pytest.raises(
        LaunchError, match=r"tensor_parallel_size 2 × pipeline_parallel_size 2 is 4, and n_worker 2 × a CPU each is 2"
    ) as why:
        shared.client.start(spec(tp=2, pp=2))
    assert why.value.param == "n_worker"
    assert not shared.replicas("tiny")


def test_option_that_vllm_does_not_know_ends_the_launch_at_once(shared: LocalCluster) -> None:
    with pytest.raises(UnknownOption, match="did you mean --max-model-len"):
        shared.client.launch(spec(max_model_lenn=64))
    shared.wait_ended("tiny")
    assert shared.client.model("tiny").replicas[0].restarts == 0
    shared.client.terminate("tiny")


# ---- tensor parallel --------------------------------------------------------------------------------


class TestTensorParallel:
    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls, shared: LocalCluster) -> Iterator[LocalCluster]:
        launch(shared, "--dtype", "float32", "--enforce-eager")
        yield shared
        left = everything(shared.client.model("tiny"))
        shared.client.terminate("tiny")
        ended(shared, left)

    def test_ready_and_right_answers(self, cluster: LocalCluster, expected: dict[str, Any]) -> None:
        status = cluster.client.model("tiny")
        ranks = status.replicas[0].ranks
        assert [(one.rank, one.state) for one in ranks] == [(0, "READY"), (1, "READY")]
        assert {one.worker for one in ranks} == {"w1", "w2"}
        for number in (0, 1):
            assert named(family(status, number), f"Worker_TP{number}")
            assert f"world_size=2 rank={number} " in log(cluster, status, number)
        check_answers(cluster, expected, 20)

    @pytest.mark.parametrize("number", [0, 1])
    def test_killed_rank(self, cluster: LocalCluster, expected: dict[str, Any], number: int) -> None:
        before = cluster.client.model("tiny")
        processes = everything(before)
        os.kill(rank(before, number).pid or 0, signal.SIGKILL)
        check_relaunched(cluster, before, processes, expected)

    def test_killed_headless_parent_leaves_no_orphan(self, cluster: LocalCluster, expected: dict[str, Any]) -> None:
        before = cluster.client.model("tiny")
        processes = everything(before)
        named(processes, "headless.py").kill()
        check_relaunched(cluster, before, processes, expected)

    def test_stopped_headless_rank_is_noticed_though_nobody_asks(self, cluster: LocalCluster, expected: dict[str, Any]) -> None:
        """Its replica's process goes on telling that it lives; the head's next token, a probe's, doesn't come."""
        before = cluster.client.model("tiny")
        processes = everything(before)
        for process in family(before, 1)[1:]:
            process.suspend()
        check_relaunched(cluster, before, processes, expected)
        assert "tiny-0 made no progress and was killed: no step for" in cluster.log(rank(before, 0).worker)


# ---- pipeline parallel ------------------------------------------------------------------------------


class TestPipelineParallel:
    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls, shared: LocalCluster) -> Iterator[LocalCluster]:
        launch(shared, "--dtype", "float32", "--pipeline-parallel-size", "2")
        yield shared
        if any(model.id == "tiny" for model in shared.client.models()):
            shared.client.terminate("tiny")

    def test_ready_and_right_answers(self, cluster: LocalCluster, expected: dict[str, Any]) -> None:
        status = cluster.client.model("tiny")
        assert {one.worker for one in status.replicas[0].ranks} == {"w1", "w2"}
        for number in (0, 1):
            assert named(family(status, number), f"Worker_PP{number}")
        check_answers(cluster, expected, 20)

    @pytest.mark.parametrize("number", [0, 1])
    def test_killed_stage(self, cluster: LocalCluster, expected: dict[str, Any], number: int) -> None:
        """vLLM's own process that computes, not the replica's."""
        before = cluster.client.model("tiny")
        processes = everything(before)
        named(family(before, number), "Worker_PP").kill()
        check_relaunched(cluster, before, processes, expected)

    def test_terminated_while_it_answers(self, cluster: LocalCluster) -> None:
        """The answer is finished, for the other stage goes on until rank 0 has done its work; then nothing is left."""
        processes = everything(cluster.client.model("tiny"))
        asked = [{"role": "user", "content": "Hello!"}]
        deltas = cluster.client.chat("tiny", asked, stream=True, temperature=0, max_tokens=200, ignore_eos=True)
        pieces = [next(deltas)]
        ending = threading.Thread(target=cluster.client.terminate, args=("tiny",))
        ending.start()
        pieces += deltas
        ending.join(60)
        assert pieces[-1].finish_reason == "length"
        ended(cluster, processes)
        with pytest.raises(XiError):
            cluster.client.chat("tiny", asked)
