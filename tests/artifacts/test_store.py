"""Staging: all or nothing, also when the process is killed, the disk is full or the folder belongs to somebody else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts import (
    EdgewrightError,
    read_manifest,
    record_validation,
    staged,
    tentative_folder,
    verify,
    write_manifest,
)
from tests.artifacts.conftest import DRAFT, fill, of_schema_1, record

ROOT = Path(__file__).parents[2]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_complete_and_nothing_else_stays(tmp_path: Path) -> None:
    final = tmp_path / "out" / "quickstart" / "onnx"
    with staged(final) as partial:
        assert partial.parent == final.parent and partial.is_dir() and not any(partial.iterdir())
        fill(partial)
        assert not final.exists()
    assert verify(final) == [] and listing(final.parent) == ["onnx"]


def test_a_new_artifact_replaces_the_earlier_one_completely(artifact: Path) -> None:
    with staged(artifact) as partial:
        fill(partial)
        (partial / "model.onnx").write_bytes(b"new graph")
        write_manifest(partial, DRAFT)
        assert (artifact / "model.onnx").read_bytes() == b"graph"
    assert (artifact / "model.onnx").read_bytes() == b"new graph" and verify(artifact) == []
    assert listing(artifact.parent) == ["onnx"]


def test_an_artifact_of_an_older_schema_is_replaced_and_its_owners_files_are_not(artifact: Path) -> None:
    of_schema_1(artifact)
    (artifact / "notes.txt").write_text("mine")
    with pytest.raises(EdgewrightError, match=r"not part of the artifact \(notes.txt\)"), staged(artifact):
        raise AssertionError("never reached")
    assert (artifact / "notes.txt").read_text() == "mine"
    (artifact / "notes.txt").unlink()
    with staged(artifact) as partial:
        fill(partial)
        (partial / "model.onnx").write_bytes(b"new graph")
        write_manifest(partial, DRAFT)
    assert (artifact / "model.onnx").read_bytes() == b"new graph" and verify(artifact) == []
    assert listing(artifact.parent) == ["onnx"]


@pytest.mark.parametrize("error", [ValueError("bad tensor"), KeyboardInterrupt(), SystemExit(1)])
def test_on_an_error_the_earlier_artifact_stays(artifact: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        with staged(artifact) as partial:
            (partial / "model.onnx").write_bytes(b"half")
            raise error
    assert listing(artifact.parent) == ["onnx"] and verify(artifact) == []


def test_a_build_without_a_manifest_is_not_put_in_place(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match=r"without writing edgewright\.json"):
        with staged(tmp_path / "onnx") as partial:
            (partial / "model.onnx").write_bytes(b"graph")
    assert listing(tmp_path) == []


def hanging_child(final: Path, body: str) -> subprocess.Popen[str]:
    """A process that is inside ``staged(final)`` and has run ``body`` there; it sleeps until it is killed."""
    code = f"""
import sys, time
from pathlib import Path
from artifacts import staged
from tests.artifacts.conftest import fill
with staged(Path({str(final)!r})) as partial:
    {body}
    print("inside", flush=True)
    time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None and child.stdout.readline() == "inside\n"
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert child.stdout is not None
    child.stdout.close()


@pytest.mark.parametrize("body", ["(partial / 'model.onnx').write_bytes(b'half')", "fill(partial)"])
def test_after_kill_9_only_a_partial_folder_is_left_and_the_next_run_removes_it(artifact: Path, body: str) -> None:
    child = hanging_child(artifact, body)
    kill(child)
    assert listing(artifact.parent) == [f".onnx.partial-{child.pid}", "onnx"] and verify(artifact) == []
    with staged(artifact) as partial:
        assert listing(artifact.parent) == [partial.name, "onnx"]
        fill(partial)
    assert listing(artifact.parent) == ["onnx"] and verify(artifact) == []


def test_a_run_that_is_still_going_is_left_alone(artifact: Path) -> None:
    child = hanging_child(artifact, "fill(partial)")
    try:
        with staged(artifact) as partial:
            assert f".onnx.partial-{child.pid}" in listing(artifact.parent)
            fill(partial)
        assert f".onnx.partial-{child.pid}" in listing(artifact.parent)
    finally:
        kill(child)


def test_a_leftover_with_a_process_id_that_lives_again_is_removed(tmp_path: Path) -> None:
    for pid in (os.getpid(), os.getppid()):  # in a container the next run often has the same process id
        (tmp_path / f".onnx.partial-{pid}").mkdir()
    with staged(tmp_path / "onnx") as partial:
        assert listing(tmp_path) == [partial.name]
        fill(partial)


def test_leftovers_of_other_targets_are_not_touched(tmp_path: Path) -> None:
    for name in (".mlx.partial-1", ".onnx.partial-x", ".onnx.partial", "report.json.partial-1"):
        (tmp_path / name).mkdir()
    before = listing(tmp_path)
    with staged(tmp_path / "onnx") as partial:
        fill(partial)
    assert listing(tmp_path) == sorted([*before, "onnx"])


def test_killed_between_the_two_renames_the_earlier_artifact_comes_back(artifact: Path) -> None:
    artifact.rename(artifact.parent / ".onnx.old-1")
    with pytest.raises(ValueError), staged(artifact):
        assert verify(artifact) == []
        raise ValueError
    assert listing(artifact.parent) == ["onnx"]


def test_the_same_process_cannot_build_one_artifact_twice_at_once(tmp_path: Path) -> None:
    with staged(tmp_path / "onnx") as partial:
        with pytest.raises(EdgewrightError, match="being built by this very process"), staged(tmp_path / "onnx"):
            pass
        fill(partial)
    assert verify(tmp_path / "onnx") == []


def test_a_verdict_is_written_into_the_manifest_and_nothing_else_changes(artifact: Path) -> None:
    before = read_manifest(artifact)
    payload = (artifact / "model.onnx").stat()
    record_validation(artifact, before, record("failed"))
    after = read_manifest(artifact)
    assert (after.verdict, after.validations) == ("failed", (record("failed"),))
    assert after.identity == before.identity and after.files == before.files
    assert verify(artifact) == [] and listing(artifact.parent) == ["onnx"]
    assert (artifact / "model.onnx").stat().st_mtime_ns == payload.st_mtime_ns


def test_the_last_verdict_by_each_kind_of_limits_stays(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    for item in (record("failed"), record("passed", limits=False), record("failed", limits=False), record("passed")):
        record_validation(artifact, manifest, item)
    assert read_manifest(artifact).validations == (record("failed", limits=False), record("passed"))


def test_a_new_build_was_never_validated(artifact: Path) -> None:
    record_validation(artifact, read_manifest(artifact), record("passed"))
    with staged(artifact) as partial:
        fill(partial)
    assert read_manifest(artifact).verdict == "not validated"


def test_a_verdict_about_a_build_that_was_replaced_is_not_written(artifact: Path) -> None:
    validated = read_manifest(artifact)
    with staged(artifact) as partial:
        fill(partial)
        (partial / "model.onnx").write_bytes(b"another graph")
        write_manifest(partial, DRAFT)
    with pytest.raises(EdgewrightError, match="was replaced while it was validated"):
        record_validation(artifact, validated, record("passed"))
    assert read_manifest(artifact).verdict == "not validated" and listing(artifact.parent) == ["onnx"]


def test_a_verdict_that_cannot_be_written_leaves_the_manifest_as_it_was(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (artifact / "edgewright.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(EdgewrightError, match="the verdict cannot be written"):
        patch.setattr(os, "fsync", full)
        record_validation(artifact, read_manifest(artifact), record("passed"))
    assert (artifact / "edgewright.json").read_bytes() == before and listing(artifact.parent) == ["onnx"]


def test_what_a_kill_left_of_a_verdict_is_removed_by_the_next_one(artifact: Path) -> None:
    """A half-written manifest lies beside the artifact, never in it, so the artifact stays intact."""
    for name in (".onnx.manifest-1", ".onnx.manifest-x", ".mlx.manifest-1"):
        (artifact.parent / name).write_text("{")
    record_validation(artifact, read_manifest(artifact), record("passed"))
    assert listing(artifact.parent) == [".mlx.manifest-1", ".onnx.manifest-x", "onnx"] and verify(artifact) == []
    (artifact.parent / ".onnx.manifest-2").write_text("{")
    with staged(artifact) as partial:
        fill(partial)
    assert ".onnx.manifest-2" not in listing(artifact.parent)


def test_a_link_put_where_the_manifest_is_written_is_not_followed(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (artifact.parent / f".onnx.manifest-{os.getpid()}").symlink_to(tmp_path / "precious")
    with pytest.raises(EdgewrightError, match="the verdict cannot be written"):
        record_validation(artifact, read_manifest(artifact), record("passed"))
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_signal_between_the_two_renames_puts_the_earlier_artifact_back(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), staged(artifact) as partial:
        fill(partial)
    assert listing(artifact.parent) == ["onnx"] and verify(artifact) == []


def test_what_is_not_an_artifact_is_never_replaced(tmp_path: Path, artifact: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("years of work")
    a_file = tmp_path / "file"
    a_file.write_text("x")
    link = tmp_path / "link"
    link.symlink_to(artifact)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for place in (thesis, a_file, link, dangling):
        with pytest.raises(EdgewrightError, match=r"exists and is not .*choose another --out"), staged(place):
            raise AssertionError("never reached")
    assert (thesis / "chapter1.tex").read_text() == "years of work"


def test_files_that_a_user_put_into_an_artifact_are_not_lost(artifact: Path) -> None:
    (artifact / "notes.txt").write_text("mine")
    with pytest.raises(EdgewrightError, match=r"not part of the artifact \(notes.txt\)"), staged(artifact):
        raise AssertionError("never reached")
    (artifact / "notes.txt").unlink()
    with pytest.raises(EdgewrightError, match=r"not part of the artifact \(late.txt\)"):
        with staged(artifact) as partial:
            fill(partial)
            (artifact / "late.txt").write_text("written while the build ran")
    assert (artifact / "late.txt").exists() and listing(artifact.parent) == ["onnx"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    with staged(tmp_path / "onnx") as partial:
        fill(partial)
    assert read_manifest(tmp_path / "onnx").target == "onnx"


def test_too_little_space_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match=r"no space left on the disk \(\d+ MB free"):
        with staged(tmp_path / "onnx", needed_bytes=1 << 60):
            raise AssertionError("never reached")
    assert listing(tmp_path) == []


def test_a_disk_that_fills_up_gives_one_message_and_leaves_nothing(artifact: Path) -> None:
    with pytest.raises(EdgewrightError, match="no space left on the disk") as caught:
        with staged(artifact):
            with open("/dev/full", "wb", buffering=0) as full:  # the system's own "No space left on device"
                full.write(b"weights")
    assert caught.value.exit_code == 2
    with pytest.raises(EdgewrightError, match="no space left on the disk"):
        with staged(artifact):  # what a writer in another language says
            raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert listing(artifact.parent) == ["onnx"] and verify(artifact) == []


def test_a_file_beyond_the_limit_of_the_shell_is_one_message(artifact: Path) -> None:
    for error in (OSError(27, "File too large"), RuntimeError("I/O error: File too large (os error 27)")):
        with pytest.raises(EdgewrightError, match=r"larger than this process may write .*ulimit -f"), staged(artifact):
            raise error
    assert listing(artifact.parent) == ["onnx"] and verify(artifact) == []


def test_folders_made_in_vain_go_again(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ZeroDivisionError), tentative_folder(tmp_path / "mine" / "a" / "b"):
        (tmp_path / "mine" / "a" / "kept").write_text("")
        _ = 1 // 0
    assert [path.name for path in (tmp_path / "mine" / "a").iterdir()] == ["kept"]
    with pytest.raises(ZeroDivisionError), tentative_folder(tmp_path / "mine"):
        _ = 1 // 0
    assert (tmp_path / "mine").is_dir()


def test_a_place_where_the_system_makes_no_folder_is_one_message() -> None:
    with pytest.raises(EdgewrightError, match=r"/proc/x: no folder can be made there .*choose another --out"):
        with staged(Path("/proc/x/onnx")):
            raise AssertionError("never reached")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged(tmp_path / "onnx"):
        (tmp_path / "checkpoint" / "model.safetensors").read_bytes()


def _stage_as_nobody(final: Path, messages: multiprocessing.Queue[str]) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        with staged(final):
            messages.put("entered")
    except EdgewrightError as error:
        messages.put(str(error))
    except BaseException as error:
        messages.put(repr(error))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="edgewright-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_read_only_folder_gives_a_clear_message(open_folder: Path) -> None:
    out = open_folder / "out"
    out.mkdir(mode=0o555)
    for final in (out / "onnx", out / "quickstart" / "onnx"):
        messages: multiprocessing.Queue[str] = multiprocessing.get_context("fork").Queue()
        child = multiprocessing.get_context("fork").Process(target=_stage_as_nobody, args=(final, messages))
        child.start()
        message = messages.get(timeout=60)
        child.join()
        assert message.startswith(f"{final.parent}: cannot be written") and "choose another --out" in message


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with (
        pytest.raises(EdgewrightError, match="no folder can be made there"),
        staged(tmp_path / "out" / "quickstart" / "onnx"),
    ):
        raise AssertionError("never reached")
