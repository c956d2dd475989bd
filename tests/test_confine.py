"""What limits come to on each kind of machine, by files that look like its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from eventrouter import on
from eventrouter.errors import ConfigError
from eventrouter.functions import collect
from eventrouter.runtimes.cgroups import Groups, limits, peak
from eventrouter.runtimes.confine import Confinement, Means, check, lacking, look
from support import module

WHOLE = Means(groups={"memory": 2, "cpu": 2, "pids": 2}, mounts="root", landlock=7, seccomp=True, root=True, uids=True)


def test_limits_of_a_group() -> None:
    megabyte = 1024 * 1024
    assert limits(1, 1769) == {
        "memory": [("memory.limit_in_bytes", 1769 * megabyte), ("memory.memsw.limit_in_bytes", 1769 * megabyte)],
        "cpu": [("cpu.cfs_period_us", 20_000), ("cpu.cfs_quota_us", 20_000)],
        "pids": [("pids.max", 1024)],
    }
    assert limits(2, 3538) == {
        "memory": [("memory.max", 3538 * megabyte), ("memory.swap.max", 0), ("memory.oom.group", 1)],
        "cpu": [("cpu.max", "40000 20000")],
        "pids": [("pids.max", 1024)],
    }
    assert limits(2, 0) == {"memory": [], "cpu": [], "pids": [("pids.max", 1024)]}
    assert limits(1, 128)["cpu"][1][1] >= 1000, "the kernel takes no less"  # type: ignore[operator]


@pytest.mark.parametrize("file", ["memory.max_usage_in_bytes", "memory.peak"])
def test_the_peak_is_read_from_the_group(tmp_path: Path, file: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / file).write_text(f"{3 * 1024 * 1024 + 1}\n")
    assert peak(str(tmp_path), 7) == 4
    assert peak(str(tmp_path), 8) is None


def unified(root: Path, own: str = "/", *, inside: str = "", kind: str | None = None) -> Path:
    """A folder like the root of a machine with control groups of version 2, from which a router is seen at `own`."""
    mounted = root / "sys/fs/cgroup"
    here = mounted / own.strip("/")
    here.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mounts").write_text("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n")
    (root / "proc/self/cgroup").write_text(f"0::{own}\n")
    (here / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (here / "cgroup.procs").write_text(inside)
    if kind is not None:
        (here / "cgroup.type").write_text(kind)
    return here


def test_version_2_at_the_machines_root(tmp_path: Path) -> None:
    here = unified(tmp_path, inside="1\n2\n")
    groups = Groups("k", tmp_path)
    assert groups.versions == {"memory": 2, "cpu": 2, "pids": 2}
    assert set(groups.folders.values()) == {str(here / "eventrouter-k")}
    for folder in (here, here / "eventrouter-k"):
        assert (folder / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    groups.leave()


def test_version_2_of_a_service_makes_room_for_groups(tmp_path: Path) -> None:
    """A group that has processes can't have groups with limits: they move to one of their own."""
    here = unified(tmp_path, "/system.slice/router.service", inside=f"{os.getpid()}\n{os.getppid()}\n", kind="domain")
    groups = Groups("k", tmp_path)
    assert (here / "eventrouter-k-router/cgroup.procs").read_text() == str(os.getppid())
    assert set(groups.versions) == {"memory", "cpu", "pids"}
    groups.leave()
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/router.service/eventrouter-k-router\n")
    again = Groups("k", tmp_path)
    assert again.folders == groups.folders
    again.leave()


def test_version_2_with_processes_of_others_is_left_alone(tmp_path: Path) -> None:
    here = unified(tmp_path, "/user.slice/session", inside=f"{os.getpid()}\n1\n", kind="domain")
    groups = Groups("k", tmp_path)
    assert groups.versions == {}
    assert groups.why == f"{here} holds other processes besides"
    assert sorted(path.name for path in here.iterdir()) == ["cgroup.controllers", "cgroup.procs", "cgroup.type"]


@pytest.mark.skipif("pids" not in look().groups, reason="this machine has no control groups to write to")
def test_what_a_killed_router_left_is_removed_at_the_next_start() -> None:
    key = f"test-{os.getpid()}"
    killed = Groups(key)
    left = [Path(folder, "7") for folder in set(killed.folders.values())]
    for folder in left:
        folder.mkdir()
    killed.leave()
    Groups(key).close()
    assert not any(folder.parent.exists() for folder in left)


@pytest.mark.parametrize(
    ("missing", "asked", "options"),
    [
        ({}, Confinement(128, sandbox=True), []),
        ({"landlock": 0}, Confinement(), []),
        ({"mounts": "", "landlock": 1}, Confinement(), []),
        ({"mounts": "", "landlock": 0}, Confinement(), ['isolation="process"']),
        ({"groups": {"memory": 2, "pids": 2}}, Confinement(128), ["memory=128"]),
        ({"groups": {}}, Confinement(), []),
        ({"mounts": "", "landlock": 2, "root": False, "uids": False}, Confinement(sandbox=True), ["sandbox=True"] * 2),
        ({"seccomp": False}, Confinement(sandbox=True), ["sandbox=True"]),
        ({"uids": False, "private": "/root/app"}, Confinement(sandbox=True), ["sandbox=True"]),
        ({"uids": False, "root": False}, Confinement(sandbox=True), []),
    ],
)
def test_what_can_not_be_kept(missing: dict[str, Any], asked: Confinement, options: list[str]) -> None:
    means = Means(**{**{name: getattr(WHOLE, name) for name in WHOLE.__struct_fields__}, **missing})
    assert [option for option, _, _ in lacking(means, asked)] == options


def test_a_limit_that_can_not_be_kept_is_an_error_or_a_warning() -> None:
    @on(isolation="process", memory=256)
    def strict(payload: int) -> None: ...

    @on(isolation="process", memory=256, enforce="best-effort")
    def lenient(payload: int) -> None: ...

    means = Means(landlock=7, seccomp=True, without="it is a test")
    with pytest.raises(ConfigError, match=r'test_confine.py:\d+: strict: memory=256: .*it is a test; .* or set enforce="best-effort"'):
        check(means, collect([module(strict)]).functions.values())
    (note,) = check(means, collect([module(lenient)]).functions.values())
    assert "lenient: memory=256" in note
    assert check(WHOLE, collect([module(strict, lenient)]).functions.values()) == []


@pytest.mark.parametrize("policy", [{"memory": 128}, {"sandbox": True}])
def test_limits_are_of_processes(policy: dict[str, Any]) -> None:
    def inline(payload: int) -> None: ...

    with pytest.raises(ConfigError, match='needs isolation="process"'):
        collect([module(on(isolation="thread", **policy)(inline))])


@pytest.mark.parametrize("policy", [{"memory": 127}, {"memory": 10241}, {"enforce": "maybe"}])
def test_limits_out_of_range_name_the_line(policy: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"test_confine.py:\d+: (memory|enforce)="):
        on(isolation="process", **policy)
