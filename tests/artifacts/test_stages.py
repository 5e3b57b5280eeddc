"""The store: finished stages are found again while they are whole, whatever happened to the process that made them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from artifacts import MANIFEST, read_manifest, staged, tentative_folder, verify, write_manifest
from artifacts.manifest import RecipeEntry
from artifacts.stages import Store
from artifacts.store import clean, relabel
from tests.artifacts.conftest import DRAFT, record
from tests.artifacts.kills import forked, kill_before

A, B = "a" * 64, "b" * 64
WORDS = {"recipe": "small"}


def made(store: Store, key: str, name: str = "onnx", stage: str = "package") -> Path:
    """A stage as runs finish it: a folder of a few bytes that say which key they are of."""
    final = store.out / "small" / name
    with staged(final, replaced=store.keeping(final, key)) as partial:
        (partial / "graph").mkdir()
        (partial / "graph" / "model.onnx").write_bytes(f"graph {key}".encode())
        (partial / "weights").write_bytes(key.encode() * 100)
        write_manifest(partial, DRAFT.model_copy(update={"runtime": {"key": key}}))
        store.put(stage, key, partial, final, WORDS)
    return final


def key_in(final: Path) -> object:
    assert verify(final) == []
    return read_manifest(final).runtime["key"]


def run(out: Path, keys: Sequence[str]) -> list[str]:
    """What `api.run` does, over stages of a few bytes: two folders and a note; which of them had to be done."""
    store, done = Store(out), []
    with tentative_folder(out / "small"), store.running("small", lambda: None):
        clean(out / "small")
        for name, key in zip(("weights", "onnx"), keys, strict=True):
            final = out / "small" / name
            found = store.find(name, key, final)
            if found is None or (found.kept and not store.take(found, final)):
                made(store, key, name, name)
                done.append(name)
        if store.content("run", keys[1]) is None:
            store.note("run", keys[1], WORDS, {"report": "fine"})
            done.append("run")
        store.collect()
    return done


def names(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def test_a_finished_stage_is_found_in_its_place_until_its_key_changes(store: Store) -> None:
    final = made(store, A)
    found = store.find("package", A, final)
    assert found is not None and (found.folder, found.kept) == (final, False)
    assert store.find("package", B, final) is None and store.find("weights", A, final) is None


@pytest.mark.parametrize("damage", ["a byte", "cut", "a file more", "a file less", "manifest", "gone"])
def test_a_damaged_stage_is_never_found_again(store: Store, damage: str) -> None:
    final = made(store, A)
    if damage == "a byte":
        (final / "weights").write_bytes(A.encode() * 99 + B.encode())
    elif damage == "cut":
        (final / "weights").write_bytes(A.encode())
    elif damage == "a file more":
        (final / "graph" / "notes.txt").write_text("mine")
    elif damage == "a file less":
        (final / "weights").unlink()
    elif damage == "manifest":
        (final / MANIFEST).write_text(
            (final / MANIFEST).read_text().replace('"family": "decoder"', '"family": "other"')
        )
    else:
        shutil.rmtree(final)
    assert store.find("package", A, final) is None
    assert store.listed() == []


def test_another_identity_is_hashed_once_and_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    final = made(store, A)
    os.utime(final / "weights")
    assert store.find("package", A, final) is not None
    monkeypatch.setattr("artifacts.entries.sha256_file", None)  # nothing is hashed again
    assert store.find("package", A, final) is not None


def test_what_is_found_out_later_and_other_labels_are_no_damage(store: Store) -> None:
    from artifacts import record_validation

    final = made(store, A)
    record_validation(final, read_manifest(final), record("passed"))
    other = RecipeEntry(name="small", digest="9" * 64)
    assert relabel(final, other, DRAFT.checkpoint).validations == ()  # by the limits of the recipe before
    assert read_manifest(final).recipe == other and verify(final) == []
    assert store.find("package", A, final) is not None


def test_an_output_that_is_replaced_is_kept_and_comes_back_by_a_rename(store: Store) -> None:
    final = made(store, A)
    before = (final / "weights").stat().st_ino
    made(store, B)
    found = store.find("package", A, final)
    assert found is not None and found.kept and store.take(found, final)
    assert key_in(final) == A and (final / "weights").stat().st_ino == before
    kept = [item for item in store.listed() if item.kept]
    assert [item.entry.key for item in kept] == [B] and len(store.listed()) == 2
    assert sorted(path.name for path in final.parent.iterdir()) == ["onnx"]


def test_a_damaged_output_is_not_kept(store: Store) -> None:
    final = made(store, A)
    (final / "weights").write_bytes(b"x" * 6400)
    made(store, B)
    assert [item.entry.key for item in store.listed()] == [B] and key_in(final) == B


def test_what_is_kept_stays_within_the_limit_and_the_oldest_goes_first(store: Store) -> None:
    final, size = made(store, "0" * 64), 6400 + 70
    store.set_limit(2 * size)
    for digit in "123":
        time.sleep(0.02)
        made(store, digit * 64)
    kept = [item.entry.key[0] for item in store.listed() if item.kept]
    assert kept == ["1", "2"]
    time.sleep(0.02)
    assert store.find("package", "1" * 64, final)  # used: now the last to go
    made(store, "4" * 64)
    assert [item.entry.key[0] for item in store.listed() if item.kept] == ["1", "3"]
    store.set_limit(0)
    assert [item.entry.key[0] for item in store.collect()] == ["1", "3"]
    made(store, "5" * 64)
    assert not [item for item in store.listed() if item.kept] and not list((store.path / "kept").iterdir())


def test_a_fresh_run_finds_what_it_made_itself_and_nothing_else(store: Store) -> None:
    final = made(store, A)
    store.note("run", A, WORDS, {"report": "fine"})
    fresh = Store(store.out, fresh=True)
    assert fresh.find("package", A, final) is None and fresh.content("run", A) is None and not fresh.has("package")
    made(fresh, A)
    assert fresh.find("package", A, final) is not None


def test_files_are_entered_by_name_and_other_recipes_find_them(store: Store, tmp_path: Path) -> None:
    one = store.out / "one"
    one.mkdir(parents=True)
    (one / "golden").write_bytes(b"vectors")
    store.put("vectors", A, one, one, WORDS, ["golden"])
    found = store.find("vectors", A, store.out / "two")
    assert found is not None and found.folder == one
    (one / "golden").write_bytes(b"vectorz")
    assert store.find("vectors", A, store.out / "two") is None  # left to its own run to drop
    assert store.find("vectors", A, one) is None and store.listed() == []


def test_verify_names_what_is_damaged_and_drops_it(store: Store) -> None:
    final = made(store, A)
    made(store, B)
    (kept,) = (store.path / "kept").iterdir()
    stat = (kept / "weights").stat()
    (kept / "weights").write_bytes(b"x" * stat.st_size)
    (store.path / "entries" / f"run-{A}@.json").write_text("{")
    problems = store.verify()
    assert problems[0].endswith("an entry that cannot be read")
    assert problems[1:] == [f"{kept} (package): weights is not what it was"]
    assert [item.entry.key for item in store.listed()] == [B] and not kept.exists()
    assert store.verify() == [] and key_in(final) == B


def test_a_file_that_a_killed_run_only_announced_is_no_damage(store: Store, tmp_path: Path) -> None:
    """It is entered before it gets its name, in a folder that other files share."""
    unfinished, place = tmp_path / "unfinished", store.out / "one"
    unfinished.mkdir(parents=True)
    place.mkdir(parents=True)
    (unfinished / "golden").write_bytes(b"vectors")
    store.put("vectors", A, unfinished, place, WORDS, ["golden"])
    assert store.verify() == [] and store.listed() == []


def test_what_is_older_than_a_fresh_run_is_not_found_by_its_processes(store: Store) -> None:
    final = made(store, A)
    store.note("run", A, WORDS, {"report": "fine"})
    began = time.time() + 1
    late = Store(store.out, since=began)
    assert late.find("package", A, final) is None and late.content("run", A) is None
    for item in store.listed():
        os.utime(item.file, (began + 1, began + 1))
    assert late.find("package", A, final) is not None and late.content("run", A) is not None


def test_an_edited_entry_is_none(store: Store) -> None:
    store.note("run", A, WORDS, {"report": "fine"})
    (file,) = (store.path / "entries").iterdir()
    file.write_text(file.read_text().replace("fine", "good"))
    assert store.content("run", A) is None
    store.collect()
    assert not file.exists()


def test_one_run_of_a_recipe_waits_for_the_other(store: Store, tmp_path: Path) -> None:
    first, waited, ended = (tmp_path / name for name in ("first", "waited", "ended"))

    def second() -> None:
        while not first.exists():
            time.sleep(0.01)
        with store.running("small", lambda: waited.touch()):
            assert ended.exists()

    child = os.fork()  # before the lock is taken: what is open then would hold it too
    if child == 0:
        os._exit(forked(second))
    with store.running("small", lambda: None):
        first.touch()
        while not waited.exists():
            time.sleep(0.01)
        with store.running("other", lambda: pytest.fail("another recipe's run is in nobody's way")):
            pass
        ended.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("before", "keys"),
    [([], (A, A)), ([(A, A)], (A, B)), ([(A, A), (A, B)], (A, A)), ([(A, A), (B, B)], (A, B))],
    ids=["first run", "one option changed", "and back", "some kept, some there"],
)
def test_a_kill_before_any_change_loses_no_finished_stage_and_damages_nothing(
    tmp_path: Path, before: list[tuple[str, str]], keys: tuple[str, str]
) -> None:
    start, whole = tmp_path / "start", tmp_path / "whole"
    start.mkdir()
    for earlier in before:
        run(start, earlier)
    shutil.copytree(start, whole)
    run(whole, keys)
    wanted, kills = names(whole), 0
    for change in range(1, 500):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(start, out)
        code = forked(lambda out=out, change=change: (kill_before(change, out), run(out, keys)))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        finals = dict(zip(("weights", "onnx"), keys, strict=True))
        there = {name for name, key in finals.items() if (out / "small" / name).is_dir() and in_place(out, name) == key}
        assert not there & set(run(out, keys)), change
        assert [key_in(out / "small" / name) for name in finals] == list(keys)
        assert Store(out).verify() == []
        assert names(out) - wanted == set(), change  # nothing half-written stays; an output on its way may be lost
        assert run(out, keys) == []
    assert kills > 10


def in_place(out: Path, name: str) -> object:
    return read_manifest(out / "small" / name).runtime["key"]
