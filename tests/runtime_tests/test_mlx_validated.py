"""An MLX package as a recipe gives it, in child processes: parity, memory, and what a report says of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_tests.jobs import Job
from runtime_tests.process import run_child
from runtime_tests.sessions.mlx import METAL_ON_CPU
from tests.runtime_tests.conftest import compile_package


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT4 package of the random checkpoint with its golden vectors. Shared: read it, never change it."""
    return compile_package(tmp_path_factory.mktemp("mlx"), {}, "mlx")


def test_a_package_proves_itself_in_a_child(proven: Path) -> None:
    """Parity with its golden vectors, and a flipped nibble found by them."""
    job = Job(kind="quality", artifact=proven, steps=4)
    ended = run_child(job, lambda event: None)
    assert ended.exit_code == 0, ended.stderr_tail
    figures = {f["name"]: f["value"] for f in ended.result["figures"]}
    checks = {check["name"]: check for check in ended.result["checks"]}
    for name in ("exact_max_abs_logit", "decode_exact_max_abs_logit"):
        assert checks[name]["verdict"] == "passed" and figures[name] < checks[name]["limit"] / 5
        assert checks[name]["obtained"] == "measured"
    for name in ("shipped_mean_kl", "perplexity_increase"):  # on a CPU nothing is Metal's
        assert (checks[name]["obtained"], checks[name]["stand_in"]) == ("emulated", METAL_ON_CPU)
    assert figures["shipped_mean_kl"] < 1e-4 and figures["shipped_top1"] > 0.99
    assert ended.result["warnings"] == []


def test_no_kernel_is_compiled_by_another_process(proven: Path) -> None:
    """MLX on a CPU would start g++ for each fused one, whose memory is in no figure."""
    from runtime_tests.validate import validate

    found = validate(proven, prompt_tokens=8, decode_tokens=2)
    assert found.passed and not any("other processes" in line for line in found.warnings)


def test_memory_phases_come_from_a_child(proven: Path) -> None:
    ended = run_child(Job(kind="memory", artifact=proven, prompt_tokens=32, steps=4), lambda event: None)
    assert ended.exit_code == 0, ended.stderr_tail
    assert [e["phase"] for e in ended.events if "phase" in e] == ["baseline", "load", "prefill", "steady"]
