"""The cache that is shared with the Hub's client: what lies in it, what leads out of it, what is left untouched."""

from __future__ import annotations

import json
import os

import pytest

from .conftest import FETCH, FILES, WANTED, digest_of


@pytest.mark.parametrize("elsewhere", ["../../../../../mine/precious", "{mine}/precious"])
def test_an_etag_is_no_path(hub, fetch, tmp_path, cache, elsewhere):
    mine = tmp_path / "mine"
    mine.mkdir()
    etag = elsewhere.format(mine=mine)
    hub.lie = lambda reply: reply.kind == "file" and reply.headers.update({"X-Linked-Etag": f'"{etag}"', "ETag": etag})
    hub.commit(FILES)
    result = fetch()
    assert result["files"] == {name: FILES[name].decode() for name in WANTED}
    assert list(mine.iterdir()) == []
    assert {path.name for path in (cache / "blobs").iterdir()} == {digest_of(name) for name in WANTED}


def test_a_file_that_a_lying_etag_points_to_is_not_removed(hub, fetch, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("my own")
    hub.lie = lambda reply: reply.kind == "file" and reply.headers.update({"X-Linked-Etag": f'"{mine}"'})
    hub.commit(FILES)
    fetch()
    assert mine.read_text() == "my own"


@pytest.mark.parametrize("place", ["entry", "blob", "blobs", "snapshot", "repository", "partial"])
def test_a_link_in_the_cache_that_leads_elsewhere_is_refused_and_nothing_is_removed(hub, fetch, tmp_path, cache, place):
    commit = hub.commit(FILES)
    fetch()
    snapshot, blobs, name = cache / "snapshots" / commit, cache / "blobs", "tokenizer.json"
    blob = blobs / digest_of(name)
    mine = tmp_path / "mine"
    if place in ("entry", "blob", "partial"):
        mine.write_text("my own")
        link = {"entry": snapshot / name, "blob": blob, "partial": blob.with_name(f"{blob.name}.incomplete")}[place]
        blob.unlink()
        link.unlink(missing_ok=True)
    else:
        link = {"blobs": blobs, "snapshot": snapshot, "repository": cache}[place]
        link.rename(mine)
    link.symlink_to(mine)
    before = {path: path.read_bytes() for path in [mine, *mine.rglob("*")] if path.is_file()}

    result = fetch()
    assert result["exit_code"] == 2
    assert "outside of the repository's part of the cache, so nothing was read or removed" in result["error"]
    assert {path: path.read_bytes() for path in [mine, *mine.rglob("*")] if path.is_file()} == before
    assert link.is_symlink()


def test_a_repository_that_shares_a_blob_of_the_cache_is_read(hub, fetch, cache):
    """The client's own store of what several repositories hold: `<cache>/blobs/<2 digits>/<hash>`."""
    hub.commit(FILES)
    fetch()
    blob = cache / "blobs" / digest_of("tokenizer.json")
    shared = cache.parent / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    hub.requests.clear()
    assert fetch()["files"]["tokenizer.json"] == FILES["tokenizer.json"].decode()
    assert hub.requests == []


def test_a_damaged_file_of_the_cache_is_fetched_anew_at_once(hub, fetch, cache):
    hub.commit(FILES)
    fetch()
    (cache / "blobs" / digest_of("tokenizer.json")).write_bytes(bytes(reversed(FILES["tokenizer.json"])))
    hub.requests.clear()
    assert fetch()["files"]["tokenizer.json"] == FILES["tokenizer.json"].decode()
    assert hub.fetched() == ["tokenizer.json"]


CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import snapshot_download
folder = Path(snapshot_download("acme/tiny", revision=sys.argv[1], local_files_only=sys.argv[2] == "offline"))
print(json.dumps({p.name: p.read_bytes().decode() for p in folder.iterdir() if p.is_file()}))
"""


def test_the_cache_is_the_clients_own(hub, fetch, child):
    commit = hub.commit(FILES)
    files = fetch()["files"]
    found = child(CLIENT, commit, "offline")
    assert {name: found[name] for name in files} == files


def test_what_the_client_fetched_is_not_fetched_again(hub, fetch, child):
    commit = hub.commit(FILES)
    child(CLIENT, commit, "online")
    hub.requests.clear()
    assert set(fetch(commit)["files"]) >= WANTED
    assert hub.fetched() == []


def test_on_a_file_system_without_links_the_snapshot_holds_copies(hub, child, tmp_path, cache):
    commit = hub.commit(FILES)
    no_links = "import os\ndef refuse(*a, **k): raise OSError(1, 'Operation not permitted')\nos.symlink = refuse\n"
    arguments = ("acme/tiny", json.dumps(commit), str(tmp_path / "out" / "recipe.lock.json"))
    assert set(child(no_links + FETCH, *arguments)["files"]) == WANTED
    assert not any(path.is_symlink() for path in (cache / "snapshots" / commit).iterdir())
    hub.requests.clear()
    assert set(child(no_links + FETCH, *arguments)["files"]) == WANTED
    assert hub.requests == []
