"""Two runs in other folders, with another order of Python's sets and another number of threads, give the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.manifest import sha256_file
from tests.edgewright.conftest import write_checkpoint

RECIPE = """\
name: small
checkpoint: {path: weights}
quantize:
  rules:
    - {match: model.embed_tokens, bits: 8}
    - {match: "*", bits: 4, method: gptq}
  calibration: {text: stdlib-python, tokens: 2048}
context: {max_tokens: 64}
targets:
"""
TARGETS = {
    "onnx": "{}",
    "coreml": "{}",
    "mlx": "{}",
    "tvm": "{triples: [aarch64-linux-android24, arm64-apple-ios16.0], features: [i8mm]}",
}


def built(workplace: Path, out: Path, seed: str, threads: str) -> dict[str, str]:
    """Digests of every file of a run's quantized weights and packages, manifests and golden vectors among them."""
    command = [sys.executable, "-m", "edgewright", "run", "small.yaml", "--no-validate", "--quiet", "--out", str(out)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads, "PYTHONPATH": root}
    environment["TMPDIR"] = str(out.parent)
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    folders = [folder for folder in (out / "small").iterdir() if folder.name in ("quantized", *TARGETS)]
    return {
        path.relative_to(out).as_posix(): sha256_file(path)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.nightly
def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    """Every run holds the weights of all four targets to what was recorded (`test_payloads.py`)."""
    write_checkpoint(tmp_path / "weights")
    (tmp_path / "small.yaml").write_text(RECIPE + "".join(f"  {name}: {TARGETS[name]}\n" for name in TARGETS))
    (tmp_path / "a").mkdir()
    (tmp_path / "somewhere-else").mkdir()
    first = built(tmp_path, tmp_path / "a" / "out", "1", "1")
    second = built(tmp_path, tmp_path / "somewhere-else" / "build", "2", "2")
    assert {"quantized", *TARGETS} <= {name.split("/")[1] for name in first}
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
