"""Limits of control groups, read from fixture trees of both versions as the kernel lays them out."""

import os
from pathlib import Path

import pytest

from openautoglm.errors import ConfigError
from openautoglm.probe.cgroup import cpu_quota, memory_levels, parse_membership, parse_mounts
from openautoglm.probe.cpu import probe_cpu
from openautoglm.probe.memory import parse_huge_page_mode, parse_meminfo, probe_memory
from openautoglm.units import GIB, MIB

V1_MOUNT = "36 32 0:33 {root} /sys/fs/cgroup/{controllers} rw,relatime shared:9 - cgroup cgroup rw,{controllers}\n"
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup rw,nosuid,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


class Tree:
    """A fake / with /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write(
            "proc/meminfo", "MemTotal: 16777216 kB\nMemFree: 100 kB\nMemAvailable: 8388608 kB\nSwapTotal: 8 kB\n"
        )

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def v2(self, membership: str, mount_root: str = "/") -> None:
        self.write("proc/self/cgroup", f"0::{membership}\n")
        self.write("proc/self/mountinfo", V2_MOUNT.format(root=mount_root))

    def v1(self, membership: str, mount_root: str = "/") -> None:
        self.write("proc/self/cgroup", f"9:name=systemd:/\n5:memory:{membership}\n4:cpu,cpuacct:{membership}\n0::/\n")
        mounts = V1_MOUNT.format(root=mount_root, controllers="memory")
        self.write("proc/self/mountinfo", mounts + V1_MOUNT.format(root=mount_root, controllers="cpu,cpuacct"))


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_version_2_takes_the_least_limit_of_all_levels_above(tree):
    tree.v2("/a/b")
    tree.write("sys/fs/cgroup/a/memory.max", f"{4 * GIB}\n")
    tree.write("sys/fs/cgroup/a/memory.current", f"{1 * GIB}\n")
    tree.write("sys/fs/cgroup/a/memory.stat", f"anon 5\ninactive_file {100 * MIB}\nactive_file {28 * MIB}\n")
    tree.write("sys/fs/cgroup/a/b/memory.max", "max\n")
    tree.write("sys/fs/cgroup/a/b/memory.high", "max\n")
    memory = probe_memory(tree.root)
    assert memory.limit_bytes == 4 * GIB
    assert memory.available_bytes == 3 * GIB + 128 * MIB
    assert memory.total_bytes == 16 * GIB
    assert memory.swap_bytes == 8192


def test_version_2_high_bounds_like_max(tree):
    tree.v2("/a")
    tree.write("sys/fs/cgroup/a/memory.max", f"{4 * GIB}\n")
    tree.write("sys/fs/cgroup/a/memory.high", f"{3 * GIB}\n")
    tree.write("sys/fs/cgroup/a/memory.current", "0\n")
    assert probe_memory(tree.root).limit_bytes == 3 * GIB


def test_version_1_reads_its_own_files_and_ignores_no_limit(tree):
    tree.v1("/slice/job")
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    tree.write("sys/fs/cgroup/memory/slice/memory.limit_in_bytes", f"{2 * GIB}\n")
    tree.write("sys/fs/cgroup/memory/slice/memory.usage_in_bytes", f"{1 * GIB}\n")
    tree.write("sys/fs/cgroup/memory/slice/memory.stat", f"total_inactive_file {64 * MIB}\ninactive_file 1\n")
    tree.write("sys/fs/cgroup/memory/slice/job/memory.limit_in_bytes", f"{6 * GIB}\n")
    tree.write("sys/fs/cgroup/memory/slice/job/memory.usage_in_bytes", "0\n")
    levels = memory_levels(tree.root)
    assert [level.limit_bytes for level in levels] == [6 * GIB, 2 * GIB]
    memory = probe_memory(tree.root)
    assert memory.limit_bytes == 2 * GIB
    assert memory.available_bytes == 1 * GIB + 64 * MIB


@pytest.mark.parametrize("membership", ["/docker/abc", "/../outside", "/elsewhere"])
def test_a_container_sees_its_own_group_as_the_root_of_the_mount(tree, membership):
    tree.v1(membership, mount_root="/docker/abc")
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB}\n")
    tree.write("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{2 * GIB}\n")
    memory = probe_memory(tree.root)
    assert memory.limit_bytes == GIB
    assert memory.available_bytes == 0


def test_reclaimable_pages_never_count_beyond_what_is_used(tree):
    tree.v2("/a")
    tree.write("sys/fs/cgroup/a/memory.max", f"{GIB}\n")
    tree.write("sys/fs/cgroup/a/memory.current", f"{MIB}\n")
    tree.write("sys/fs/cgroup/a/memory.stat", f"inactive_file {5 * GIB}\n")
    assert probe_memory(tree.root).available_bytes == GIB


def test_what_this_process_holds_counts_as_available_to_it(tree):
    tree.v2("/a")
    tree.write("sys/fs/cgroup/a/memory.max", f"{GIB}\n")
    tree.write("sys/fs/cgroup/a/memory.current", f"{500 * MIB}\n")
    tree.write(f"proc/{os.getpid()}/stat", f"{os.getpid()} (python) S 1 1 1 0\n")
    rollup = "Rss: 204800 kB\nPss: 80000 kB\nPss_Anon: {anonymous} kB\nPss_File: 51200 kB\nPss_Shmem: 1024 kB\n"
    tree.write(f"proc/{os.getpid()}/smaps_rollup", rollup.format(anonymous=29 * 1024))
    assert probe_memory(tree.root).available_bytes == GIB - 470 * MIB
    tree.write(f"proc/{os.getpid()}/smaps_rollup", rollup.format(anonymous=300 * 1024))
    assert probe_memory(tree.root).available_bytes == GIB - 436 * MIB  # a host program's data stays taken
    tree.write("sys/fs/cgroup/a/memory.current", f"{20 * MIB}\n")
    assert probe_memory(tree.root).available_bytes == GIB


def test_quotas_walk_up_and_round_down_to_whole_cores(tree):
    tree.v2("/a/b")
    tree.write("sys/fs/cgroup/a/cpu.max", "150000 100000\n")
    tree.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    assert cpu_quota(tree.root) == 1.5
    assert probe_cpu(tree.root).num_cores == 1


def test_version_1_quota_of_minus_one_is_none(tree):
    tree.v1("/job")
    tree.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n")
    tree.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tree.root) is None
    tree.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "50000\n")
    assert cpu_quota(tree.root) == 0.5
    assert probe_cpu(tree.root).num_cores == 1


def test_no_control_groups_leave_the_machine(tree):
    memory = probe_memory(tree.root)
    assert (memory.limit_bytes, memory.available_bytes) == (16 * GIB, 8 * GIB)
    assert memory.transparent_huge_pages == "never"


def test_meminfo_without_a_total_is_refused(tree):
    tree.write("proc/meminfo", "garbage\n")
    with pytest.raises(ConfigError, match="MemTotal"):
        probe_memory(tree.root)


def test_parsers():
    assert parse_membership("4:cpu,cpuacct:/x:y\n0::/z\nbroken\n") == {"cpu": "/x:y", "cpuacct": "/x:y", "": "/z"}
    mounts = parse_mounts(
        V1_MOUNT.format(root="/a\\040b", controllers="memory") + "1 2 3 / /x rw - tmpfs t rw\n", Path("/")
    )
    assert [(mount.version, mount.mount_root, mount.controllers) for mount in mounts] == [(1, "/a b", ("memory",))]
    assert parse_huge_page_mode("always [madvise] never\n") == "madvise"
    assert parse_meminfo("HugePages_Total:       3\nMemTotal:  2 kB\nOdd\n") == {"HugePages_Total": 3, "MemTotal": 2048}


def test_this_machine():
    memory = probe_memory()
    assert 0 < memory.available_bytes <= memory.limit_bytes <= memory.total_bytes
