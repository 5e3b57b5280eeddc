"""Which mechanism is chosen, on machines that this one is not: the files of a control group faked in a folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from device_farm import available_mechanisms
from device_farm.cgroup import Counters, Group, clean_leftovers, make_group, usable_parent

V1 = {
    "cgroup.procs": "",
    "memory.limit_in_bytes": "9223372036854771712",
    "memory.usage_in_bytes": "30000000",
    "memory.max_usage_in_bytes": "30000000",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    "memory.stat": "cache 20000000\nmapped_file 12000000\nshmem 1000000\ninactive_file 15000000\nactive_file 4000000\n"
    "workingset_refault_file 17\npgmajfault 3\n",
}
V2 = {
    "cgroup.procs": "",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.current": "30000000",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
    "memory.stat": "anon 9000000\nfile 20000000\nfile_mapped 12000000\nshmem 1000000\ninactive_file 15000000\n"
    "active_file 4000000\nworkingset_refault_file 17\npgmajfault 3\n",
}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, str]]:
    """The files that a new group of a version has, as the kernel would make them; change it to break one."""
    files = {1: dict(V1), 2: dict(V2)}
    mkdir = Path.mkdir

    def make(self: Path, *arguments: object, **options: object) -> None:
        mkdir(self)
        for name, text in files[1 if "memory" in self.parts else 2].items():
            (self / name).write_text(text)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Group, "remove", lambda self: shutil.rmtree(self.folder))
    return files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Both versions mounted side by side, ours usable in both."""
    for folder in ("memory/box", "unified/user/app"):
        os.makedirs(tmp_path / folder)
    (tmp_path / "memory/box/memory.limit_in_bytes").write_text("1")
    for folder, text in (("unified", "cpu memory"), ("unified/user", "memory"), ("unified/user/app", "")):
        (tmp_path / folder / "cgroup.subtree_control").write_text(text)
    return tmp_path


OWN = "4:memory:/box\n1:name=systemd:/\n0::/user/app\n"


def test_version_2_comes_before_1_before_the_watchdog(root: Path, kernel: dict[int, dict[str, str]]) -> None:
    assert available_mechanisms(root, OWN) == ("cgroup2", "cgroup1", "watchdog")
    assert usable_parent(2, root, OWN) == root / "unified/user"
    assert usable_parent(1, root, OWN) == root / "memory/box"
    assert not list(root.rglob("edgewright-*"))


def test_version_2_needs_its_memory_controller(root: Path, kernel: dict[int, dict[str, str]]) -> None:
    for file in root.rglob("cgroup.subtree_control"):
        file.write_text("cpu io")
    assert available_mechanisms(root, OWN) == ("cgroup1", "watchdog")


def test_a_group_that_takes_no_limit_is_not_used(root: Path, kernel: dict[int, dict[str, str]]) -> None:
    del kernel[2]["memory.max"], kernel[1]["memory.limit_in_bytes"]
    assert available_mechanisms(root, OWN) == ("watchdog",)


def test_a_group_that_takes_no_process_is_not_used(
    root: Path, kernel: dict[int, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "entering", lambda self, command: ["/bin/sh", "-c", "exit 2"])
    assert available_mechanisms(root, OWN) == ("watchdog",)


@pytest.mark.parametrize("own", ["", OWN, "nonsense", "0::/../../.."])
def test_without_control_groups_the_watchdog_remains(tmp_path: Path, own: str) -> None:
    assert available_mechanisms(tmp_path / "nothing", own) == ("watchdog",)
    assert available_mechanisms(tmp_path, own) == ("watchdog",)


@pytest.mark.parametrize(
    ("version", "file", "swap"), [(1, "memory.limit_in_bytes", None), (2, "memory.max", "memory.swap.max")]
)
def test_the_limit_is_over_what_cannot_be_dropped(tmp_path: Path, version: int, file: str, swap: str | None) -> None:
    for name, text in (V1 if version == 1 else V2).items():
        (tmp_path / name).write_text(text)
    group = Group(tmp_path, version)
    # 30 MB held, of which 20 - 12 - 1 = 7 MB are page cache that nobody maps
    assert group.limit(500_000_000) == 523_000_000
    assert (tmp_path / file).read_text().startswith("523000000")
    if swap:
        assert (tmp_path / swap).read_text().startswith("0")
    assert group.counters() == Counters(file_bytes=19_000_000, refaults=17, major_faults=3)


def test_only_kills_for_the_groups_own_limit_are_its_kills(tmp_path: Path) -> None:
    for name, text in (V1 | V2).items():
        (tmp_path / name).write_text(text)
    first, second = Group(tmp_path, 1), Group(tmp_path, 2)
    assert (first.oom_kills(), second.oom_kills()) == (0, 0)
    # the machine ran out of memory: the group's process died, the group's limit was never met
    (tmp_path / "memory.oom_control").write_text("oom_kill 1\n")
    (tmp_path / "memory.events").write_text("oom 0\noom_kill 1\n")
    assert (first.oom_kills(), second.oom_kills()) == (0, 0)
    (tmp_path / "memory.limit_in_bytes").write_text("30000000")
    (tmp_path / "memory.events").write_text("oom 1\noom_kill 1\n")
    assert (first.oom_kills(), second.oom_kills()) == (1, 1)


def test_leftovers_of_dead_runs_are_removed_and_those_of_the_living_kept(tmp_path: Path) -> None:
    ours = make_group(tmp_path, 1).folder
    _, namespace, pid, start, _ = ours.name.split("-")
    dead = [
        tmp_path / f"edgewright-{namespace}-{pid}-{int(start) - 1}-0",
        tmp_path / f"edgewright-{namespace}-4194305-1-0",
    ]
    elsewhere = tmp_path / f"edgewright-{int(namespace) + 1}-4194305-1-0"
    for folder in [*dead, elsewhere]:
        folder.mkdir()
    assert sorted(clean_leftovers(tmp_path, 1)) == sorted(dead)
    assert sorted(tmp_path.iterdir()) == sorted([ours, elsewhere])
