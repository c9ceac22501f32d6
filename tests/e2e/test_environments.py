"""Models in environments of their own: real packages from the index that this test's own environment came from."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import xi_core
from xi_core.cluster.environments import Environments
from xi_core.errors import Conflict, EnvironmentFailed, LaunchCancelled, LaunchError, NotFound
from xi_core.testing.server import RunningServer

OLD = "xllamacpp==2026.9.11063"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("environments"), env={"A_SECRET": "not for builds"}) as running:
        yield running


def library(pid: int | None) -> str:
    """The file of xllamacpp that a process has loaded."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return next(line.split(maxsplit=5)[5] for line in maps.splitlines() if "xllamacpp.abi3" in line)


def test_two_versions_of_one_library_at_once(server: RunningServer) -> None:
    client = server.client
    old = client.launch("xi-tiny", model_uid="old", model_engine="llama.cpp", virtual_env_packages=[OLD])
    new = client.launch("xi-tiny", model_uid="new", model_engine="llama.cpp", enable_virtual_env=True)
    plain = client.launch("xi-tiny", model_uid="plain", model_engine="llama.cpp")
    files = [library(status.replicas[0].pid) for status in (old, new, plain)]
    assert len(set(files)) == 3
    assert [str(server.home / "envs") in file for file in files] == [True, True, False]
    answers = [client.chat(uid, QUESTION, temperature=0).choices[0].message.content for uid in ("old", "new", "plain")]
    assert answers[0] == answers[1] == answers[2]
    packages = {package for environment in client.environments() for package in environment.packages}
    assert OLD in packages
    assert len([package for package in packages if package.startswith("xllamacpp")]) == 2


def test_a_second_launch_uses_it_at_once(server: RunningServer) -> None:
    stages: list[str] = []
    server.client.launch(
        "xi-tiny",
        model_uid="again",
        model_engine="llama.cpp",
        virtual_env_packages=[OLD],
        on_progress=lambda status: stages.extend(replica.stage for replica in status.replicas),
    )
    assert not any("installing" in stage for stage in stages)
    assert len(server.client.environments()) == 2


def test_an_environment_that_is_used_stays(server: RunningServer) -> None:
    client = server.client
    used = next(one for one in client.environments() if OLD in one.packages)
    with pytest.raises(Conflict, match="is used by"):
        client.remove_environment(used.name)
    for uid in ("old", "again"):
        client.terminate(uid)
    assert f"Removed: {used.name}" in server.xi("envs", "remove", used.name).stderr
    assert [one.name for one in client.environments() if OLD in one.packages] == []
    with pytest.raises(NotFound, match=f"no environment '{used.name}' here; environments: "):
        client.remove_environment(used.name)
    with pytest.raises(NotFound):
        client.remove_environment("..")


def test_what_can_not_be_solved_is_told_in_the_solver_s_words(server: RunningServer) -> None:
    with pytest.raises(EnvironmentFailed, match=r"(?s)uv says:.*msgspec==0\.1,"):
        server.client.launch("xi-tiny", model_uid="bad", model_engine="llama.cpp", virtual_env_packages=["msgspec==0.1"])
    server.client.terminate("bad")
    with pytest.raises(LaunchError, match="no-such-package-of-xi"):
        server.client.launch("xi-tiny", model_uid="bad", model_engine="llama.cpp", virtual_env_packages=["no-such-package-of-xi"])
    assert not list((server.home / "envs").glob("*.new"))
    shown = server.xi("launch", "xi-tiny", "-u", "worse", "-vp", "torch @ https://example.org/torch.whl")
    assert shown.returncode == 1
    assert "is no package with versions" in shown.stderr
    with pytest.raises(LaunchError, match="is no directory of the worker's machine"):
        server.client.launch(
            "xi-tiny", model_uid="ugly", model_engine="llama.cpp", enable_virtual_env=True, virtual_env_find_links=["/not/there"]
        )


def test_an_engine_that_is_not_installed_here_comes_with_its_environment(server: RunningServer) -> None:
    with pytest.raises(EnvironmentFailed):  # it is solved for, not refused for being absent: its own package can't be had with this
        server.client.launch(
            "xi-tiny", model_uid="mlx", model_engine="mlx", model_format="pytorch", virtual_env_packages=["mlx-lm==0.0.0.1"]
        )


# ---- the builder by itself --------------------------------------------------------------------------


def test_two_builds_of_the_same_are_one(tmp_path: Path) -> None:
    stages: list[list[str]] = [[], []]
    found: list[Path] = []

    def build(number: int) -> None:
        environments = Environments(tmp_path, os.environ)
        found.append(environments.build(["six==1.16.0"], [], [], lambda stage, _: stages[number].append(stage)))

    threads = [threading.Thread(target=build, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found[0] == found[1]
    assert sum(any("installing" in stage for stage in own) for own in stages) == 1
    (environment,) = Environments(tmp_path, os.environ).found()
    assert "six==1.16.0" in environment.packages


def test_a_build_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    def progress(stage: str, _share: float | None) -> None:
        if "installing" in stage:
            raise LaunchCancelled("nobody wants it any more")

    with pytest.raises(LaunchCancelled):
        Environments(tmp_path, os.environ).build(["six==1.17.0"], [], [], progress)
    assert [path.name for path in (tmp_path / "envs").iterdir() if not path.name.endswith(".lock")] == []


def test_building_sees_no_secrets(tmp_path: Path) -> None:
    environments = Environments(tmp_path, {"PATH": "/bin", "HF_TOKEN": "secret", "UV_INDEX_URL": "https://index", "https_proxy": "p"})
    assert environments._environ == {"PATH": "/bin", "UV_INDEX_URL": "https://index", "https_proxy": "p"}


def test_a_disk_without_room(tmp_path: Path) -> None:
    (tmp_path / "envs").write_text("a file where the folder should be")
    with pytest.raises(EnvironmentFailed, match="the environment can't be built in"):
        Environments(tmp_path, os.environ).build(["six"], [], [], lambda stage, share: None)


def test_an_environment_imports_the_worker_s_own_code(tmp_path: Path) -> None:
    python = Environments(tmp_path, os.environ).build([], [], [], lambda stage, share: None)
    code = "import xi_core, xi_plugins, msgspec; print(xi_core.__file__)"
    shown = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert Path(shown[0]).resolve() == Path(xi_core.__file__ or "").resolve()
