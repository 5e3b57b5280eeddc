"""Baselines: what fails a build, what does not, and what a failure is explained by."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from edgewright.ci.baseline import Baseline, Known, baseline_of, compare
from edgewright.ci.summary import summary
from recipes.delivery import Tolerances

from ..conftest import RECIPE


@pytest.fixture
def then(finished) -> Baseline:
    return baseline_of(finished.report)


def changed(then: Baseline, **figures: float) -> Baseline:
    """The same with other values of some figures of the only target."""
    target = then.targets["onnx"]
    known = {name: found.model_copy(update={"value": figures.get(name, found.value)}) for name, found in
             target.figures.items()}  # fmt: skip
    return then.model_copy(update={"targets": {"onnx": target.model_copy(update={"figures": known})}})


def worse(then: Baseline, now: Baseline, **tolerances: float) -> list[str]:
    found = compare(then, now, Tolerances(**tolerances))
    assert found.regressed == any(item.worse for item in found.differences)
    return [item.name for item in found.differences if item.worse]


def test_it_holds_every_figure_that_a_limit_could_be_set_on(then, finished):
    target, (reported,) = then.targets["onnx"], finished.report.targets
    phones = {f"{phone.profile}/peak_memory" for phone in reported.phones}
    assert {"size/android", "size/ios", *phones} <= target.figures.keys()
    assert {
        f"{check.group}/{check.name}" for check in reported.checks if check.value is not None
    } <= target.figures.keys()
    assert {figure.kind for figure in target.figures.values()} == {"size", "memory", "parity", "quality"}
    assert set(target.tensors) == {"model.embed_tokens", *(name for name in target.tensors if "layers" in name)}


def test_the_same_is_no_regression_and_has_no_reasons(then):
    found = compare(then, then, Tolerances())
    assert (found.regressed, found.differences, found.reasons) == (False, (), ())


@pytest.mark.parametrize(
    ("name", "factor", "tolerances", "fails"),
    [
        ("size/android", 1.009, {}, False),
        ("size/android", 1.011, {}, True),
        ("size/android", 1.011, {"size": 0.02}, False),
        ("size/android", 0.5, {"size": 0}, False),
        ("android-4gb/peak_memory", 1.04, {}, False),
        ("android-4gb/peak_memory", 1.06, {}, True),
        ("parity/exact_max_abs_logit", 1.4, {}, False),
        ("parity/exact_max_abs_logit", 1.6, {}, True),
    ],
)
def test_a_figure_fails_where_it_is_worse_than_its_kind_allows(then, name, factor, tolerances, fails):
    now = changed(then, **{name: then.targets["onnx"].figures[name].value * factor})
    assert worse(then, now, **tolerances) == ([name] if fails else [])


def test_shares_are_compared_in_points_and_in_their_own_direction(then):
    known = Known(
        kind="quality", label="same token", value=0.9, unit="fraction", direction="at least", verdict="passed"
    )
    target = then.targets["onnx"].model_copy(update={"figures": {"quality/top1": known}})
    then = then.model_copy(update={"targets": {"onnx": target}})
    assert worse(then, changed(then, **{"quality/top1": 0.895})) == []
    assert worse(then, changed(then, **{"quality/top1": 0.885})) == ["quality/top1"]
    assert worse(then, changed(then, **{"quality/top1": 1.0})) == []


def test_a_figure_or_a_target_that_is_gone_fails_and_a_new_one_does_not(then):
    target = then.targets["onnx"]
    fewer = {name: known for name, known in target.figures.items() if name != "size/ios"}
    now = then.model_copy(update={"targets": {"onnx": target.model_copy(update={"figures": fewer})}})
    assert worse(then, now) == ["size/ios"] and worse(now, then) == []
    assert set(worse(then, then.model_copy(update={"targets": {}}))) == set(target.figures)


def test_it_says_which_tool_rule_and_tensor_changed(then):
    target = then.targets["onnx"]
    first, second, *_ = [slot for slot in target.tensors if "layers" in slot]
    tensors = dict(target.tensors)
    tensors[first] = tensors[first].model_copy(update={"bits": 8})
    tensors[second] = tensors[second].model_copy(update={"snr_db": tensors[second].snr_db - 3})
    now = changed(then, **{"size/android": 1e9}).model_copy(update={"tools": {**then.tools, "onnxruntime": "9.9"}})
    now = now.model_copy(
        update={"targets": {"onnx": now.targets["onnx"].model_copy(update={"tensors": tensors})}, "digest": "f" * 64}
    )
    reasons = compare(then, now, Tolerances()).reasons
    assert f"tool: onnxruntime {then.tools['onnxruntime']} → 9.9" in reasons
    assert f"rule: INT4 group 32 rtn → INT8 group 32 rtn for {first}" in reasons
    assert any(line.startswith(f"tensor: {second} ") for line in reasons) and len(reasons) == 3
    shown = summary_of(then, now)
    assert "❌ Worse than the baseline" in shown and "- tool: onnxruntime" in shown


def summary_of(then: Baseline, now: Baseline) -> str:
    from tests.edgewright.ci.test_forms import small_report

    return summary(small_report(), compare(then, now, Tolerances()))


def test_the_command_writes_checks_and_fails(finished, edgewright, tmp_path):
    file, recipe = tmp_path / "baseline.json", tmp_path / "mine.yaml"
    where = str(finished.folder), "--file", str(file)
    code, out, _ = edgewright("baseline", "update", *where)
    assert code == 0 and "figures of small (onnx)" in out
    assert edgewright("baseline", "check", *where)[:2] == (0, "every figure is what it was\n")
    content = json.loads(file.read_text())
    figure = content["targets"]["onnx"]["figures"]["size/android"]
    figure["value"] /= 1.03
    file.write_text(json.dumps(content))
    code, out, _ = edgewright("baseline", "check", *where)
    assert code == 1 and "✗ onnx  size in an app (android): " in out and "(+3.0 %, 1 % allowed)" in out
    assert json.loads(edgewright("baseline", "check", *where, "--json")[1])["regressed"] is True
    recipe.write_text(RECIPE + "baseline: {size: 4%}\n")
    code, out, _ = edgewright("baseline", "check", *where, "--recipe", str(recipe))
    assert code == 0 and out.endswith("within the baseline\n")


def test_a_full_disk_leaves_the_baseline_that_was_there(finished, tmp_path):
    file = tmp_path / "baseline.json"
    file.write_text("the one before")
    limited = (
        "import resource, sys; from edgewright import cli; resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99)); "
        "cli.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", limited, "baseline", "update", str(finished.folder), "--file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"{file}: cannot be written" in done.stderr.replace("\n", " ")
    assert file.read_text() == "the one before" and os.listdir(tmp_path) == ["baseline.json"]


def test_what_is_no_file_is_written_to_as_it_is(finished, edgewright, tmp_path):
    (tmp_path / "real.json").write_text("")
    (tmp_path / "link.json").symlink_to("real.json")
    where = str(finished.folder), "--file"
    assert edgewright("baseline", "update", *where, "/dev/null")[0] == 0 and not os.path.isfile("/dev/null")
    assert edgewright("baseline", "update", *where, str(tmp_path / "link.json"))[0] == 0
    assert (tmp_path / "link.json").is_symlink() and '"recipe": "small"' in (tmp_path / "real.json").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "baseline.json"),
        ("{}", "is no baseline that this version reads (recipe: Field required)"),
        ('{"schema_version": 2}', "write it anew: edgewright baseline update"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_bad_input(finished, edgewright, tmp_path, content, message):
    file = tmp_path / "baseline.json"
    if content is not None:
        file.write_text(content)
    code, _, err = edgewright("baseline", "check", str(finished.folder), "--file", str(file))
    assert code == 2 and message in err and str(file) in err and err.count("\n") == 1


def test_what_was_never_validated_or_is_of_another_recipe_is_bad_input(finished, edgewright, tmp_path, then):
    report = finished.report.model_dump(mode="json")
    report["targets"][0] |= {"verdict": "not validated"}
    (tmp_path / "report.json").write_text(json.dumps(report))
    code, _, err = edgewright("baseline", "update", str(tmp_path), "--file", str(tmp_path / "b.json"))
    assert code == 2 and "onnx was not validated" in err and not (tmp_path / "b.json").exists()
    (tmp_path / "other.json").write_text(then.model_copy(update={"recipe": "other"}).text())
    code, _, err = edgewright("baseline", "check", str(finished.folder), "--file", str(tmp_path / "other.json"))
    assert code == 2 and "the baseline is of recipe other, and the report of small" in err
    shutil.rmtree(tmp_path)
    assert edgewright("baseline", "check", str(tmp_path))[0] == 2


def test_more_instructions_than_the_tolerance_fail(then):
    known = {
        name: Known(kind=kind, label=name, value=value, unit=unit, direction="at most", verdict=None)
        for name, kind, value, unit in (
            ("ARM64 dotprod/decode", "instructions", 3_850_846.0, "instructions"),
            ("ARM64 dotprod/exact", "parity", 1e-5, "logit"),
        )
    }
    then = then.model_copy(update={"targets": {"onnx": then.targets["onnx"].model_copy(update={"figures": known})}})
    now = changed(then, **{"ARM64 dotprod/decode": 3_850_846.0 * 1.02})
    assert worse(then, now) == ["ARM64 dotprod/decode"] and worse(then, now, instructions=0.03) == []
    assert worse(now, then) == [] and worse(then, changed(then, **{"ARM64 dotprod/decode": 3_851_000.0})) == []
    (difference,) = compare(then, now, Tolerances()).differences
    assert difference.change == "3.928 M, was 3.851 M (+2.0 %, 1 % allowed)"
