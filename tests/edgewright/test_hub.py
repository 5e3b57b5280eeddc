"""Checkpoints from the Hub, through the real client against a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .hub_server import HubServer

FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "README.md": b"# tiny\n",
    "config.json": b'{"model_type": "ministral3"}',
    "model-00001-of-00002.safetensors": b"first shard" * 100,
    "model-00002-of-00002.safetensors": b"second shard" * 100,
    "model.safetensors.index.json": b"{}",
    "consolidated.safetensors": b"the same weights in another layout",
    "pytorch_model.bin": b"a pickle",
    "modeling_custom.py": b"import os",
    "original/config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
}
WANTED = {
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
}
_CHILD = """
import json, sys
from pathlib import Path
from edgewright.hub import fetch
stages = []
try:
    folder, revision = fetch(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), lambda *a: stages.append(a))
except Exception as error:
    print(json.dumps({"error": str(error), "exit_code": getattr(error, "exit_code", None)}))
else:
    files = {p.relative_to(folder).as_posix(): p.read_bytes().decode() for p in folder.rglob("*") if p.is_file()}
    names = sorted({stage[0] for stage in stages})
    print(json.dumps({"revision": revision, "files": files, "last": stages[-1], "stages": names}))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def fetch(hub, tmp_path):
    def fetch(revision=None, repo="acme/tiny", endpoint=None):
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": endpoint or hub.url, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, repo, json.dumps(revision), str(tmp_path / "out" / "recipe.lock.json")],
            env=env,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return fetch


def test_only_what_a_checkpoint_needs_is_fetched_and_checked(hub, fetch):
    commit = hub.commit(FILES)
    result = fetch(commit)
    assert result["revision"] == commit
    assert result["files"] == {name: FILES[name].decode() for name in WANTED}
    assert set(hub.fetched()) == WANTED
    total = sum(len(FILES[name]) for name in WANTED)
    assert result["last"] == ["checking the download", total, total]
    assert result["stages"] == ["checking the download", "downloading"]


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
    assert fetch(endpoint="http://127.0.0.1:9")["files"] == first["files"]


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
    assert "listing makes no sense" in result["error"]


def test_errors_of_the_hub_say_what_to_do(hub, fetch):
    hub.commit(FILES)
    assert "no such commit; check checkpoint.revision" in fetch("1" * 40)["error"]
    assert "no such repository on the Hub" in fetch(repo="acme/none")["error"]
    assert "give a local copy with --checkpoint PATH" in fetch(endpoint="http://127.0.0.1:9")["error"]
    hub.status["/api/models"] = 403
    assert "access must be asked for" in fetch()["error"]


def test_a_broken_lock_file_is_named(hub, fetch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.lock.json").write_text("{")
    assert "recipe.lock.json: not a readable lock file; delete it" in fetch()["error"]
