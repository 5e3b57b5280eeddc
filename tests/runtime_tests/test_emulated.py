"""The ARM64 tier judges answers by this machine's rules, on the CPUs of phones. Slow: an emulator runs it all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts import EdgewrightError, read_manifest, silent
from device_farm import arm64, arm64_tier
from runtime_tests.emulated import Emulated, count_on, on_cpu, require
from runtime_tests.golden import GOLDEN, read_golden
from runtime_tests.jobs import Job
from runtime_tests.parity import decode_span
from tests.runtime_tests.conftest import sign_again


def test_the_beginning_of_a_golden_text_is_its_own(package: Path) -> None:
    whole = read_golden(package / GOLDEN)
    short = whole.beginning(16)
    assert short.tokens.tolist() == whole.tokens[:1, :16].tolist() and short.length == 16
    np.testing.assert_array_equal(short.reference.top_ids, whole.reference.top_ids[:1, :16])
    assert short.reference.target_logprob.shape == (1, 15)
    assert all(row == 0 and column < 16 for row, column in short.full_index.tolist())
    assert len(short.full_index) == len(short.full_logits)
    first, stop = decode_span(short)
    assert 1 <= first < stop == 16


def test_a_target_without_a_build_for_arm64_is_refused(package: Path) -> None:
    manifest = read_manifest(package).model_copy(update={"target": "coreml"})
    with pytest.raises(
        EdgewrightError, match="coreml has no build for ARM64 Linux; validate it without --arm64 and --device"
    ):
        require(manifest, package)


@pytest.mark.nightly
def test_answers_are_right_with_every_instruction_set(package: Path) -> None:
    arm64_tier.install()
    reached, prompt, step = {}, {}, {}
    for cpu in arm64.CPUS:
        found = on_cpu(Job(kind="memory", artifact=package), read_manifest(package), cpu, silent)
        judged = [check for check in found.checks if check.verdict is not None]
        assert found.failures == [] and len(judged) == 5
        assert {check.verdict for check in judged} == {"passed"}
        assert all(check.obtained == "emulated" and arm64.CPUS[cpu] in str(check.stand_in) for check in found.checks)
        assert not any("memory" in item.name or item.unit in ("s", "bytes") for item in (*found.figures, *found.checks))
        reached[cpu] = str(found.figures[0].value)
        executed = {check.name: check.value for check in found.checks if check.unit == "instructions"}
        entries = ("decoder_prefill_64_tokens", "decoder_decode")
        assert list(executed) == [f"arm64_{cpu}_{name}_instructions" for name in entries] and found.warnings == []
        prompt[cpu], step[cpu] = (float(value or 0) for value in executed.values())
    # what the kernels are made for: each instruction set takes fewer for a prompt than the one before
    assert prompt["neon"] > prompt["dotprod"] > prompt["i8mm"] > 2 * step["i8mm"] and step["neon"] > step["dotprod"]
    assert reached["neon"] == "none" and "sdot" in reached["dotprod"] and "smmla" in reached["i8mm"]


@pytest.mark.nightly
def test_counts_repeat_to_a_thousandth(package: Path) -> None:
    arm64_tier.install()
    for cpu in arm64.CPUS:
        runs = []
        for _ in range(2):
            found = Emulated()
            count_on(Job(kind="memory", artifact=package), cpu, found, silent)
            runs.append([check.value for check in found.checks])
        np.testing.assert_allclose(runs[0], runs[1], rtol=1e-3)


def test_without_a_plugin_it_is_said_that_nothing_is_counted(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = Emulated()
    count_on(Job(kind="memory", artifact=package), "neon", found, silent)
    assert found == Emulated(
        warnings=["ARM64: instruction counts: not available: not installed: edgewright farm setup"]
    )


@pytest.mark.nightly
def test_a_wrong_weight_fails_there_too(own_package: Path) -> None:
    arm64_tier.install()
    (weights,) = own_package.glob("*.data")
    content = bytearray(weights.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 256] = bytes(value ^ 0x77 for value in content[middle : middle + 256])
    weights.write_bytes(content)
    sign_again(own_package)
    found = on_cpu(Job(kind="memory", artifact=own_package), read_manifest(own_package), "dotprod", silent)
    assert "failed" in {check.verdict for check in found.checks}
