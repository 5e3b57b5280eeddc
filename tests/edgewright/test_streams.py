"""The doors of the process: streams that are closed or full, signals, and text that would steer a terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import read_manifest
from artifacts.manifest import MANIFEST
from edgewright import cli, render
from edgewright.markdown import markdown
from edgewright.report import FailedStep
from edgewright.streams import plain
from tests.edgewright.conftest import half_written

ROOT = Path(__file__).parents[2]


def shell(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which "$@" is the command `edgewright` with its arguments."""
    command = [sys.executable, "-m", "edgewright", *arguments]
    return subprocess.run(
        ["bash", "-c", script, "bash", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("shape", [[], ["--json"]])
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ('"$@" >&-', 0),
        ('"$@" 2>&-', 0),
        ('"$@" >&- 2>&- <&-', 0),
        ('"$@" 2>/dev/full', 0),
        ('"$@" >/dev/full', 2),
        ('"$@" >/dev/full 2>/dev/full', 2),
    ],
)
def test_closed_streams_are_nobody_listening_and_full_ones_an_error(finished, script, code, shape):
    done = shell(script, "inspect", str(finished.folder / "onnx"), *shape)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "defect" not in done.stderr
    if code and "2>" not in script:
        assert done.stderr == (
            "error: stdout: cannot be written (No space left on device); give the output another place\n"
        )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["doctor"], ["recipes", "show", "quickstart"]])
def test_whatever_prints_says_when_it_cannot(arguments):
    done = shell('"$@" >/dev/full', *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: stdout: cannot be written")
    assert shell('"$@" >&-', *arguments).returncode == 0


def test_a_run_that_nobody_listens_to_ends_with_its_verdicts_code(workplace, tmp_path):
    """Its descriptors 1 and 2 are free then: what is printed must not land in a file of the artifact."""
    command = ("run", str(workplace.recipe_file), "--target", "mlx", "--out", str(tmp_path), "--no-validate")
    done = shell('"$@" >&- 2>&- <&-', *command)
    assert done.returncode == 0
    assert read_manifest(tmp_path / "small" / "mlx").verdict == "not validated"
    done = shell('"$@" 2>/dev/full', *command)
    assert done.returncode == 0 and "not validated" in done.stdout


def test_a_reader_that_leaves_is_no_error():
    done = shell('"$@" | true; exit ${PIPESTATUS[0]}', "recipes", "schema")
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


def test_an_error_is_told_on_stderr_also_when_its_json_cannot_be():
    done = shell('"$@" >/dev/full', "inspect", "nowhere", "--json")
    assert done.returncode == 2 and "nowhere: no such artifact folder" in done.stderr


@pytest.mark.parametrize("blocks", ["0", pytest.param("8", marks=pytest.mark.nightly), "300"])
def test_a_limit_on_file_sizes_is_one_message(workplace, tmp_path, blocks):
    arguments = ("run", str(workplace.recipe_file), "--out", str(tmp_path), "--no-validate")
    done = shell(f'ulimit -f {blocks}; "$@"', *arguments, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and "ulimit -f" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("small/.*.partial-*")) and not (tmp_path / "small" / "onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "RECIPE", "--out", "PATH"],
        ["run", "PATH"],
        ["run", "PATH.yaml"],
        ["run", "RECIPE", "--checkpoint", "PATH"],
        ["plan", "RECIPE", "--checkpoint", "PATH"],
        ["run", "RECIPE", "--profile", "PATH"],
        ["run", "RECIPE", "--profile", "PATH.yaml"],
        ["inspect", "PATH"],
        ["verify", "PATH"],
        ["validate", "PATH"],
        ["validate", "ARTIFACT", "--profile", "PATH"],
        ["quantize-report", "PATH"],
        ["try", "PATH"],
        ["try", "ARTIFACT", "--profile", "PATH"],
        ["try", "ARTIFACT", "--image", "PATH"],
        ["try", "ARTIFACT", "--audio", "ARTIFACT", "--out", "PATH"],
        ["compare", "PATH", "ARTIFACT"],
        ["compare", "ARTIFACT", "ARTIFACT", "--profile", "PATH"],
        ["recipes", "show", "PATH"],
        ["profiles", "show", "PATH"],
        ["profiles", "show", "PATH.yaml"],
    ],
)
@pytest.mark.parametrize("path", ["x" * 5000, "/".join(["x" * 200] * 30), "a\0b", "\udcff\udcfe", "~nosuchuser/x", ""])
def test_no_argument_is_a_defect(workplace, finished, tmp_path, monkeypatch, capsys, arguments, path):
    monkeypatch.chdir(tmp_path)
    known = {"RECIPE": str(workplace.recipe_file), "ARTIFACT": str(finished.folder / "onnx")}
    given = [known.get(word, word.replace("PATH", path)) for word in arguments]
    with pytest.raises(SystemExit) as ended:
        cli.main(given)
    errors = capsys.readouterr().err
    assert ended.value.code == 2, errors
    assert errors.startswith("error: ") and "Traceback" not in errors and len(errors) < 8000
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_folder_can_be_made_is_refused_before_any_work(workplace, capsys):
    for place in ("/proc/x", "/dev/null", "/dev/full/x"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", str(workplace.recipe_file), "--out", place, "--no-validate"])
        assert ended.value.code == 2
        assert f"error: {place}/small: no folder can be made there" in capsys.readouterr().err


def _signalled(recipe: Path, out: Path, *signals: signal.Signals) -> tuple[int, str]:
    """Start a run, send it signals while an artifact is half-written: exit code and stderr."""
    process = half_written(recipe, out)
    for number in signals:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        pytest.param([signal.SIGTERM], 143, "ended by SIGTERM; no half-written", marks=pytest.mark.nightly),
        pytest.param([signal.SIGHUP], 129, "ended by SIGHUP; no half-written", marks=pytest.mark.nightly),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGHUP], None, "ended by SIG"),
        pytest.param([signal.SIGINT], 130, "interrupted; no half-written", marks=pytest.mark.nightly),
    ],
)
def test_a_signal_that_ends_the_run_leaves_nothing_half_written(workplace, tmp_path, sent, code, words):
    found, errors = _signalled(workplace.recipe_file, tmp_path, *sent)
    assert found == code or (code is None and found in (129, 143)), errors
    assert errors.strip().splitlines()[-1].startswith(words) and "Traceback" not in errors
    assert not list(tmp_path.glob("small/.*partial*"))


def test_a_hangup_that_is_ignored_stays_ignored(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_main", lambda _: seen.append(signal.getsignal(signal.SIGHUP)) or 0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit):
            cli.main([])
        assert seen == [signal.SIG_IGN] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_during_an_import_waits_for_its_end(tmp_path):
    """Native parts of some packages abort the process when an exception comes out of an import."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.3)\n"
    )
    code = (
        "import sys, time\nfrom edgewright import cli\n"
        "def main(_):\n    import slow\n    print('imported', flush=True)\n    time.sleep(60)\n"
        "cli._main = main\n"
        "try:\n    cli.main([])\nexcept KeyboardInterrupt as ended:\n    print('raised', ended.number)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "imported\nraised 15\n", done.stderr


STEERING = "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\r\u202e\u2066\u2028end"
SHOWN = r"\x1b[2J\x1b]0;title\x07\x9b31m\x7f\r\u202e\u2066\u2028end"


def test_control_characters_are_spelled_out():
    assert plain(STEERING) == SHOWN
    assert plain("two\nlines\tand more ✓ é 日本") == "two\nlines\tand more ✓ é 日本"
    assert plain("two\nlines", lines=False) == r"two\nlines"


def _steers(text: str) -> set[str]:
    """The characters of a text that a terminal would obey."""
    return set(text) & {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x2028)} - {"\n"}


@pytest.fixture
def steering(finished, tmp_path) -> Path:
    """An artifact in whose manifest every free text steers a terminal, tries rich's markup and forges a line."""
    artifact = tmp_path / "onnx"
    shutil.copytree(finished.folder / "onnx", artifact)
    content = json.loads((artifact / MANIFEST).read_text())
    evil = STEERING + "\n✓ onnx: every digest matches [bold red]x[/] [/nothing] :smile:"
    content["recipe"]["name"] = content["family"] = content["checkpoint"]["source"] = evil
    content["created_by"] = {evil: evil}
    content["runtime"][evil] = [evil]
    content["quantization"][0]["method"] = evil
    content["figures"] = [{"name": evil, "value": evil, "unit": evil, "obtained": "measured"}]
    record = content["validations"][0]
    record["host"] = record["edgewright"] = record["limits"]["name"] = evil
    record["verdict"] = record["checks"][0]["verdict"] = "failed"
    record["checks"][0]["group"] = record["checks"][0]["name"] = record["checks"][0]["unit"] = evil
    record["failed_steps"] = [evil]
    (artifact / MANIFEST).write_text(json.dumps(content))
    return artifact


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["verify"], ["verify", "--quiet"]])
def test_nothing_in_a_manifest_reaches_the_terminal_as_it_is(steering, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, str(steering)])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert not _steers(out)
    if "--json" in arguments:
        assert json.loads(out)["family"].startswith(STEERING)
    else:
        assert "[bold red]x[/]" in out and ":smile:" in out
        assert sum(line.startswith("✓ onnx: every digest") for line in out.splitlines()) == 0


def test_nor_does_the_name_of_a_key_in_an_error(steering, capsys):
    content = json.loads((steering / MANIFEST).read_text())
    (steering / MANIFEST).write_text(json.dumps({**content, STEERING: 1}))
    with pytest.raises(SystemExit):
        cli.main(["verify", str(steering)])
    errors = capsys.readouterr().err
    assert SHOWN in errors and "\x1b" not in errors and "\x9b" not in errors


def test_nor_does_a_file_name_or_what_a_runtime_said(steering, finished, capsys):
    (steering / "\x1b[31mred [b].txt").write_text("x")
    with pytest.raises(SystemExit):
        cli.main(["verify", str(steering)])
    assert r"\x1b[31mred [b].txt" in capsys.readouterr().out
    step = {"step": "speed", "detail": STEERING, "stderr_tail": f"{STEERING}\nsecond line"}
    target = finished.report.targets[0]
    target = target.model_copy(update={"failed_steps": (FailedStep(**step),), "verdict": "failed"})
    render.show(render.target(target))
    render.show_reasons([target])
    page = markdown(finished.report.model_copy(update={"targets": (target,)}))
    for text in (capsys.readouterr().out, page):
        assert r"\x1b[2J" in text and r"\x9b31m" in text and not _steers(text)
