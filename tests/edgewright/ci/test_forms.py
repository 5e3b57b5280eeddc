"""The forms in which CI services take results: JUnit XML, a step summary, and the jobs of a matrix."""

from __future__ import annotations

import json
from xml.etree import ElementTree as xml

from artifacts import Check
from edgewright.ci.junit import junit
from edgewright.ci.summary import summary
from edgewright.report import CheckpointUsed, FailedStep, Host, PhoneReport, RecipeUsed, Report, TargetReport
from recipes.load import shipped

HOSTILE = "]]><script>\x1b[31m\x00|\ufffe"


def check(name: str, verdict: str | None, group: str = "parity", reason: str = "") -> Check:
    return Check(
        group=group, name=name, label=name.replace("_", " "), value=2e8, limit=None if verdict is None else 1e8,
        direction="at most", unit="bytes", obtained="measured", verdict=verdict, reason=reason,
    )  # fmt: skip


def small_report(*phones: PhoneReport, **changes: object) -> Report:
    target = TargetReport(
        target="onnx",
        artifact="/build/small/onnx",
        created="2026-11-22T09:30:42+00:00",
        app_bytes={"android": 4_910_000},
        folder_bytes=9_000_000,
        quantization=(),
        checks=(check("exact", "passed"), check("reported", None)),
        phones=phones,
        verdict="passed",
    ).model_copy(update=changes)
    return Report(
        verdict=target.verdict,
        created=target.created,
        recipe=RecipeUsed(name="small", digest="d" * 64, file="small.yaml"),
        checkpoint=CheckpointUsed(source="weights", revision=None),
        host=Host(system="Linux", cpu="a machine", cores=2, memory_bytes=1 << 34, python="3.11"),
        tools={"onnxruntime": "1.31"},
        targets=(target,),
        seconds=12.5,
        folder="/build/small",
    )


def phone(name: str, verdict: str, *checks: Check) -> PhoneReport:
    return PhoneReport(profile=name, platform="android", verdict=verdict, checks=checks, figures=(), run=None)


def test_junit_has_a_case_for_each_check_and_says_why_one_failed():
    report = small_report(
        phone("android-3gb", "failed", check("peak_memory", "does not fit", "android-3gb", "at prefill")),
        phone("android-4gb", "passed", check("peak_memory", "tight", "android-4gb")),
        phone("iphone-12", "not for this platform", check("decode", "not for this platform", "iphone-12")),
        verdict="failed",
        failed_steps=(FailedStep(step="speed", detail="ended with SIGSEGV", stderr_tail=HOSTILE),),
    )
    root = xml.fromstring(junit(report).encode())
    (suite,) = root
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6", "failures": "1", "errors": "1", "skipped": "2"
    }  # fmt: skip
    failed = next(case for case in suite.iter("testcase") if case.find("failure") is not None)
    assert failed.get("classname") == "small.onnx.android-3gb"
    assert failed.find("failure").get("message") == "does not fit: 200 MB (measured): at prefill"
    assert root.get("tests") == "6" and root.get("time") == "12.5"
    assert "<script>" in suite.find("testcase/error").text and "\x1b" not in junit(report)


def test_what_was_not_validated_is_skipped():
    root = xml.fromstring(junit(small_report(checks=(), verdict="not validated")).encode())
    assert [case.find("skipped").get("message") for case in root.iter("testcase")] == ["not validated"]


def test_the_summary_is_a_table_of_targets_and_phones():
    memory = check("peak_memory", "does not fit", "android-3gb", "at prefill")
    shown = summary(small_report(phone("android-3gb", "failed", memory), verdict="failed"))
    assert shown.startswith("## ❌ small: failed\n")
    assert (
        "| onnx | 4.91 MB in an app (android) | half precision | ✅ 1 passed | ❌ does not fit: 200 MB of 100 MB |"
        in shown
    )
    assert "- **onnx**: android-3gb: peak memory 200 MB, limit ≤ 100 MB: does not fit" in shown
    assert "\x1b" not in summary(small_report(warnings=(HOSTILE,)))


def test_the_command_writes_both_and_appends_to_the_summary(finished, edgewright, tmp_path):
    files = tmp_path / "junit.xml", tmp_path / "summary.md"
    for times in (1, 2):
        done = edgewright("report", str(finished.folder), "--junit", str(files[0]), "--summary", str(files[1]))
        assert done == (0, "", "")
        assert files[1].read_text().count("small: passed") == times
    assert xml.parse(files[0]).getroot().get("failures") == "0"
    assert "small → onnx" in edgewright("report", str(finished.folder))[1]
    code, _, err = edgewright("report", str(finished.folder), "--junit", str(tmp_path / "no" / "junit.xml"))
    assert code == 2 and "cannot be written" in err
    assert edgewright("report", str(finished.folder), "--junit", "")[0] == 2  # a variable that nobody set
    code, _, err = edgewright("report", str(tmp_path))
    assert code == 2 and "report.json" in err


def test_a_matrix_has_a_job_for_each_recipe_and_target(edgewright):
    code, out, _ = edgewright("matrix", "quickstart", "quickstart-four-targets")
    jobs = json.loads(out)["include"]
    assert code == 0 and [(job["recipe"], job["target"]) for job in jobs] == [
        ("quickstart", "onnx"), *(("quickstart-four-targets", name) for name in ("onnx", "coreml", "mlx", "tvm"))
    ]  # fmt: skip
    assert all(job["profiles"] == ["android-4gb", "iphone-12"] for job in jobs)
    code, out, _ = edgewright("matrix", "quickstart", "quickstart-four-targets", "--target", "tvm")
    assert [job["name"] for job in json.loads(out)["include"]] == ["quickstart-four-targets"]


def test_recipes_of_one_name_and_unknown_targets_are_bad_input(edgewright):
    code, _, err = edgewright("matrix", "quickstart", str(shipped()["quickstart"]))
    assert code == 2 and "are both named quickstart" in err
    code, _, err = edgewright("matrix", "quickstart", "--target", "coreml")
    assert code == 2 and "no recipe has the target 'coreml'" in err
