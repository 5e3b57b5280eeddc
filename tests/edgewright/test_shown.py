"""What the commands show to people: tables, bars, reasons and the folder that they stand for."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest

from artifacts import checked, ran_here
from compiler.golden import BUILT_IN
from compiler.quantize.evidence import QuantizationEvidence, TensorEvidence
from edgewright import api, bars, render, text
from edgewright.report import FailedStep, TargetReport
from recipes.load import shipped


def at_80_columns(what: object, capsys: pytest.CaptureFixture[str]) -> str:
    render.show(what)
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80
    return out


def test_at_80_columns_every_recipe_has_its_whole_name(capsys):
    found = [(name, api.load_recipe(path)) for name, path in shipped().items()]
    out = at_80_columns(render.recipes(found), capsys)
    assert {line.split()[0] for line in out.splitlines() if line.strip()} >= set(shipped())
    assert "…" not in out


def test_at_80_columns_tensors_are_told_apart(capsys):
    names = [f"model.layers.{layer}.self_attn.{m}_proj" for layer in (3, 13) for m in "qkvo"]
    tensors = tuple(
        TensorEvidence(
            slot=name,
            bits=4,
            group=32,
            symmetric=True,
            method="mlx_affine",
            parameters=1,
            bytes=1,
            snr_db=20.0,
            output_error=0.01,
        )
        for name in names
    )
    found = QuantizationEvidence(calibration=None, tensors=tensors, layers=())
    out = at_80_columns(render.quantization(found, len(tensors)), capsys)
    rows: list[str] = []
    for line in out.splitlines():
        first = line[1:].split(" ")[0]
        if first.startswith("model."):
            rows.append(first)
        elif rows and first.strip():
            rows[-1] += first
    assert rows == names and "…" not in out


def test_progress_bars_come_to_their_end(monkeypatch):
    """A stage whose last step nobody announced is over when the work is; one that an error cut short is not."""
    for fails, end in ((False, "100"), (True, "50")):
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: True)
        monkeypatch.setattr("sys.stderr", screen)
        with contextlib.suppress(ValueError), bars.progress(shown=True) as progress:
            progress("converting [b]", 1, 2)
            progress("done", 3, 3)
            if fails:
                raise ValueError
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
        assert dict(re.findall(r"(converting \[b\]|done) .*?(\d+) %", shown)) == {"converting [b]": end, "done": "100"}


def test_the_table_says_what_was_found_and_where_it_is(edgewright, ran):
    report = ran()
    code, out, _ = edgewright("run", "quickstart")
    assert code == 0
    assert "small → onnx" in out
    for words in ("prefill, exact: max |Δlogit|", "peak memory", "android-4gb", "iphone-12", "✓ fits"):
        assert words in out
    assert report.targets[0].artifact in out.replace("\n", "")
    assert f"{report.folder}/report.md" in out.replace("\n", "")
    assert out.splitlines()[-1].startswith(" small: ✓ passed in ")
    assert max(len(line) for line in out.splitlines()) <= 80
    assert all(line == line.rstrip() for line in out.splitlines())


def _with_phone_check(report: TargetReport, **changes: object) -> TargetReport:
    phone = report.phones[0]
    checks = (phone.checks[0].model_copy(update=changes), *phone.checks[1:])
    return report.model_copy(update={"phones": (phone.model_copy(update={"checks": checks}),)})


@pytest.mark.parametrize("verdict", ["tight", "does not fit", "not assessed"])
def test_what_does_not_simply_fit_comes_with_its_reason(finished, capsys, verdict):
    target = _with_phone_check(finished.report.targets[0], verdict=verdict, reason="It swaps too much.")
    render.show(render.target(target))
    out = capsys.readouterr().out
    assert verdict in out
    assert "android-4gb: It swaps too much." in out


def test_a_limit_inside_of_the_interval_is_told_beside_a_verdict_that_passed(finished, capsys):
    change = ran_here("perplexity_increase", 0.018, "change", interval=(0.009, 0.027))
    check = checked(change, "quality", "perplexity, change", 0.02, "at most")
    target = finished.report.targets[0]
    checks = (*(item for item in target.checks if item.name != check.name), check)
    render.show(render.target(target.model_copy(update={"checks": checks})))
    out = " ".join(capsys.readouterr().out.split())
    assert "perplexity, change +1.80 ± 0.90 % ≤ +2.00 % measured ✓ passed" in out
    assert "quality: The limit of perplexity, change lies inside of the 95 % interval" in out


def test_a_target_is_headed_by_what_an_app_ships_and_says_what_stood_in(edgewright, finished, capsys):
    target = finished.report.targets[0]
    render.show(render.target(target))
    out = capsys.readouterr().out
    assert f"onnx   {text.size(target.app_bytes['android'])} in an app (android, ios)" in out
    assert "emulated (android-4gb, iphone-12): this machine without a limit, memory by kind" in " ".join(out.split())
    assert "peak memory at 64 tokens" in out
    assert "in PyTorch with the same weights" in " ".join(out.split())


def test_inspect_shows_what_an_artifact_is(edgewright, finished):
    code, out, _ = edgewright("inspect", str(finished.folder / "onnx"))
    assert code == 0
    for words in ("small with target onnx alone, digest", "model.onnx.data", "rtn", "golden.safetensors"):
        assert words in out
    _, out, _ = edgewright("inspect", str(finished.folder / "onnx"), "--json")
    assert json.loads(out)["recipe"]["name"] == "small"


def test_the_two_perplexities_say_whose_they_are(edgewright, finished):
    """PyTorch's with the quantized weights in one command, the runtime's in the other, and the text of both."""
    code, out, _ = edgewright("quantize-report", str(finished.folder / "onnx"))
    assert code == 0
    assert "in PyTorch, with dequantized weights; a run's report has the perplexity of the runtime" in " ".join(
        out.split()
    )
    page = (finished.folder / "report.md").read_text()
    assert f"predicted tokens of {BUILT_IN}, up to position 64: perplexity" in page
    assert "as it runs" in page and "in PyTorch with the same weights" in page
    figures = {figure.name: figure.obtained for figure in finished.report.targets[0].figures}
    assert (figures["perplexity"], figures["perplexity_reference"]) == ("measured", "declared")


def test_verify_finds_every_change(edgewright, finished, tmp_path):
    import shutil

    folder = tmp_path / "onnx"
    shutil.copytree(finished.folder / "onnx", folder)
    code, out, _ = edgewright("verify", str(folder))
    assert code == 0 and "every digest matches" in " ".join(out.split())
    assert edgewright("verify", str(folder), "--quiet")[:2] == (0, "")
    (folder / "genai_config.json").write_text("{}")
    (folder / "extra.bin").write_text("x")
    code, out, _ = edgewright("verify", str(folder))
    assert code == 1
    assert "genai_config.json" in out and "extra.bin" in out
    code, out, _ = edgewright("verify", str(folder), "--json")
    assert code == 1
    assert {problem["path"] for problem in json.loads(out)["problems"]} == {"genai_config.json", "extra.bin"}


def test_quiet_says_which_gate_failed_and_by_how_much(edgewright, ran, monkeypatch):
    report = ran("failed")
    target = _with_phone_check(report.targets[0], value=5e8, limit=3e8, verdict="does not fit")
    check = target.checks[0].model_copy(update={"value": 0.5, "verdict": "failed"})
    phone = target.phones[0].model_copy(update={"verdict": "failed"})
    step = FailedStep(step="speed", detail="the runtime ended with SIGSEGV\nand more", stderr_tail="")
    target = target.model_copy(
        update={"checks": (check, *target.checks[1:]), "phones": (phone,), "failed_steps": (step,), "verdict": "failed"}
    )
    for arguments, found in (
        (["run", "quickstart"], report.model_copy(update={"targets": (target,)})),
        (["validate", "build/small/onnx"], target),
    ):
        monkeypatch.setattr(api, arguments[0], lambda *_, found=found, **__: found)
        code, out, err = edgewright(*arguments, "--quiet")
        assert (code, err) == (1, "")
        assert out.splitlines()[1:] == [
            "  onnx: parity: prefill, exact: max |Δlogit| 5.0e-01, limit ≤ 2.0e-04: failed",
            "  onnx: android-4gb: peak memory at 64 tokens 500 MB, limit ≤ 300 MB: does not",
            "    fit",
            "  onnx: speed: the runtime ended with SIGSEGV",
        ]
