"""Every command in a log and in 80 columns: no line is wider, nothing steers a terminal, and a reader may leave."""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewright import bars, cli, streams

ROOT = Path(__file__).parents[2]
LATENCY = "--layers 28 --heads 16 --kv-heads 8 --head-dim 128 --hidden 2048 --intermediate 6144 --vocab 151936"
COMMANDS = {
    "run": "run small.yaml --profile all",
    "plan": "plan ministral-3-3b-vision-int4 --profile all",
    "init": "init weights --phone iphone-12 --phone android-4gb --force",
    "sweep": "sweep small.yaml --bits 4,8 --yes",
    "validate": "validate build/small/onnx --profile all --out phones",
    "try": "try build/small/onnx --greedy --max-tokens 8 --prompt x",
    "compare": "compare build/small/onnx build/small",
    "inspect": "inspect build/small/onnx",
    "quantize-report": "quantize-report build/small/onnx",
    "verify": "verify build/small/onnx",
    "report": "report build/small --baseline baseline.json",
    "baseline update": "baseline update build/small --file other.json",
    "baseline check": "baseline check build/small",
    "cache ls": "cache ls",
    "cache gc": "cache gc",
    "cache verify": "cache verify",
    "latency": f"latency pixel-9-with-a-long-name {LATENCY}",
    "recipes list": "recipes list",
    "profiles list": "profiles list",
    "profiles show": "profiles show android-8gb",
    "explain": "explain",
    "doctor": "doctor",
}
DOCUMENTS = {  # printed for a file or a program: as wide as it is
    "recipes show": "recipes show quickstart",
    "recipes schema": "recipes schema",
    "matrix": "matrix quickstart",
    "completion": "completion bash",
}
ELSEWHERE = (
    "adopt",
    "publish",
    "pull",
    "farm setup",
)  # need pickles, a Hub or a mirror of Debian's; their lines go through streams.write_lines too


def commands(made: argparse.ArgumentParser, name: str = "") -> Iterator[str]:
    below = [action for action in made._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for word, parser in action.choices.items():
            yield from commands(parser, f"{name} {word}".strip())
    if not below:
        yield name


@pytest.fixture(scope="module")
def place(workplace, finished, tmp_path_factory):
    """A folder with a recipe, its checkpoint and a finished run of it."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(workplace.folder / "weights", folder / "weights")
    shutil.copyfile(workplace.recipe_file, folder / "small.yaml")
    shutil.copytree(finished.folder.parent, folder / "build")
    command = [sys.executable, "-m", "edgewright", "baseline", "update", "build/small"]
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    return folder


def test_no_command_is_left_out():
    assert set(commands(cli.parser())) == {*COMMANDS, *DOCUMENTS, *ELSEWHERE}


@pytest.mark.parametrize("name", COMMANDS)
def test_in_a_log_no_line_is_wider_than_80_columns_and_nothing_steers(edgewright, place, monkeypatch, name):
    monkeypatch.chdir(place)
    monkeypatch.setenv("NO_COLOR", "1")
    for shape in ([], ["--quiet"] if name in ("run", "validate", "verify") else []):
        code, out, error = edgewright(*COMMANDS[name].split(), *shape)
        assert code in (0, 1) and "\x1b" not in out + error and "\r" not in out + error
        assert out or shape
        for line in (out + error).splitlines():
            assert len(line) <= 80, line


@pytest.mark.parametrize("name", ["", *COMMANDS, *DOCUMENTS, *ELSEWHERE])
def test_nor_is_the_help_of_any_command(edgewright, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = edgewright(*name.split(), "--help")
    assert code == 0 and "\x1b" not in out
    for line in out.splitlines():
        assert len(line) <= 80, line


@pytest.mark.parametrize("name", [*COMMANDS, *DOCUMENTS])
def test_a_reader_that_leaves_ends_every_command_quietly(place, name):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "edgewright", *{**COMMANDS, **DOCUMENTS}[name].split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr and "error" not in done.stderr and "Exception" not in done.stderr


def test_long_lines_go_on_below_with_words_whole():
    line = "  onnx: " + "word " * 30
    assert all(len(part) <= 80 for part in streams.folded(line.rstrip()))
    assert [part[:4] for part in streams.folded(line.rstrip())] == ["  on", "    ", "    "]
    path = "/a/very/long/path/" + "x" * 90
    assert path in streams.folded(f"error: see {path}")[-1]


def long_stage(progress) -> None:
    for done in range(1, 9):
        progress("calibrating", done, 16)
        time.sleep(0.05)
    time.sleep(0.3)
    progress("calibrating", 16, 16)


def test_a_log_says_now_and_then_how_much_time_is_left(monkeypatch, capsys):
    monkeypatch.setattr(bars, "_LONG_S", 0.2)
    monkeypatch.setattr(bars, "_AGAIN_S", 0.3)
    with bars.progress(shown=True) as progress:
        progress("measuring memory", 0, 1)
        long_stage(progress)
        progress("measuring memory", 1, 1)
    lines = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r"  calibrating: \d+ s so far, \d+%, about \d+ s left", line) for line in lines)
    assert any(re.fullmatch(r"  measuring memory: \d+ s so far", line) for line in lines)  # a stage without parts
    assert [line for line in lines if re.fullmatch(r"  (calibrating|measuring memory): \d\.\d s", line)] == lines[-2:]
    assert len(lines) <= 8


def test_the_name_of_a_stage_makes_room_for_its_time(monkeypatch, capsys):
    monkeypatch.setattr(bars, "_LONG_S", 0.2)
    with bars.progress(shown=True) as progress:
        progress("int8-g32-rtn (11 of 12): measuring memory while it computes " * 2, 0, 1)
        time.sleep(0.5)
        progress("int8-g32-rtn (11 of 12): measuring memory while it computes " * 2, 1, 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and all(len(line) == 80 and "…: " in line for line in lines)


def test_a_short_stage_is_one_line_and_what_was_done_before_counts_for_no_speed(monkeypatch, capsys):
    with bars.progress(shown=True) as progress:
        progress("hashing", 0, 2)
        time.sleep(0.06)
        progress("hashing", 2, 2)
    assert re.fullmatch(r"  hashing: 0\.\d s\n", capsys.readouterr().err)
    stage = bars._Stage(50, 50, 100, begun=time.monotonic() - 20)
    assert stage.left() is None  # of a download that goes on, nothing came yet
    stage.at(75, 100)
    assert stage.left() == pytest.approx(20, abs=0.5)
    assert threading.active_count() == 1 or not any("tell" in thread.name for thread in threading.enumerate())


SHOW = """
import sys
from edgewright import bars
from tests.edgewright.test_terminal import long_stage
bars._LONG_S = 0.2
with bars.progress(shown=True) as progress:
    long_stage(lambda stage, done, total: progress(f"onnx: {stage} activations of feather_hubert", done, total))
"""


def test_a_terminal_of_80_columns_shows_a_bar_with_the_time_left():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-c", SHOW], env=environment, stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
    assert child.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"onnx: calibrating activations of …\s+\S+\s+50 % about \d s left", text), text
    assert re.search(r"100 % \d\.\d s", text)
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]", text)) <= 80
