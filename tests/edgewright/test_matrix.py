"""Artifacts against phones: the cells, and memory over time as a picture."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from artifacts import EdgewrightError, Manifest
from artifacts.formats.interface import Component, Port
from device_farm import PhaseMemory, assess_memory, by_rule, load_profile, not_for_platform
from device_farm.host import Mapped
from device_farm.timeline import Held
from edgewright import charts, matrix, phone_files, render
from edgewright.report import MemoryRun, PhoneReport, TargetReport
from runtime_tests.contributors import Contributor, contributors
from runtime_tests.phones import play
from tests.device_farm.test_verdict import RESULT
from tests.edgewright.conftest import Finished

MB = 1_000_000


def phase(name: str, end_s: float, anonymous: int, file: int) -> PhaseMemory:
    held = {"anonymous_bytes": anonymous, "file_bytes": file, "swap_bytes": 0}
    peaks = {"peak_anonymous_bytes": anonymous, "peak_file_bytes": file, "peak_swap_bytes": 0}
    sums = {"peak_unreclaimable_bytes": anonymous, "peak_charged_bytes": anonymous + file}
    return PhaseMemory(phase=name, end_s=end_s, payload={}, **held, **peaks, **sums)


PHASES = (phase("load", 1.0, 100 * MB, 600 * MB), phase("long conversation", 9.0, 900 * MB, 700 * MB))
LINE = tuple(Held(0.5 * at, 50 * MB * at, 350 * MB, 0) for at in range(19))
FREE = dataclasses.replace(
    RESULT,
    mechanism="watchdog",
    limit_bytes=None,
    phases=PHASES,
    time_line=LINE,
    peak_unreclaimable_bytes=900 * MB,
    peak_charged_bytes=1600 * MB,
    thrash_percent=None,
    thrash_source=None,
)
RUN = MemoryRun(
    rule="android",
    mechanism="watchdog",
    limit_bytes=None,
    context_tokens=2048,
    outcome="ok",
    detail="ended",
    phases=PHASES,
    thrash_percent=None,
    page_cache_left_warm_bytes=0,
    time_line=LINE,
)


@pytest.fixture
def target() -> TargetReport:
    """One artifact on a phone that it fits, one that it does not, and one that cannot run it."""
    phones = []
    for name in ("iphone-13-pro", "android-3gb"):
        budget = load_profile(name).budget()
        check = assess_memory(by_rule(FREE, budget.rule), budget, name, "2,048 tokens")
        run = RUN.model_copy(update={"rule": budget.rule})
        largest = (Contributor("weights, mapped", 600 * MB, "measured"), Contributor("KV cache", 90 * MB, "estimated"))
        passed = check.verdict == "fits"
        phones.append(
            PhoneReport(
                profile=name,
                platform=budget.rule,
                verdict="passed" if passed else "failed",
                checks=(check,),
                figures=(),
                run=run,
                phase="long conversation",
                largest=largest,
                warnings=() if passed else ("Play asks for less",),
            )
        )
    other = not_for_platform("iphone-xr", "ios", ["android"])
    phones.append(
        PhoneReport(
            profile="iphone-xr",
            platform="ios",
            verdict="not for this platform",
            checks=(other,),
            figures=(),
            run=None,
        )
    )
    return TargetReport(
        target="onnx", artifact="x", app_bytes=None, folder_bytes=1, quantization=(), phones=tuple(phones)
    )


def test_a_cell_says_the_verdict_the_peak_the_phase_and_the_kind(target: TargetReport) -> None:
    iphone, android, other = matrix.cells([target])
    assert (iphone.memory, iphone.peak_bytes, iphone.passed) == ("fits", 900 * MB, True)
    assert (iphone.phase, iphone.kind) == ("long conversation", "anonymous")
    assert iphone.words == "fits 900 MB of 3.22 GB, long conversation"
    assert (android.memory, android.peak_bytes, android.limit_bytes) == ("not assessed", 1600 * MB, 900 * MB)
    assert android.largest == ("weights, mapped 600 MB", "KV cache 90 MB (estimated)")
    assert (other.memory, other.passed, other.peak_bytes, other.kind) == ("not for this platform", None, None, None)
    assert matrix.rows([iphone, android, other]) == (
        ["phone", "onnx"],
        [["iphone-13-pro", iphone.words], ["android-3gb", android.words], ["iphone-xr", "not for this platform"]],
    )


def test_the_matrix_is_shown_written_and_read(
    target: TargetReport, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = target.model_copy(update={"artifact": str(finished.folder / "onnx")})
    render.show(render.matrix([target]))
    shown = capsys.readouterr().out
    assert "iphone-13-pro" in shown and "✓ fits" in shown and "! not assessed" in shown
    phone_files.write_files(tmp_path / "phones", target)
    assert {file.name for file in (tmp_path / "phones").iterdir()} == {
        *("phones.json", "phones.md", "memory-onnx-1.svg", "report.html")
    }
    read = json.loads((tmp_path / "phones/phones.json").read_text())["phones"]
    assert [(cell["phone"], cell["kind"]) for cell in read][:2] == [
        ("iphone-13-pro", "anonymous"),
        ("android-3gb", "anonymous"),
    ]
    text = (tmp_path / "phones/phones.md").read_text()
    assert "| iphone-13-pro | fits 900 MB of 3.22 GB, long conversation |" in text
    assert "**Warning:** Play asks for less" in text
    assert text.count("![Memory over time](memory-onnx-1.svg)") == 1, "one run, which the phones share"
    assert "onnx on iphone-13-pro, android-3gb, without a limit, 2,048 tokens of context:" in text
    assert "small, onnx" in (tmp_path / "phones/report.html").read_text()
    with pytest.raises(EdgewrightError, match=r"phones\.json/inside: cannot be made .*choose another --out"):
        phone_files.write_files(tmp_path / "phones/phones.json/inside", target)


def test_the_target_that_a_phone_charges_least_is_named(target: TargetReport) -> None:
    """Only among those that pass, and only where there is a choice."""
    first = matrix.cells([target])[0]
    others = [dataclasses.replace(first, artifact="tvm", peak_bytes=56 * MB)]
    others += [dataclasses.replace(first, artifact="mlx", peak_bytes=1 * MB, passed=False)]
    assert matrix.least([first, *others]) == ["iphone-13-pro: tvm fits best: 56.0 MB, onnx 900 MB"]
    assert matrix.least([first, others[1]]) == []


def test_memory_over_time_is_a_picture_with_its_phases_and_limit(target: TargetReport) -> None:
    spec = charts.memory(RUN, target.phones)
    assert spec is not None
    root = ElementTree.fromstring(charts.svg(spec, "onnx & <tokens>"))
    space = "{http://www.w3.org/2000/svg}"
    assert [element.text for element in root.findall(f"{space}title")] == ["onnx & <tokens>"]
    words = [element.text for element in root.iter(f"{space}text")]
    assert {"onnx & <tokens>", "long conversation", "android-3gb", "iphone-13-pro", "1,000", "file-backed"} <= set(
        words
    )
    assert "load" not in words, "a ninth of the time has no room for its name"
    (bands,) = [element for element in root.iter(f"{space}g") if "layer_3_marks" in (element.get("class") or "")]
    assert len(bands) == 2, "what is not known of each phone's limit"
    ends = [
        one for element in root.iter(f"{space}g") if "layer_1_marks" in (element.get("class") or "") for one in element
    ]
    assert len(ends) == 2
    (style,) = root.iter(f"{space}style")
    assert "prefers-color-scheme:dark" in (style.text or "")
    assert charts.memory(RUN.model_copy(update={"time_line": LINE[:1]}), ()) is None


def test_a_limit_far_above_what_was_held_is_named_beside_the_picture(target: TargetReport) -> None:
    low = RUN.model_copy(update={"time_line": [Held(one.time_s, 9 * MB, MB, 0) for one in LINE]})
    assert charts.beyond(low, target.phones) == [("iphone-13-pro", 3_221_225_472), ("android-3gb", 900 * MB)]
    assert charts.beyond(RUN, target.phones) == []
    spec = charts.memory(low, target.phones)
    assert spec is not None and "iphone" not in json.dumps(spec)


def test_a_peak_is_divided_as_far_as_the_manifest_tells() -> None:
    """Only the states of its components are looked at."""
    cache = (Port(name="keys", dtype="float32", shape=(1, 8, 2048, 128)), Port(name="k", dtype="uint8", shape=("n",)))
    declared = SimpleNamespace(components=(Component(name="decoder", entries=(), states=cache),), target="mlx")
    manifest = cast(Manifest, declared)
    mapped = dataclasses.replace(FREE, mapped=Mapped(650 * MB, 650 * MB))
    parts = {part.name: part for part in contributors(mapped, manifest)}
    states = 8 * 2048 * 128 * 4
    assert parts["weights, mapped"].bytes == 650 * MB and parts["the runtime's files"].bytes == 50 * MB
    assert parts["copies of weights and the runtime"].bytes == 100 * MB
    assert (parts["KV cache and other states"].bytes, parts["KV cache and other states"].known) == (states, "estimated")
    assert parts["activations and the rest"].bytes == 900 * MB - 100 * MB - states
    assert contributors(dataclasses.replace(FREE, phases=()), manifest) == ()
    declared.target = "onnx"  # whose session writes its states as it loads
    parts = {part.name: part for part in contributors(mapped, manifest)}
    assert parts["copies of weights and the runtime"].bytes == 100 * MB - states
    assert parts["KV cache and other states"].bytes == states
    assert parts["activations and the rest"].bytes == 800 * MB


def test_google_plays_figure_is_a_warning_of_its_own() -> None:
    figure, warnings = play(FREE, 2_000_000_000, "android-4gb", "64 tokens")
    assert (figure.name, warnings) == ("p90_anonymous_swap", ())
    assert figure.value == 850 * MB, "of 100 to 900 MB after the load"
    (warning,) = play(FREE, 800 * MB, "android-4gb", "64 tokens")[1]
    assert warning.startswith("android-4gb: from February 2027 Google Play asks for 0.80 GB")
