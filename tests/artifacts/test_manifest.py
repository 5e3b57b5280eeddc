"""The manifest: what is written is what is read, every change is found, nothing outside is touched."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import EdgewrightError, read_manifest, require_intact, verify, write_manifest
from artifacts.manifest import OutdatedManifest, checked_path, payload_file, sha256_file
from tests.artifacts.conftest import DRAFT, of_schema_1, record


def edit(artifact: Path, **changes: Any) -> None:
    """Change top-level keys of edgewright.json in place."""
    path = artifact / "edgewright.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def kinds(artifact: Path) -> list[tuple[str, str]]:
    return [(problem.path, problem.kind) for problem in verify(artifact)]


def test_lists_every_file_with_its_size_and_sha256(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    payload = bytes(range(256)) * 16
    assert {entry.path: (entry.size, entry.sha256) for entry in manifest.files} == {
        "model.onnx": (5, hashlib.sha256(b"graph").hexdigest()),
        "weights/model.onnx.data": (4096, hashlib.sha256(payload).hexdigest()),
    }
    assert manifest.total_bytes == 4101
    assert manifest.quantization == DRAFT.quantization and manifest.runtime == DRAFT.runtime
    assert manifest.components == DRAFT.components and manifest.driver == DRAFT.driver
    assert verify(artifact) == [] and require_intact(artifact) == manifest


def test_writing_twice_gives_the_same_bytes(artifact: Path) -> None:
    before = (artifact / "edgewright.json").read_bytes()
    write_manifest(artifact, DRAFT)
    assert (artifact / "edgewright.json").read_bytes() == before
    assert sorted(path.name for path in artifact.iterdir()) == ["edgewright.json", "model.onnx", "weights"]


def test_hashing_reports_progress_up_to_the_total(artifact: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    verify(artifact, lambda *event: seen.append(event))
    assert seen[-1] == ("verifying", 4101, 4101)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_verify_lists_all_problems_at_once(artifact: Path) -> None:
    (artifact / "model.onnx").unlink()
    (artifact / "weights" / "model.onnx.data").write_bytes(b"short")
    (artifact / "notes.txt").write_text("mine")
    assert kinds(artifact) == [("model.onnx", "missing"), ("notes.txt", "extra"), ("weights/model.onnx.data", "size")]
    with pytest.raises(EdgewrightError, match=r"(?s)model\.onnx: missing.*notes\.txt: not listed"):
        require_intact(artifact)


@pytest.mark.parametrize("seed", range(8))
def test_any_flipped_bit_is_found(artifact: Path, seed: int) -> None:
    path = artifact / "weights" / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1 << (seed % 8)
    path.write_bytes(content)
    assert kinds(artifact) == [("weights/model.onnx.data", "digest")]


def test_links_and_special_files_are_refused_unread(artifact: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"graph")
    (artifact / "model.onnx").unlink()
    (artifact / "model.onnx").symlink_to(outside)
    data = artifact / "weights" / "model.onnx.data"
    data.unlink()
    os.mkfifo(data)  # opening it would wait for a writer for ever
    assert kinds(artifact) == [("model.onnx", "link"), ("weights/model.onnx.data", "not a file")]
    with pytest.raises(EdgewrightError, match="regular files only"):
        write_manifest(artifact, DRAFT)
    with pytest.raises(OSError):
        sha256_file(artifact / "model.onnx")


def test_a_linked_folder_is_not_walked_into(artifact: Path, tmp_path: Path) -> None:
    (artifact / "weights").rename(tmp_path / "elsewhere")
    (artifact / "weights").symlink_to(tmp_path / "elsewhere")
    assert kinds(artifact) == [("weights", "extra"), ("weights/model.onnx.data", "missing")]


def test_a_linked_manifest_is_refused(artifact: Path, tmp_path: Path) -> None:
    (artifact / "edgewright.json").rename(tmp_path / "edgewright.json")
    (artifact / "edgewright.json").symlink_to(tmp_path / "edgewright.json")
    with pytest.raises(EdgewrightError, match=r"edgewright\.json: cannot be read: it is a link, not a regular file"):
        read_manifest(artifact)


def test_a_folder_of_an_earlier_edgewright_says_so(artifact: Path) -> None:
    (artifact / "edgewright.json").rename(artifact / "manifest.json")
    with pytest.raises(EdgewrightError, match=r"holds a manifest\.json and no edgewright\.json: build"):
        read_manifest(artifact)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "./a", "a//b", "a/", "a\\..\\b", "C:x", "a\0b", "edgewright.json"]
)
def test_paths_cannot_leave_the_folder(artifact: Path, path: str) -> None:
    edit(artifact, files=[{"path": path, "size": 1, "sha256": "0" * 64}])
    with pytest.raises(EdgewrightError, match=r"edgewright\.json: files\.0\.path"):
        read_manifest(artifact)


@given(st.text(alphabet="ab./\\:\0-", max_size=12))
def test_an_accepted_path_always_stays_below_its_folder(path: str) -> None:
    try:
        checked_path(path)
    except ValueError:
        return
    assert os.path.normpath(path) == path and not os.path.isabs(path) and path.split("/")[0] != ".."


def test_a_file_is_listed_once(artifact: Path) -> None:
    entry = {"size": 1, "sha256": "0" * 64}
    edit(artifact, files=[{"path": "Model.onnx", **entry}, {"path": "model.onnx", **entry}])
    with pytest.raises(EdgewrightError, match="listed twice"):
        read_manifest(artifact)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"[]", b'"x"', b'{"schema_version": "1"}', b"{}"]
)
def test_corrupt_json_names_the_file_and_what_to_do(artifact: Path, content: bytes) -> None:
    (artifact / "edgewright.json").write_bytes(content)
    with pytest.raises(
        EdgewrightError, match=r"edgewright\.json: .*build the artifact again or fetch it anew"
    ) as caught:
        read_manifest(artifact)
    assert caught.value.exit_code == 2


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "edgewright.json").write_bytes(content)
    with pytest.raises(EdgewrightError):
        read_manifest(folder)


def test_a_newer_schema_asks_for_an_upgrade(artifact: Path) -> None:
    edit(artifact, schema_version=3, from_the_future=True)
    with pytest.raises(EdgewrightError, match=r"schema version 3 is newer .*upgrade"):
        read_manifest(artifact)


def test_an_older_schema_is_refused_and_says_what_it_lacks(artifact: Path) -> None:
    of_schema_1(artifact)
    with pytest.raises(OutdatedManifest, match=r"edgewright\.json: schema version 1 is of an older .*build") as caught:
        read_manifest(artifact)
    assert caught.value.listed == {"model.onnx", "weights/model.onnx.data"} and caught.value.exit_code == 2
    with pytest.raises(OutdatedManifest):
        verify(artifact)


@pytest.mark.parametrize("files", [None, 3, {"path": "a"}, [{"path": 5}, "a", {"size": 1}, {"path": "kept"}]])
def test_an_older_manifest_of_any_content_lists_what_it_can(artifact: Path, files: Any) -> None:
    edit(artifact, schema_version=1, files=files)
    with pytest.raises(OutdatedManifest) as caught:
        read_manifest(artifact)
    assert caught.value.listed == ({"kept"} if isinstance(files, list) else frozenset())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"components": [{"name": "a b", "entries": []}]}, r"components\.0\.name"),
        ({"components": [{"name": "a", "entries": [], "heads": 4}]}, r"components\.0\.heads"),
        ({"components": [{"name": "a"}]}, r"components\.0\.entries"),
        (
            {"components": [{"name": "a", "entries": [], "states": [{"name": "s", "dtype": "float16", "shape": [1]}]}]},
            r"components\.0\.states\.0\.dtype",
        ),
        (
            {"components": [{"name": "a", "entries": [], "states": [{"name": "s", "dtype": "int32", "shape": [0]}]}]},
            r"components\.0\.states\.0\.shape",
        ),
        ({"driver": {"name": "../text"}}, r"driver\.name"),
        ({"driver": "text"}, "driver"),
    ],
)
def test_an_interface_that_is_none_is_named(artifact: Path, change: dict[str, Any], message: str) -> None:
    edit(artifact, **change)
    with pytest.raises(EdgewrightError, match=rf"edgewright\.json: .*{message}.*build the artifact again"):
        read_manifest(artifact)


def test_unknown_keys_and_wrong_types_are_named(artifact: Path) -> None:
    edit(artifact, colour="red", weights_digest="abc")
    with pytest.raises(EdgewrightError, match=r"(?=.*weights_digest)(?=.*colour)"):
        read_manifest(artifact)
    edit(artifact, colour=None, files=[{"path": "model.onnx", "size": "5", "sha256": "0" * 64}])
    with pytest.raises(EdgewrightError, match=r"files\.0\.size"):
        read_manifest(artifact)


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match="not an Edgewright artifact"):
        read_manifest(tmp_path)
    with pytest.raises(EdgewrightError, match="no such artifact folder"):
        read_manifest(tmp_path / "nowhere")


def test_numbers_that_json_has_no_word_for_are_refused(artifact: Path) -> None:
    path = artifact / "edgewright.json"
    for word in ("NaN", "Infinity", "1e999"):
        path.write_text(path.read_text().replace('"max_tokens": 1024', f'"max_tokens": {word}'))
        with pytest.raises(EdgewrightError, match=r"edgewright\.json: not valid JSON: "):
            read_manifest(artifact)
        path.write_text(path.read_text().replace(word, "1024"))
    assert verify(artifact) == []


def test_folders_that_cannot_be_listed_are_problems_too(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, real = artifact / "weights", os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == inner:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert kinds(artifact) == [("weights", "unreadable"), ("weights/model.onnx.data", "missing")]
    with pytest.raises(EdgewrightError, match="regular files only"):
        write_manifest(artifact, DRAFT)


def test_folders_deeper_than_any_path_are_problems_and_no_crash(artifact: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(artifact)
        for _ in range(40):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(here)
    assert [kind for _, kind in kinds(artifact)] == ["unreadable"]


def test_names_that_are_no_text_are_told(artifact: Path) -> None:
    (artifact / os.fsdecode(b"a\xff")).write_text("x")
    assert kinds(artifact) == [("a\ufffd", "extra")]


def test_the_identity_is_of_what_was_built_and_not_of_what_was_found(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert manifest.verdict == "not validated"
    judged = manifest.model_copy(update={"validations": (record("failed"),)})
    assert judged.verdict == "failed" and judged.identity == manifest.identity
    assert manifest.model_copy(update={"family": "other"}).identity != manifest.identity


@pytest.mark.parametrize(
    ("found", "verdict"), [(["passed"], "passed"), (["passed", "failed"], "failed"), (["passed", "passed"], "passed")]
)
def test_one_failed_validation_is_a_failed_artifact(artifact: Path, found: list[Any], verdict: str) -> None:
    manifest = read_manifest(artifact)
    records = tuple(record(word, limits=bool(at)) for at, word in enumerate(found))
    assert manifest.model_copy(update={"validations": records}).verdict == verdict


def test_runtime_can_only_name_files_inside(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    (artifact / "linked").symlink_to(tmp_path)
    (artifact / "link").symlink_to(tmp_path / "outside")
    for name in ("model.onnx", "weights/model.onnx.data"):
        assert payload_file(artifact, name) == artifact / name
    for name in ("../outside", "/etc/passwd", "edgewright.json", "missing", "weights", "link", "linked/outside"):
        with pytest.raises(EdgewrightError, match=r"edgewright\.json: runtime"):
            payload_file(artifact, name)
