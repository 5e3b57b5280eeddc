"""Stages of recipes side by side, in child processes and on a Ray cluster: what one process gives after another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts import read_manifest, verify
from edgewright import __version__, parallel
from edgewright.parallel import local
from edgewright.parallel.process import attended, environment
from edgewright.parallel.stages import Arguments, Order, Stage
from edgewright.report import Report, read_report
from tests.edgewright.processes import ROOT, children, parent_of, started, until

FOLDERS = ("small/quantized", "small/onnx", "eight/quantized", "eight/onnx", "eight/mlx")


@pytest.fixture(scope="module")
def recipes(workplace) -> list[str]:
    """Two recipes of one checkpoint, the second with two targets and a limit that it does not keep."""
    folder = workplace.folder / "pair"
    folder.mkdir()
    (folder / "held.txt").write_text((ROOT / "edgewright" / "text.py").read_text()[:3300])
    text = workplace.recipe_file.read_text().replace("path: weights", "path: ../weights")
    text = text.replace("validate:\n", "validate:\n  quality: {text: held.txt}\n")
    (folder / "small.yaml").write_text(text)
    text = text.replace("name: small", "name: eight").replace("bits: 4", "bits: 8")
    text = text.replace("  onnx: {}\n", "  onnx: {}\n  mlx: {}\n").replace("300MB", "1MB")
    (folder / "eight.yaml").write_text(text)
    return [str(folder / "small.yaml"), str(folder / "eight.yaml")]


@pytest.fixture(scope="module")
def sequential(recipes, tmp_path_factory) -> dict[str, Any]:
    """What one process gives."""
    out = tmp_path_factory.mktemp("sequential")
    given = Arguments(out=str(out))
    outcomes = list(parallel.one_by_one(recipes, given, lambda *_: None))
    assert [(outcome.failures, outcome.exit_code) for outcome in outcomes] == [([], 0), ([], 1)]
    return gist(out)


def gist(out: Path) -> dict[str, Any]:
    """Identities of all packages, which hold every file's digest, and what the reports say of them."""
    found: dict[str, Any] = {}
    for name in FOLDERS:
        assert verify(out / name) == []
        found[name] = read_manifest(out / name).identity
    for name in ("small", "eight"):
        report = read_report(out / name)
        found[name] = (
            report.verdict,
            report.reused,
            report.stale,
            [(item.target, item.verdict, item.kept, item.reused, item.manifest) for item in report.targets],
            [(check.name, check.verdict) for item in report.targets for phone in item.phones for check in phone.checks],
        )
    return found


def workers(out: Path, process: subprocess.Popen[str]) -> set[int]:
    """The workers of a command's own Ray that attend to a stage; an orphan's parent is somebody else's process."""
    found = set()
    for pid in children(out).values():
        above = pid
        while above > 1 and above != process.pid:
            above = parent_of(above)
        if above == process.pid != pid:
            found.add(pid)
    return found


@pytest.mark.nightly
def test_child_processes_give_what_one_process_gives(recipes, sequential, tmp_path):
    out = tmp_path / "out"
    process = started(out, *recipes, "--workers", 2, "--json")
    shown, said = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert gist(out) == sequential
    runs = json.loads(shown)["runs"]
    assert [Path(item["recipe"]).stem for item in runs] == ["small", "eight"]
    assert [item["report"]["verdict"] for item in runs] == ["passed", "failed"] and not any(i["errors"] for i in runs)
    assert Report.model_validate(runs[1]["report"]) == read_report(out / "eight")

    process = started(out, *recipes, "--workers", 2, "--quiet")  # which finds nothing changed
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "small: ✓ passed" in shown and "onnx (package and validation)" in " ".join(shown.split())

    before = (out / "eight" / "mlx").stat().st_ino
    process = started(out, recipes[1], "--workers", 2, "--fresh", "--no-validate", "--json")
    report = json.loads(process.communicate(timeout=300)[0])
    assert report["reused"] == [] and [item["reused"] for item in report["targets"]] == [[], []]
    assert (out / "eight" / "mlx").stat().st_ino != before
    assert read_manifest(out / "eight" / "mlx").identity == sequential["eight/mlx"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quickstart", "--workers", "0"], "--workers is 0; give 1 or more"),
        (["quickstart", "quickstart-int8", "--checkpoint", "weights"], "--checkpoint goes with one recipe"),
        (["quickstart", "quickstart"], "both named quickstart"),
    ],
)
def test_what_cannot_be_asked_for_is_said_at_once(edgewright, tmp_path, arguments, said):
    code, _, errors = edgewright("run", *arguments, "--out", str(tmp_path / "out"))
    assert code == 2 and said in errors and not (tmp_path / "out").exists()


def test_a_container_s_limit_is_the_memory_there_is(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert local.available_bytes(tmp_path, tmp_path) == 5000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert local.available_bytes(tmp_path, tmp_path) == 5000 * 1024
    (tmp_path / "memory.max").write_text("4000\n")
    assert local.available_bytes(tmp_path, tmp_path) == 3000


def test_a_failure_stops_nothing_else(recipes, workplace, tmp_path):
    """A recipe that cannot be built, and one whose checkpoint is not there, beside one that passes."""
    text = workplace.recipe_file.read_text()
    broken, absent = workplace.folder / "broken.yaml", workplace.folder / "absent.yaml"
    broken.write_text(text.replace("name: small", "name: broken").replace('match: "*"', "match: lm_head.nothing"))
    absent.write_text(text.replace("name: small", "name: absent").replace("path: weights", "path: nowhere"))
    process = started(tmp_path / "out", broken, absent, recipes[0], "--target", "mlx", "--workers", 2, "--no-validate")
    shown, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "broken" in errors[0] and "nowhere" in errors[1]
    assert "small: ! not validated" in shown and (tmp_path / "out" / "small" / "mlx").is_dir()
    assert not (tmp_path / "out" / "absent").exists()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly), signal.SIGKILL]
)
def test_a_signal_ends_every_child(recipes, tmp_path, number):
    """Of a kill -9 too: children see that nobody is there any more."""
    out = tmp_path / "out"
    process = started(out, *recipes, "--workers", 2)
    begun = until(lambda: children(out))
    time.sleep(1)
    process.send_signal(number)
    assert process.wait(timeout=60) == (-9 if number == signal.SIGKILL else 128 + number)
    process.communicate()
    assert set(begun.values()) == {process.pid}
    until(lambda: not children(out), 30)
    assert not list(tmp_path.glob("out/*/.*.partial-*"))


def test_a_child_that_is_killed_is_named(tmp_path):
    said = attended("{}", environment(os.environ, None), str(tmp_path), started=lambda process: process.kill())
    assert said == {"error": "its process was ended by SIGKILL", "exit_code": 137}


def stage(name: str, kind: Any, memory: int) -> Stage:
    order = Order(version=__version__, kind=kind, recipe=name, digest="", arguments=Arguments(out="build"))
    return Stage(name, order, memory)


def test_what_runs_at_once_fits_and_a_validation_runs_alone(monkeypatch):
    """Of stages that do nothing: 3 workers, 4 cores, 10 bytes."""
    running: dict[str, int] = {}
    seen: list[dict[str, int]] = []
    guard = threading.Lock()
    sizes = {f"package {at}": 1 + at * 5 % 9 for at in range(12)} | {"validation 1": 1, "validation 2": 12}

    def idle(order: str, variables: dict[str, str], *_: object) -> dict[str, Any]:
        name = json.loads(order)["recipe"]
        with guard:
            running[name] = int(variables.get("OMP_NUM_THREADS", 4))
            seen.append(dict(running))
        time.sleep(0.02)
        with guard:
            del running[name]
        return {"done": "{}"}

    monkeypatch.setattr(local, "attended", idle)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    executor = local.LocalExecutor(3, lambda *_: None, cores=4, memory_bytes=10)
    for name, size in sizes.items():
        executor.submit(stage(name, name.partition(" ")[0], size))
    ended = [executor.wait()[0].name for _ in sizes]
    executor.close()
    assert sorted(ended) == sorted(sizes)
    assert max(map(len, seen)) == 3
    for together in seen:
        alone = len(together) == 1
        assert alone or sum(sizes[name] for name in together) <= 10
        assert alone or not any(name.startswith("validation") for name in together)
        assert sum(together.values()) <= 4


@pytest.fixture
def ray_folder(monkeypatch) -> Iterator[None]:
    """Ray's own files; names of its sockets have 107 characters at the most."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.mark.nightly
def test_a_cluster_gives_what_one_process_gives_though_a_worker_dies(recipes, sequential, tmp_path, ray_folder):
    out = tmp_path / "out"
    process = started(out, *recipes, "--executor", "ray", "--workers", 2)
    os.kill(until(lambda: workers(out, process)).pop(), signal.SIGKILL)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert gist(out) == sequential


def test_a_worker_that_dies_again_is_reported_by_name(recipes, tmp_path, ray_folder):
    out = tmp_path / "out"
    process = started(out, recipes[0], "--executor", "ray")
    killed: set[int] = set()
    while process.poll() is None:
        for pid in workers(out, process) - killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    _, said = process.communicate()
    assert process.returncode == 137 and len(killed) == 2
    assert "error: small: quantize: its Ray worker died, and again when it was tried once more" in said
