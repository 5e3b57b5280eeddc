"""`edgewright try` on the four targets of the quickstart: at a terminal, through pipes, and under a limit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from artifacts import read_manifest, require_intact
from edgewright import api, cli
from edgewright.trial import Trial
from runtime_tests.chat import read_template
from runtime_tests.drivers.text import Asked, Decoder, component_of
from runtime_tests.sessions import make_session
from tests.compiler.conftest import building_here

ROOT = Path(__file__).parents[2]
TARGETS = ("onnx", "tvm", "mlx", "coreml")
PROMPT = "def add(a, b):"
GREEDY = {"temperature": 0.0, "top_p": 1.0, "seed": None}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart of all targets, TVM's for one kind of phones and the best for this machine, not validated."""
    out = tmp_path_factory.mktemp("out")
    recipe = api.load_recipe("quickstart-four-targets")
    tvm = recipe.targets["tvm"].model_copy(update={"triples": ("arm64-apple-ios16.0",)})
    recipe = recipe.model_copy(update={"targets": {**recipe.targets, "tvm": tvm}})
    with building_here(0):
        report = api.run(recipe, out=out, validate=False)
    return Path(report.folder)


def tried(*arguments: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Lines of stderr that go on below are put together again."""
    command = [sys.executable, "-m", "edgewright", "try", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, input=given, env={**os.environ, **more}, capture_output=True, text=True, timeout=300
    )
    done.stderr = done.stderr.replace("\n  ", " ")
    return done


@pytest.mark.parametrize("target", TARGETS)
def test_the_greedy_answer_is_the_runners(four: Path, target: str) -> None:
    done = tried(str(four), "--target", target, "--greedy", "--max-tokens", "12", "--prompt", PROMPT)
    assert done.returncode == 0, done.stderr
    artifact = four / target
    manifest = require_intact(artifact)
    session = make_session(artifact, manifest)
    session.load()
    decoder = Decoder(session, component_of(artifact, manifest), 1024)
    asked, template = Asked(decoder, artifact, manifest), read_template(artifact)
    assert template is not None
    ids = asked.encode(template.render([{"role": "user", "content": PROMPT}]))
    said = decoder.greedy(np.array(ids, np.int64), 12)
    assert not asked.ends & set(said), "the runner's text would go on"
    assert done.stdout.rstrip("\n") == asked.words(said).rstrip("\n")
    memory = "MB anonymous" in done.stderr
    assert "12 tokens" in done.stderr and memory == (target != "coreml"), "an executor's memory is no phone's"


def test_the_process_of_onnxruntime_loads_neither_torch_nor_transformers(four: Path) -> None:
    with Trial(four / "onnx", read_manifest(four / "onnx"), GREEDY, None) as trial:
        trial.loaded()
        mapped = Path(f"/proc/{child_of(os.getpid())}/maps").read_text()
    assert "onnxruntime" in mapped and "libtorch" not in mapped and "tokenizers" in mapped


def test_the_first_that_runs_here_is_taken(four: Path, tmp_path: Path) -> None:
    broken = tmp_path / "onnxruntime"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ModuleNotFoundError('gone', name='onnxruntime')")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = tried(str(four), "--greedy", "--max-tokens", "2", given=f"{PROMPT}\n", **environment)
    assert done.returncode == 0 and done.stdout, done.stderr
    assert "onnx does not run here" in done.stderr and "→ tvm (also here: --target onnx, mlx, coreml)" in done.stderr
    done = tried(str(four), "--target", "onnx", "--prompt", "x", **environment)
    assert done.returncode == 3 and done.stderr.startswith("error: ") and "pip install" in done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_under_a_limit_that_is_too_small_it_ends_with_the_verdict(four: Path, target: str, tmp_path: Path) -> None:
    limit = profile(tmp_path, 7_000_000)
    done = tried(str(four), "--target", target, "--prompt", PROMPT, "--profile", limit)
    assert done.returncode == 1 and done.stdout == ""
    kind = r"modelled as" if target == "coreml" else r"killed by the watchdog at .* MB of anonymous and swapped memory "
    where = "" if target == "coreml" else "(after the phase '(load|prompt)'|before its first phase ended)"
    assert re.fullmatch(f"tiny: does not fit\\..*{kind}.*{where}.*\n", done.stderr), done.stderr


def test_a_conversation_dies_where_it_outgrows_the_phone(four: Path, tmp_path: Path) -> None:
    """onnxruntime's buffers grow with a prompt; what was answered until then was answered."""
    limit, long = profile(tmp_path, 22_000_000), "word " * 480
    done = tried(str(four / "onnx"), "--greedy", "--max-tokens", "3", "--profile", limit, given=f"x\n{long}\nmore\n")
    assert done.returncode == 1 and done.stdout and done.stderr.count("3 tokens") == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tiny: does not fit. It needs more than the limit of 22 MB: killed by the watchdog at")
    assert last.endswith("MB of anonymous and swapped memory after the phase 'answer'.")


def test_under_a_limit_that_is_large_enough_it_says_that_it_fits(four: Path) -> None:
    done = tried(str(four), "--prompt", PROMPT, "--profile", "iphone-12", "--max-tokens", "4")
    assert done.returncode == 0 and "iphone-12: fits. Its footprint peaks at" in done.stderr
    done = tried(str(four), "--target", "mlx", "--prompt", PROMPT, "--profile", "android-4gb")
    assert done.returncode == 2 and "android-4gb: This package runs on ios alone" in done.stderr


def profile(folder: Path, limit: int) -> str:
    text = subprocess.run(
        [sys.executable, "-m", "edgewright", "profiles", "show", "iphone-12"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    path = folder / "tiny.yaml"
    path.write_text(text.replace("name: iphone-12", "name: tiny").replace("value: 2348000000", f"value: {limit}"))
    return str(path)


def test_through_pipes_it_is_plain_text_and_turns_go_on(four: Path) -> None:
    done = tried(str(four), "--greedy", "--max-tokens", "3", given=f"{PROMPT}\n\nand\n/clear\n{PROMPT}\n/exit\nno\n")
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr and "> " not in done.stdout
    figures = [line for line in done.stderr.splitlines() if "3 tokens" in line]
    assert len(figures) == 3 and "of them held" in figures[1] and "held" not in figures[0] + figures[2]
    again = tried(str(four), "--seed", "5", "--max-tokens", "20", "--prompt", PROMPT)
    assert again.stdout == tried(str(four), "--seed", "5", "--max-tokens", "20", "--prompt", PROMPT).stdout


def test_a_reader_that_leaves_ends_it_quietly(four: Path) -> None:
    script = '"$@" | head -c 5; exit ${PIPESTATUS[0]}'
    command = [sys.executable, "-m", "edgewright", "try", str(four), "--greedy", "--max-tokens", "900", "--prompt", "x"]
    done = subprocess.run(["bash", "-c", script, "bash", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 141 and len(done.stdout) == 5 and done.stderr == ""


def test_a_context_that_is_full_is_a_sentence(four: Path) -> None:
    long = "word " * 600
    done = tried(str(four), "--prompt", long)
    assert done.returncode == 2 and done.stdout == ""
    assert re.match(r"error: the context of 1,024 tokens is full: with this the conversation has \d", done.stderr)
    done = tried(str(four), "--max-tokens", "2", given=f"{long}\nx\n")
    assert done.returncode == 0 and "is full" in done.stderr and "2 tokens" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such artifact folder"),
        (["quickstart"], "`edgewright run quickstart` builds it, then talk to it by `edgewright try build/quickstart`"),
        (["ROOT"], "holds no artifact"),
        (["FOUR/quantized"], "takes arrays, no words"),
        (["FOUR", "--target", "onxx"], "has no 'onxx'; it has coreml, mlx, onnx, tvm"),
        (["FOUR", "--image", "ROOT/README.md", "--prompt", "x"], "reads text alone"),
        (["FOUR", "--image", "no.png", "--prompt", "x"], "--image: no.png: no such file"),
        (["FOUR", "--audio", "ROOT/README.md"], "hears no sound"),
        (["FOUR", "--profile", "nokia"], "there is no profile 'nokia'"),
        (["FOUR", "--max-tokens", "0"], "--max-tokens: must be 1 or more, not 0"),
        (["FOUR", "--top-p", "0"], "--top-p: must be more than 0"),
        (["FOUR", "--temperature", "nan"], "--temperature: must be 0 to 100"),
        (["x\0y"], "holds a NUL"),
    ],
)
def test_bad_input_is_one_message(four: Path, capsys, monkeypatch, tmp_path: Path, arguments, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["try", *(word.replace("FOUR", str(four)).replace("ROOT", str(ROOT)) for word in arguments)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and said in error and "Traceback" not in error


def test_a_damaged_artifact_and_one_for_another_machine_are_not_run(four: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(four / "tvm", tmp_path / "tvm")
    shutil.rmtree(copy / "host")
    done = tried(str(copy), "--prompt", "x")
    assert done.returncode == 2 and "host" in done.stderr and done.stdout == ""


@dataclass
class Terminal:
    """`edgewright try` at a terminal of 24 rows, as a shell starts it."""

    process: subprocess.Popen[bytes]
    screen: int
    seen: bytes = b""

    def until(self, wanted: str, seconds: float = 60) -> str:
        """What was shown up to and with `wanted`."""
        end = time.monotonic() + seconds
        while wanted.encode() not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.screen, 1 << 16)
                except OSError as error:
                    raise AssertionError(f"{wanted} was not shown: {self.seen!r}") from error
        found, _, self.seen = self.seen.partition(wanted.encode())
        return found.decode() + wanted

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def presses(self, key: str, wanted: str) -> None:
        """Type `key` until `wanted` is shown, as people do: Python's readline misses a signal just before it waits."""
        for left in reversed(range(20)):
            self.type(key)
            try:
                self.until(wanted, 3)
                return
            except AssertionError:
                if not left:
                    raise

    def ends(self, seconds: float = 30) -> tuple[int, str]:
        """Its exit code, and what it showed at last."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if select.select([self.screen], [], [], 0.1)[0]:
                    self.seen += os.read(self.screen, 1 << 16)
                    continue
            if self.process.poll() is not None:
                break
        return self.process.wait(1), self.seen.decode(errors="replace")


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    screen, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgewright", "try", *arguments],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def child_of(pid: int) -> int:
    """The process of an artifact that another one has started."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            own, _, rest = entry.read_text().rpartition(")")
            if int(rest.split()[1]) == pid and b"runtime_tests.child" in (entry.parent / "cmdline").read_bytes():
                return int(own.split()[0])
    raise AssertionError(f"{pid} has started no artifact")


def test_ctrl_c_stops_the_answer_and_not_the_program(four: Path) -> None:
    """The executor of Core ML packages takes half a minute for such an answer."""
    with terminal(str(four), "--target", "coreml", "--greedy", "--max-tokens", "900") as shown:
        assert "Core ML reference executor stands in" in shown.until("another conversation\x1b[0m\r\n> ")
        shown.type("half a line")
        shown.until("half a line")
        shown.presses("\x03", "> ")
        shown.type(f"{PROMPT}\n")
        shown.until("tok/s")
        shown.type("\x03")
        first = shown.until("stopped\x1b[0m\r\n> ", 20)
        assert "\x1b[r" in first, "the row of the figures is the terminal's again"
        assert "MB" not in first, "an executor's memory is not the artifact's"
        shown.type("again\n")
        shown.until("tok/s")
        shown.type("\x03")
        assert "of them held" in shown.until("stopped\x1b[0m\r\n> ", 20)
        shown.type("\x04")
        code, last = shown.ends()
    assert code == 0 and "Traceback" not in last


def test_figures_are_shown_below_the_answer_while_it_comes(four: Path) -> None:
    with terminal(str(four / "onnx"), "--greedy", "--max-tokens", "300") as shown:
        shown.until("> ")
        shown.type(f"{PROMPT}\n")
        answer = shown.until("as long as --max-tokens allows")
        assert re.search(r"\x1b\[24;1H\x1b\[2K\x1b\[2m\d+ tokens, [\d.]+ tok/s · \d+ MB anonymous, \d+ MB file", answer)
        shown.type("/exit\n")
        assert shown.ends()[0] == 0


def test_a_process_that_is_killed_is_a_sentence_and_one_of_nobody_ends(four: Path) -> None:
    with terminal(str(four / "coreml"), "--greedy", "--max-tokens", "900") as shown:
        shown.until("> ")
        child = child_of(shown.process.pid)
        shown.type(f"{PROMPT}\n")
        shown.until("tok/s")
        os.kill(child, signal.SIGKILL)
        code, last = shown.ends()
        assert code == 1 and "the runtime ended with SIGKILL" in last and "Traceback" not in last
    with terminal(str(four / "coreml"), "--greedy", "--max-tokens", "900") as shown:
        shown.until("> ")
        child = child_of(shown.process.pid)
        shown.type(f"{PROMPT}\n")
        shown.until("tok/s")
        shown.process.kill()
        end = time.monotonic() + 30
        while Path(f"/proc/{child}").exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert not Path(f"/proc/{child}").exists()


def test_sigterm_in_an_answer_ends_all_of_it(four: Path) -> None:
    with terminal(str(four / "coreml"), "--greedy", "--max-tokens", "900") as shown:
        shown.until("> ")
        child = child_of(shown.process.pid)
        shown.type(f"{PROMPT}\n")
        shown.until("tok/s")
        shown.process.terminate()
        code, last = shown.ends()
        assert code == 143 and "Traceback" not in last and not Path(f"/proc/{child}").exists()
