"""Checkpoints from the Hub, through the real client's session against a server on this machine."""

from __future__ import annotations

import json
import os
import re

import pytest

from .conftest import FILES, WANTED


def test_only_what_a_checkpoint_needs_is_fetched_and_checked(hub, fetch):
    commit = hub.commit(FILES)
    result = fetch(commit)
    assert result["revision"] == commit
    assert result["files"] == {name: FILES[name].decode() for name in WANTED}
    assert set(hub.fetched()) == WANTED
    total = sum(len(FILES[name]) for name in WANTED)
    assert result["last"] == ["downloading", total, total]
    again = fetch(commit)
    assert again["last"] == ["checking the cache", total, total]


def test_no_revision_takes_the_newest_commit_once_and_then_stays_with_it(hub, fetch, tmp_path):
    first = hub.commit(FILES)
    assert fetch()["revision"] == first
    lock = json.loads((tmp_path / "out" / "recipe.lock.json").read_text())
    assert (lock["hub"], lock["revision"]) == ("acme/tiny", first)
    assert {f["path"] for f in lock["files"]} == WANTED

    hub.commit({**FILES, "config.json": b'{"changed": true}'})
    hub.requests.clear()
    again = fetch()
    assert again["revision"] == first
    assert again["files"]["config.json"] == FILES["config.json"].decode()
    assert hub.fetched() == []


def test_a_fetched_checkpoint_needs_no_network(hub, fetch):
    hub.commit(FILES)
    first = fetch()
    assert fetch(HF_ENDPOINT="http://127.0.0.1:9")["files"] == first["files"]


def test_a_lock_of_another_repository_is_not_used(hub, fetch, tmp_path):
    commit = hub.commit(FILES)
    lock = tmp_path / "out" / "recipe.lock.json"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"schema_version": 1, "hub": "acme/other", "revision": "0" * 40, "files": []}))
    assert fetch()["revision"] == commit
    assert json.loads(lock.read_text())["hub"] == "acme/tiny"


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_a_damaged_download_of_the_right_size_is_found_and_fetched_anew(hub, fetch, name):
    hub.commit(FILES)
    hub.served[name] = bytes(reversed(FILES[name]))
    result = fetch()
    assert result["exit_code"] == 2
    assert f"{name} differs from the digest" in result["error"]

    hub.served.clear()
    assert fetch()["files"][name] == FILES[name].decode()


def test_a_repository_without_safetensors_is_refused(hub, fetch):
    hub.commit({"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    result = fetch()
    assert result["exit_code"] == 2
    assert "pytorch_model.bin is a pickle" in result["error"]
    assert hub.fetched() == []


def test_paths_that_leave_the_folder_are_refused(hub, fetch):
    hub.commit({"config.json": b"{}", "model-../../x.safetensors": b"x"})
    result = fetch()
    assert result["exit_code"] == 2
    assert "makes no sense" in result["error"]
    assert "model-../../x.safetensors" in result["error"]


def test_errors_of_the_hub_say_what_to_do(hub, fetch):
    hub.commit(FILES)
    assert "no such commit; check checkpoint.revision" in fetch("1" * 40)["error"]
    assert "no such repository on the Hub" in fetch(repo="acme/none")["error"]
    assert "give a local copy with --checkpoint PATH" in fetch(HF_ENDPOINT="http://127.0.0.1:9")["error"]
    hub.lie = lambda reply: reply.headers.update({"X-Error-Message": "Invalid credentials in Authorization header"})
    hub.status["/api/models"] = 401
    assert "does not know the token; check HF_TOKEN" in fetch(HF_TOKEN="hf_wrong")["error"]
    hub.status["/api/models"] = 403
    assert "access must be asked for" in fetch()["error"]


def test_a_broken_lock_file_is_named(hub, fetch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.lock.json").write_text("{")
    assert "recipe.lock.json: not a readable lock file; delete it" in fetch()["error"]


def test_a_listing_of_several_pages_is_read_to_its_end(hub, fetch):
    hub.commit(FILES)
    hub.page = 3
    assert set(fetch()["files"]) == WANTED


def test_only_what_was_checked_is_locked(hub, fetch, tmp_path):
    hub.commit(FILES)
    hub.served["tokenizer.json"] = bytes(reversed(FILES["tokenizer.json"]))
    assert "differs from the digest" in fetch()["error"]
    assert not (tmp_path / "out" / "recipe.lock.json").exists()


def test_a_token_that_is_none_is_named(hub, fetch):
    hub.commit(FILES)
    result = fetch(HF_TOKEN="hf_\u00e9")
    assert result["exit_code"] == 2
    assert re.search("HF_TOKEN.*characters that no token has", result["error"])


def test_a_lock_that_never_ends_or_holds_no_digest_is_named(hub, fetch, tmp_path):
    lock = tmp_path / "out" / "recipe.lock.json"
    lock.parent.mkdir()
    os.mkfifo(lock)
    assert "recipe.lock.json: not a readable lock file; delete it" in fetch()["error"]
    lock.unlink()
    files = [{"path": "config.json", "size": 1}]
    lock.write_text(json.dumps({"schema_version": 1, "hub": "acme/tiny", "revision": "0" * 40, "files": files}))
    assert "recipe.lock.json: not a readable lock file; delete it" in fetch()["error"]
