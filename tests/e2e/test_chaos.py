"""Runs that are killed, with their whole process group, at stage boundaries and in between, and then go on: nothing
finished is lost, nothing half-written is used or left, and the outputs are those of a run that nobody disturbed.

`test_stages.py` kills before every single change that the store makes, over folders of a few bytes; here the pipeline
is a real one.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from artifacts import MANIFEST, read_manifest, verify
from artifacts.stages import Store
from tests.edgewright.conftest import RECIPE, write_checkpoint

ROOT = Path(__file__).parents[2]
FOLDERS = ("quantized", "mlx")
# Runs are forked from a process that has the frameworks already; orders come as lines of JSON, and the change that
# each run got to goes back. A kill is one of the whole group: of the run and of every runtime that it started.
RUNS = """
import json, os, signal, sys, threading, time
from pathlib import Path
import compiler.expectations, compiler.pipeline, edgewright.judging, edgewright.packages
from compiler.targets import load_target
from edgewright import api
from tests.artifacts.kills import kill_before

recipe, targets = sys.argv[1], sys.argv[2:]
for name in targets:
    load_target(name).tools  # imports it
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(2, 1)
        kill = lambda: os.killpg(0, signal.SIGKILL)
        if order["after"]:
            threading.Timer(order["after"], kill).start()
        counted = kill_before(order["change"], Path(order["out"]), kill)
        api.run(recipe, out=order["out"], targets=targets)
        Path(order["out"] + ".changes").write_text(str(counted()))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(code), flush=True)
"""


@dataclass
class Runs:
    """Runs of one recipe, each in a process of its own."""

    process: subprocess.Popen[str]

    def run(self, out: Path, change: int = 0, after: float = 0) -> int:
        """Killed before its n-th change below `out`, or after some seconds, or not at all: its exit code."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"out": str(out), "change": change, "after": after}) + "\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    place = tmp_path_factory.mktemp("chaos")
    write_checkpoint(place / "weights")
    (place / "small.yaml").write_text(RECIPE.partition("validate:")[0])
    command = [sys.executable, "-c", RUNS, str(place / "small.yaml"), *FOLDERS[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place)}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield Runs(process)
    assert process.stdin
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def digests(out: Path) -> dict[str, str]:
    """Every file of the outputs. Of a manifest the identity: the hour of a validation is in it."""
    found = {}
    for name in FOLDERS:
        folder = out / "small" / name
        assert verify(folder) == []
        manifest = read_manifest(folder)
        found |= {f"{name}/{file.path}": file.sha256 for file in manifest.files}
        found[name] = manifest.identity
    found["verdict"] = json.loads((out / "small" / "report.json").read_text())["verdict"]
    return found


def finished(out: Path) -> dict[str, int]:
    """The folders that are in their place, by inode; no stage puts an unfinished one there."""
    folders = [out / "small" / name for name in FOLDERS]
    return {folder.name: folder.stat().st_ino for folder in folders if (folder / MANIFEST).is_file()}


def left(out: Path) -> set[str]:
    """What lies in the recipe's folder, without the memory of digests: there is none of files that are quite new."""
    return {path.name for path in (out / "small").iterdir()} - {".digests.json"}


def disturb(runs: Runs, place: Path, kills: int) -> None:
    """Kill runs until there were enough, each time in the middle of what the one before had left to do."""
    chosen, undisturbed = random.Random(0), place / "undisturbed"
    assert runs.run(undisturbed) == 0
    wanted, names = digests(undisturbed), left(undisturbed)
    total = int((place / "undisturbed.changes").read_text())
    done, at = 0, 0
    while done < kills:
        at += 1
        out = place / str(at)
        while done < kills:
            change = chosen.randint(1, total // 3)  # several to each run: what is finished is not done again
            before = finished(out) if out.exists() else {}
            by_time = chosen.random() < 0.3
            code = runs.run(out, 0, chosen.uniform(0.05, 3)) if by_time else runs.run(out, change)
            now = finished(out) if (out / "small").is_dir() else {}
            assert before.items() <= now.items(), "a finished stage was lost"
            if code == 0:
                break
            assert code == -9
            done += 1
            assert Store(out).verify() == []
        assert runs.run(out) == 0
        assert digests(out) == wanted
        assert left(out) == names, "something half-written is left"
        assert finished(out).items() >= now.items()


def test_killed_runs_lose_and_damage_nothing(runs: Runs, tmp_path: Path) -> None:
    disturb(runs, tmp_path, 3)


@pytest.mark.nightly
def test_a_hundred_killed_runs_lose_and_damage_nothing(runs: Runs, tmp_path: Path) -> None:
    disturb(runs, tmp_path, 100)


def test_two_runs_at_once_share_one_output(tmp_path: Path) -> None:
    """The second waits for the first and finds all that it did."""
    write_checkpoint(tmp_path / "weights")
    (tmp_path / "small.yaml").write_text(RECIPE.replace("onnx: {}", "mlx: {}"))
    command = [sys.executable, "-m", "edgewright", "run", "small.yaml", "--no-validate", "--json", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    reports = [json.loads(process.communicate(timeout=300)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(len(report["targets"][0]["reused"]) for report in reports) == [0, 1]
    assert verify(tmp_path / "out" / "small" / "mlx") == [] and Store(tmp_path / "out").verify() == []
