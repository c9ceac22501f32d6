"""Memory and processors, by recorded trees of `/proc` and `/sys`: a host's, and those of containers with cgroups of either version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xi_core import machine
from xi_core.cluster.host import host_info
from xi_core.machine import Memory, cpus, cpus_by_quota, fewer_than_cores, memory

MIB, GIB = 2**20, 2**30
MEMINFO = "MemTotal:       65536000 kB\nMemFree:         1000000 kB\nMemAvailable:   40960000 kB\nHugePages_Total:       0\n"
HOST = Memory(65536000 * 1024, 40960000 * 1024)
UNIFIED = "22 27 0:21 / /proc rw,relatime - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
FIRST = (
    "32 31 0:29 {0} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 {0} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "35 31 0:32 {0} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
NO_LIMIT = "9223372036854771712\n"
"""What version 1 says where nothing is limited."""


@pytest.fixture(autouse=True)
def processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 processors, all for this process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


class Tree:
    """A folder with recorded files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc", meminfo=MEMINFO)

    def write(self, folder: str, **files: str) -> None:
        """`memory_max` is the file `memory.max`: the first underscore is a dot."""
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.root / folder / name.replace("_", ".", 1)).write_text(text)

    def process(self, cgroup: str, mountinfo: str) -> None:
        self.write("proc/self", cgroup=cgroup, mountinfo=mountinfo)

    def group(self, folder: str, **files: str) -> None:
        self.write(f"sys/fs/cgroup/{folder}", **files)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def seen(tree: Tree) -> tuple[Memory, int, int | None]:
    return memory(tree.root), cpus(tree.root), cpus_by_quota(tree.root)


# ---- without limits -------------------------------------------------------------------------------


def test_a_host_without_cgroups(tree: Tree) -> None:
    assert seen(tree) == (HOST, 64, None)


def test_a_host_with_cgroups_that_limit_nothing(tree: Tree) -> None:
    tree.process("0::/user.slice/session-2.scope\n", UNIFIED)
    tree.group("user.slice", memory_max="max\n", memory_high="max\n", memory_current="90000000000\n", cpu_max="max 100000\n")
    tree.group("user.slice/session-2.scope", memory_max="max\n", memory_current="1\n", cpu_max="max 100000\n")
    assert seen(tree) == (HOST, 64, None)


def test_version_1_without_limits(tree: Tree) -> None:
    tree.process("5:cpuset:/\n4:memory:/\n1:cpu,cpuacct:/\n0::/\n", FIRST.format("/") + UNIFIED.replace("cgroup rw", "cgroup/unified rw"))
    tree.group("memory", memory_limit_in_bytes=NO_LIMIT, memory_usage_in_bytes="90000000000\n")
    tree.group("cpu,cpuacct", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    assert seen(tree) == (HOST, 64, None)


@pytest.mark.parametrize("text", ["", "max", "a lot", "-5", "0"])
def test_what_cannot_be_read_limits_nothing(tree: Tree, text: str) -> None:
    tree.process("0::/\nnonsense\n\n", f"nonsense\n{UNIFIED}31 23 0:27 / /nowhere rw - cgroup2\n")
    tree.group("", memory_max=text, memory_high=text, cpu_max=text)
    assert seen(tree) == (HOST, 64, None)


@pytest.mark.parametrize("name", ["memory.max", "memory.stat", "cpu.max"])
def test_folders_and_bytes_where_files_should_be(tree: Tree, name: str) -> None:
    tree.process("0::/\n", UNIFIED)
    tree.group("", memory_current="1")
    (tree.root / "sys/fs/cgroup" / name).mkdir()
    (tree.root / "sys/fs/cgroup/memory.high").write_bytes(b"\xff\xfe")
    assert seen(tree) == (HOST, 64, None)


def test_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 16384, "SC_PHYS_PAGES": 2**20}.__getitem__)
    assert (memory(tmp_path), cpus(tmp_path), cpus_by_quota(tmp_path)) == (Memory(16 * GIB, 16 * GIB), 10, None)
    assert fewer_than_cores(tmp_path) is None


def test_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert memory(tmp_path) == Memory(0, 0)
    tree = Tree(tmp_path)
    tree.write("proc", meminfo="")
    tree.process("0::/\n", UNIFIED)
    tree.group("", memory_max=str(GIB), memory_current=str(256 * MIB))
    assert memory(tmp_path) == Memory(GIB, 768 * MIB)


# ---- version 2 ------------------------------------------------------------------------------------


def test_docker_with_a_namespace_of_its_own(tree: Tree) -> None:
    tree.process("0::/\n", UNIFIED)
    stat = "anon 100\nfile 200\nactive_file 5\ninactive_file 104857600\n"
    tree.group("", memory_max=f"{GIB}\n", memory_current=f"{300 * MIB}\n", memory_stat=stat, cpu_max="50000 100000\n")
    assert seen(tree) == (Memory(GIB, 824 * MIB), 1, 1)


def test_limits_of_groups_above(tree: Tree) -> None:
    """A pod of 3 GiB and 2.5 processors, of which this container may have 2 GiB and all processors; the node's slice has few left."""
    pod = "kubepods.slice/kubepods-burstable.slice/pod_1.slice"
    tree.process(f"0::/{pod}/cri-1.scope\n", UNIFIED)
    tree.group("kubepods.slice", memory_max=f"{60 * GIB}", memory_current=f"{59 * GIB}", cpu_max="6000000 100000")
    tree.group(pod, memory_max=f"{3 * GIB}", memory_current=f"{GIB}", cpu_max="250000 100000")
    tree.group(f"{pod}/cri-1.scope", memory_max=f"{2 * GIB}", memory_current=f"{100 * MIB}", cpu_max="max 100000")
    assert seen(tree) == (Memory(2 * GIB, GIB), 3, 3)


def test_what_slows_down_limits_too(tree: Tree) -> None:
    tree.process("0::/a\n", UNIFIED)
    tree.group("a", memory_max=f"{4 * GIB}", memory_high=f"{3 * GIB}", memory_current=f"{5 * GIB}")
    assert memory(tree.root) == Memory(3 * GIB, 0)


@pytest.mark.parametrize("name", ["/../other", "/gone (deleted)", "/system.slice/docker-1.scope"])
def test_a_group_that_is_not_seen_has_the_limits_of_the_mount(tree: Tree, name: str) -> None:
    """A process that was moved, whose group was removed, or the host's name of a container's group."""
    tree.process(f"0::{name}\n", UNIFIED)
    tree.group("", memory_max=f"{GIB}", memory_current="0", cpu_max="200000 100000")
    (tree.root / "sys/fs/other").mkdir()
    assert seen(tree) == (Memory(GIB, GIB), 2, 2)


def test_the_mount_of_the_group_among_others(tree: Tree) -> None:
    """The folder of another container's groups, mounted first, and a name with a blank."""
    other = r"29 23 0:26 /else /mnt/the\040other rw - cgroup2 cgroup2 rw" + "\n"
    own = r"31 23 0:26 /docker/1 /mnt/my\040groups rw - cgroup2 cgroup2 rw" + "\n"
    tree.process("0::/docker/1/inner\n", other + own)
    tree.write("mnt/the other", memory_max=f"{GIB}")
    tree.write("mnt/my groups", memory_max=f"{4 * GIB}", memory_current=f"{GIB}")
    tree.write("mnt/my groups/inner", memory_max="max")
    tree.write("mnt", memory_max="4096")
    assert memory(tree.root) == Memory(4 * GIB, 3 * GIB)


# ---- version 1 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount", ["/", "/docker/1"])
def test_version_1(tree: Tree, mount: str) -> None:
    """The container's own groups, seen from the host and from within."""
    tree.process("5:cpuset:/docker/1\n4:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n", FIRST.format(mount))
    inner = "/docker/1" if mount == "/" else ""
    stat = f"inactive_file 1\nhierarchical_memory_limit {2 * GIB}\ntotal_inactive_file {100 * MIB}\n"
    tree.group(f"memory{inner}", memory_limit_in_bytes=f"{2 * GIB}\n", memory_usage_in_bytes=f"{600 * MIB}\n", memory_stat=stat)
    tree.group(f"cpu,cpuacct{inner}", cpu_cfs_quota_us="350000\n", cpu_cfs_period_us="100000\n")
    tree.group("cpuset", cpu_cfs_quota_us="1000\n", cpu_cfs_period_us="100000\n")
    assert seen(tree) == (Memory(2 * GIB, 1548 * MIB), 4, 4)


def test_version_1_tells_limits_above_the_mount(tree: Tree) -> None:
    tree.process("4:memory:/pod/1\n", FIRST.format("/pod/1"))
    tree.group("memory", memory_limit_in_bytes=NO_LIMIT, memory_usage_in_bytes="0", memory_stat=f"hierarchical_memory_limit {GIB}")
    assert memory(tree.root) == Memory(GIB, GIB)


def test_version_1_of_groups_above(tree: Tree) -> None:
    tree.process("1:cpu,cpuacct:/a/b\n", FIRST.format("/"))
    tree.group("cpu,cpuacct/a", cpu_cfs_quota_us="150000", cpu_cfs_period_us="100000")
    tree.group("cpu,cpuacct/a/b", cpu_cfs_quota_us="800000", cpu_cfs_period_us="100000")
    assert cpus(tree.root) == 2


# ---- processors -----------------------------------------------------------------------------------


def test_the_set_and_the_quota(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.process("0::/\n", UNIFIED)
    tree.group("", cpu_max="400000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert (cpus(tree.root), cpus_by_quota(tree.root)) == (3, None), "OpenMP sees the set by itself"
    assert fewer_than_cores(tree.root) == 3, "llama.cpp doesn't"
    tree.group("", cpu_max="1000 100000")
    assert (cpus(tree.root), cpus_by_quota(tree.root)) == (1, 1)


@pytest.mark.parametrize(("share", "fewer"), [("4000000", None), ("3200000", None), ("600000", 6)])
def test_fewer_than_cores(tree: Tree, share: str, fewer: int | None) -> None:
    """32 cores of two processors each: llama.cpp takes 32."""
    for number in range(64):
        tree.write(f"sys/devices/system/cpu/cpu{number}/topology")
        (tree.root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings").write_text(f"{number % 32:08x}\n")
    tree.process("0::/\n", UNIFIED)
    tree.group("", cpu_max=f"{share} 100000")
    assert fewer_than_cores(tree.root) == fewer


# ---- who asks -------------------------------------------------------------------------------------


def test_a_worker_tells_of_its_container(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.process("0::/\n", UNIFIED)
    tree.group("", memory_max=f"{GIB}", memory_current="0", cpu_max="150000 100000")
    monkeypatch.setattr("xi_core.cluster.host.memory", lambda: memory(tree.root))
    monkeypatch.setattr("xi_core.cluster.host.cpus", lambda: cpus(tree.root))
    assert (host_info([]).memory, host_info([]).cpus) == (GIB, 2)


def test_this_machine() -> None:
    assert machine.memory().total >= machine.memory().available > 0
