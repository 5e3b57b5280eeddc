"""A function in a process of its own: what comes back, what does not travel, and that no script runs twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import EdgewrightError, MissingTool, Progress, silent
from compiler.apart import apart

ROOT = Path(__file__).parents[2]


def echo(words: tuple[str, ...], progress: Progress) -> dict[str, object]:
    print("what a library says on stdout")
    os.write(1, b"and what its C code says there")
    for at, _ in enumerate(words):
        progress("reading", at + 1, len(words))
    kept = {key: os.environ.get(key) for key in ("PYTHONHASHSEED", "HF_TOKEN")}
    return {"words": words, "process": os.getpid(), "path": sys.path, **kept}


def refuse(kind: type[EdgewrightError], progress: Progress) -> None:
    raise kind("no")


def fail(_: Progress) -> None:
    raise ValueError("a defect, told with its traceback")


def leave(code: int, _: Progress) -> None:
    os._exit(code)


def be_killed(number: int, _: Progress) -> None:
    os.kill(os.getpid(), number)


def test_results_and_progress_come_back_and_printing_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen: list[tuple[str, int, int]] = []
    found = apart(echo, ("a", "b"), progress=lambda *event: seen.append(event))
    assert seen == [("reading", 1, 2), ("reading", 2, 2)]
    assert found["words"] == ("a", "b") and found["process"] != os.getpid()
    assert found["PYTHONHASHSEED"] == "0" and found["HF_TOKEN"] is None
    assert "" not in found["path"]


@pytest.mark.parametrize("kind", [EdgewrightError, MissingTool])
def test_our_errors_come_back_as_they_are(kind: type[EdgewrightError]) -> None:
    with pytest.raises(kind, match=r"^no$") as caught:
        apart(refuse, kind, progress=silent)
    assert caught.type is kind


def test_a_defect_is_told_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"test_apart\.fail ended with exit code 1:[\s\S]*a defect, told with"):
        apart(fail, progress=silent)


def test_ends_without_a_word() -> None:
    with pytest.raises(RuntimeError, match=r"leave ended with exit code 3"):
        apart(leave, 3, progress=silent)
    with pytest.raises(RuntimeError, match=r"be_killed ended with exit code -11"):
        apart(be_killed, int(signal.SIGSEGV), progress=silent)
    with pytest.raises(EdgewrightError, match="be_killed: the system killed its process, most often because memory"):
        apart(be_killed, int(signal.SIGKILL), progress=silent)


def test_an_exception_on_this_side_ends_the_other() -> None:
    found: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        found.extend(int(p.name) for p in Path("/proc").glob("[0-9]*") if parent_of(p) == os.getpid())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apart(echo, ("a",), progress=stop)
    assert found and not any(Path(f"/proc/{pid}").exists() for pid in found)


def parent_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    """TVM's capture, from the first level of a script: with multiprocessing it ran again in every process started."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        f"with (Path({str(tmp_path)!r}) / 'runs').open('a') as runs: runs.write('once ')\n"
        "from compiler.models.base import read_model\n"
        "from compiler.targets.base import Job\n"
        "from compiler.targets.tvm.options import OPTIONS\n"
        "from compiler.targets.tvm.packaging import text\n"
        "from compiler.targets.tvm.workers import capture_graphs\n"
        "from tests.compiler.conftest import MINISTRAL3\n"
        "job = Job('a-script', read_model(MINISTRAL3, None, 32), {}, OPTIONS())\n"
        "print(len(capture_graphs(job, text.functions(job), text.narrowed(job)).graphs))\n"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"
    assert (tmp_path / "runs").read_text() == "once "
