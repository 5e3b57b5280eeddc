"""Validation as a whole, in real child processes: what passes, what fails and how a crash is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import EdgewrightError, read_manifest
from device_farm import load_profile
from runtime_tests import validate as validation
from runtime_tests.jobs import Job
from runtime_tests.process import child_command, child_environment
from runtime_tests.quality import QualityLimits
from runtime_tests.validate import Limits, Validation, validate
from tests.edgewright.conftest import write_tokenizer
from tests.runtime_tests.conftest import VOCAB, as_fake, compile_package, sign_again


@pytest.fixture(scope="module")
def good(package: Path) -> Validation:
    phones = [
        (load_profile("android-4gb"), Limits(decode=12.0)),
        (load_profile("iphone-12"), Limits(peak_memory=10**9)),
    ]
    return validate(package, phones, QualityLimits(max_mean_kl=1.0), allow_unassessed=True)


def named(items: Any) -> dict[str, Any]:
    return {item.name: item for item in items}


def test_a_good_package_passes(good: Validation) -> None:
    assert good.passed and good.failures == () and good.target == "onnx"
    assert {name: (check.group, check.verdict) for name, check in named(good.checks).items()} == {
        "exact_max_abs_logit": ("parity", "passed"),
        "decode_exact_max_abs_logit": ("parity", "passed"),
        "shipped_mean_kl": ("parity", "passed"),
        "decode_shipped_mean_kl": ("parity", "passed"),
        "shipped_clear_top1": ("parity", "passed"),
        "genai_greedy_equal": ("parity", "passed"),
        "perplexity_increase": ("quality", None),
        "top1_agreement": ("quality", None),
        "mean_kl": ("quality", "not assessed"),  # of random tokens
    }


def test_every_figure_says_how_it_was_obtained_and_has_a_unit(good: Validation) -> None:
    figures = named(good.figures)
    assert all(item.unit for item in good.figures)
    declared = {item.name for item in good.figures if item.obtained == "declared"}
    assert declared == {
        "golden_length",
        *("golden_positions", "golden_positions_past_original", "golden_positions_clear"),
        *("decode_positions", "decode_positions_past_original", "host_prompt_tokens"),
        *("perplexity_original", "perplexity_reference"),  # PyTorch's, not the runtime's
    }
    assert {item.obtained for item in good.figures if item.name not in declared} == {"measured"}
    assert named(good.checks)["genai_greedy_equal"].value == 1.0
    for name in ("host_load", "host_time_to_first_token", "host_decode", "perplexity", "mean_kl"):
        assert figures[name].value > 0


def test_memory_is_judged_by_each_phones_own_rule(good: Validation) -> None:
    android, iphone = good.profiles
    assert [item.verdict for item in android.checks] == ["fits", "not assessed"]
    assert [item.verdict for item in iphone.checks] == ["fits"]
    assert iphone.run.mechanism == "watchdog" and iphone.checks[0].limit == 10**9
    assert android.checks[0].value >= iphone.checks[0].value, "Android charges file pages too"
    for result in good.profiles:
        names = [phase.phase for phase in result.run.phases]
        assert names == ["load", "prefill", "steady", "long conversation"]
        assert result.phase in names and result.largest
        assert (
            result.run.cache.warm_bytes < result.run.cache.total_bytes
            and named(result.figures)["peak_anonymous_memory"].value > 0
        )


def test_a_validation_is_json(good: Validation) -> None:
    data = json.loads(json.dumps(good.to_json(), allow_nan=False))
    assert data["verdict"] == "passed" and data["profiles"][0]["checks"][0]["verdict"] == "fits"
    assert data["profiles"][0]["run"]["events"] == [] and data["figures"][0]["obtained"] == "measured"


def test_what_cannot_be_assessed_fails_unless_allowed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_check_quality", lambda *args: None)
    phone = [(load_profile("iphone-12"), Limits(time_to_first_token=4.0))]
    assert not validate(package, phone).passed
    assert validate(package, phone, allow_unassessed=True).passed


def test_a_budget_that_is_too_small_is_a_verdict_not_a_failure(package: Path) -> None:
    result = validate(package, [(load_profile("iphone-12"), Limits(peak_memory=500_000))])
    assert not result.passed and result.failures == ()
    check = result.profiles[0].checks[0]
    assert check.verdict == "does not fit" and check.value > check.limit == 500_000


def test_a_healthy_package_of_an_unsure_model_passes(tmp_path: Path) -> None:
    """All tokens weigh the same, so many are nearly as likely as the first: it tips, and no divergence shows it."""

    def flatten(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        table = tensors["model.embed_tokens.weight"].astype(np.float32)
        tensors["model.embed_tokens.weight"] = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float16)
        tensors["model.norm.weight"] *= np.float16(0.1)
        save_file(tensors, folder / "model.safetensors")

    found = validate(compile_package(tmp_path, {}, prepare=flatten))
    figures, checks = named(found.figures), named(found.checks)
    assert figures["shipped_top1"].value < 0.97 and figures["shipped_mean_kl"].value < 1e-4
    assert checks["shipped_clear_top1"].verdict == "passed"
    assert {check.name for check in found.checks if check.verdict == "failed"} <= {"genai_greedy_equal"}


def test_quality_over_random_tokens_is_not_assessed(package: Path) -> None:
    result = validate(package, quality=QualityLimits(min_top1_agreement=0.001))
    check = named(result.checks)["top1_agreement"]
    assert not result.passed and check.verdict == "not assessed" and "random tokens" in check.reason
    assert validate(package, quality=QualityLimits(min_top1_agreement=0.001), allow_unassessed=True).passed


def test_a_missed_quality_limit_fails_with_figure_and_limit(tmp_path: Path) -> None:
    package = compile_package(tmp_path, {}, prepare=lambda folder: write_tokenizer(folder, VOCAB))
    result = validate(package, quality=QualityLimits(min_top1_agreement=0.999))
    check = named(result.checks)["top1_agreement"]
    assert not result.passed and check.verdict == "failed" and check.limit == 0.999 and check.value < 0.999


def test_progress_names_what_happens(package: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    validate(package, [(load_profile("iphone-12"), Limits())], progress=lambda *event: seen.append(event))
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == [
        "verifying",
        "decoding exactly",
        "comparing exact logits",
        "decoding as shipped",
        "comparing shipped logits",
        "comparing with onnxruntime-genai",
        "measuring speed",
        "measuring memory",
    ]
    assert all(0 <= done <= total for _, done, total in seen)


def damage_truncate(package: Path) -> None:
    data = package / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])


def damage_flip(package: Path) -> None:
    data = bytearray((package / "model.onnx.data").read_bytes())
    data[5000] ^= 0x10
    (package / "model.onnx.data").write_bytes(data)


def damage_edit(package: Path) -> None:
    model = onnx.load(str(package / "model.onnx"), load_external_data=False)
    model.doc_string = "changed"
    onnx.save(model, str(package / "model.onnx"))


def damage_add(package: Path) -> None:
    (package / "sitecustomize.py").write_text("raise SystemExit")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_edit, damage_add])
def test_a_damaged_package_is_refused_and_never_executed(
    own_package: Path, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def executed(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("executed")

    monkeypatch.setattr(subprocess, "Popen", executed)
    damage(own_package)
    with pytest.raises(EdgewrightError, match="differs from its manifest"):
        validate(own_package)


def test_a_package_that_was_built_wrong_fails_its_gates(own_package: Path) -> None:
    damage_flip(own_package)
    sign_again(own_package)
    result = validate(own_package)
    check = named(result.checks)["exact_max_abs_logit"]
    assert not result.passed and check.verdict == "failed" and check.value > check.limit


def test_a_graph_that_the_runtime_refuses_is_a_failure_with_its_words(own_package: Path) -> None:
    (own_package / "model.onnx").write_bytes(b"not a graph")
    sign_again(own_package)
    result = validate(own_package, [(load_profile("iphone-12"), Limits())])
    assert not result.passed and [item.step for item in result.failures] == [
        "parity and quality",
        "speed",
        "memory",
    ]
    assert "exit code 1" in result.failures[0].detail and "rror" in result.failures[0].stderr_tail
    assert result.profiles[0].checks[0].verdict == "not assessed" and result.profiles[0].verdict == "failed"


def test_weights_outside_of_the_package_are_not_read(own_package: Path, tmp_path: Path) -> None:
    (own_package / "model.onnx.data").rename(tmp_path / "model.onnx.data")
    model = onnx.load(str(own_package / "model.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx.data"
    onnx.save(model, str(own_package / "model.onnx"))
    runtime = read_manifest(own_package).runtime
    sign_again(own_package, runtime={**runtime, "payload": None})
    result = validate(own_package)
    assert not result.passed and "escapes" in result.failures[0].stderr_tail + result.failures[1].stderr_tail


def test_a_crash_of_the_runtime_is_told_with_its_signal_and_the_end_of_stderr(fake_runtime: Path) -> None:
    as_fake(fake_runtime, "segfault")
    result = validate(fake_runtime, [(load_profile("iphone-12"), Limits())], allow_unassessed=True)
    assert not result.passed
    assert [item.step for item in result.failures] == ["parity and quality", "speed", "memory"]
    for failure in result.failures:
        assert "SIGSEGV" in failure.detail and "the end of stderr" in failure.stderr_tail
        assert len(failure.stderr_tail) < 10_000
    assert result.profiles[0].run.outcome == "crashed"


def test_logits_that_cannot_be_are_a_failure(fake_runtime: Path) -> None:
    as_fake(fake_runtime, "nothing")
    failure = validate(fake_runtime).failures[0]
    assert failure.step == "parity and quality" and "the runtime gave logits of shape" in failure.detail


def test_the_childs_stdout_is_json_whatever_a_runtime_prints(fake_runtime: Path, tmp_path: Path) -> None:
    as_fake(fake_runtime, "nothing")
    job = Job(kind="memory", artifact=fake_runtime, prompt_tokens=10, steps=3)
    ended = subprocess.run(
        child_command(job, tmp_path),
        input="\n" * 4,
        capture_output=True,
        text=True,
        env=child_environment(),
        check=True,
    )
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [event["phase"] for event in events] == ["baseline", "load", "prefill", "steady"]
    assert events[2]["tokens"] == 10 and events[3]["tokens"] == 3
    assert "hello" in ended.stderr and "native code" in ended.stderr


def test_a_child_whose_parent_is_gone_ends(package: Path, tmp_path: Path) -> None:
    command = child_command(Job(kind="memory", artifact=package), tmp_path)
    ended = subprocess.run(command, input="", capture_output=True, text=True, env=child_environment())
    assert ended.returncode == 2 and [list(json.loads(line)) for line in ended.stdout.splitlines()] == [
        ["phase", "wait"],
        ["error"],
    ]


def test_a_runtime_that_is_not_installed_is_a_missing_tool(fake_runtime: Path, tmp_path: Path) -> None:
    as_fake(fake_runtime, "nothing")
    (tmp_path / "plugins" / "fake.py").write_text("import a_runtime_that_nobody_has")
    with pytest.raises(
        EdgewrightError, match=r"needs the module a_runtime_that_nobody_has; pip install 'edgewright\[fake\]'"
    ) as caught:
        validate(fake_runtime)
    assert caught.value.exit_code == 3


def test_a_bad_golden_file_is_named(own_package: Path) -> None:
    (own_package / "golden.safetensors").unlink()
    sign_again(own_package)
    with pytest.raises(EdgewrightError, match=r"names 'golden\.safetensors', which is no file of the artifact"):
        validate(own_package)


def test_the_parent_imports_no_runtime() -> None:
    code = (
        "import sys, runtime_tests.validate; print([m for m in ('onnxruntime', 'onnx', 'torch') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=child_environment()
    )
    assert shown.stdout.strip() == "[]"


def test_the_manifest_of_the_package_lists_its_golden_vectors(package: Path) -> None:
    assert {"model.onnx", "model.onnx.data", "golden.safetensors", "genai_config.json"} <= {
        entry.path for entry in read_manifest(package).files
    }
