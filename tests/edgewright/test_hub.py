"""Checkpoints from the Hub, through the real client against a server on this machine."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
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
def child(hub, tmp_path):
    """Run Python code with the client's cache below tmp_path and the server as the Hub; what it prints as JSON."""

    def child(code, *arguments, **env):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", **env}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=inherited | settings,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) | {"stderr": done.stderr}

    return child


@pytest.fixture
def fetch(child, tmp_path):
    def fetch(revision=None, repo="acme/tiny", **env):
        return child(_CHILD, repo, json.dumps(revision), str(tmp_path / "out" / "recipe.lock.json"), **env)

    return fetch


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "home" / "hub" / "models--acme--tiny"


def digest_of(name):
    content = FILES[name]
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


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


_CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import snapshot_download
folder = Path(snapshot_download("acme/tiny", revision=sys.argv[1], local_files_only=sys.argv[2] == "offline"))
print(json.dumps({p.name: p.read_bytes().decode() for p in folder.iterdir() if p.is_file()}))
"""


def test_the_cache_is_the_clients_own(hub, fetch, child):
    commit = hub.commit(FILES)
    files = fetch()["files"]
    found = child(_CLIENT, commit, "offline")
    assert {name: found[name] for name in files} == files


def test_what_the_client_fetched_is_not_fetched_again(hub, fetch, child):
    commit = hub.commit(FILES)
    child(_CLIENT, commit, "online")
    hub.requests.clear()
    assert set(fetch(commit)["files"]) >= WANTED
    assert hub.fetched() == []


def test_on_a_file_system_without_links_the_snapshot_holds_copies(hub, child, tmp_path, cache):
    commit = hub.commit(FILES)
    no_links = "import os\ndef refuse(*a, **k): raise OSError(1, 'Operation not permitted')\nos.symlink = refuse\n"
    arguments = ("acme/tiny", json.dumps(commit), str(tmp_path / "out" / "recipe.lock.json"))
    assert set(child(no_links + _CHILD, *arguments)["files"]) == WANTED
    assert not any(path.is_symlink() for path in (cache / "snapshots" / commit).iterdir())
    hub.requests.clear()
    assert set(child(no_links + _CHILD, *arguments)["files"]) == WANTED
    assert hub.requests == []


LONG = {**FILES, "model-00001-of-00002.safetensors": b"0123456789abcdef" * 192_000}
FIRST = "model-00001-of-00002.safetensors"


def breaking_off_after(hub, count, times):
    """The first shard's connection breaks off after so many bytes, so many times."""

    def lie(reply):
        nonlocal times
        if reply.path == FIRST and reply.body and times:
            times -= 1
            reply.headers["Content-Length"] = str(len(reply.body))
            reply.body = [reply.body[:count]]

    hub.lie = lie
    return lambda: [asked["range"] for asked in hub.asked if "range" in asked]


def test_a_download_that_breaks_off_goes_on_from_there(hub, child, fetch, tmp_path):
    hub.commit(LONG)
    ranges = breaking_off_after(hub, 700_000, times=2)
    assert fetch(revision=None).get("error") is None
    assert ranges() == ["bytes=700000-", "bytes=1400000-"]


def test_a_run_goes_on_where_the_last_one_was_broken_off(hub, fetch, cache):
    hub.commit(LONG)
    ranges = breaking_off_after(hub, 100_000, times=3)
    assert "the connection broke off" in fetch()["error"]
    partial = next((cache / "blobs").glob("*.incomplete"))
    assert partial.stat().st_size == 300_000
    assert fetch().get("error") is None
    assert ranges()[-1] == "bytes=300000-"
    assert list((cache / "blobs").glob("*.incomplete")) == []


def test_a_damaged_beginning_is_fetched_anew(hub, fetch, cache):
    hub.commit(LONG)
    breaking_off_after(hub, 100_000, times=3)
    fetch()
    partial = next((cache / "blobs").glob("*.incomplete"))
    partial.write_bytes(b"x" * 300_000)
    assert fetch().get("error") is None


def test_a_server_without_ranges_sends_the_whole_file_again(hub, fetch):
    hub.commit(LONG)
    breaking_off_after(hub, 100_000, times=1)
    breaks = hub.lie

    def lie(reply):
        if reply.status == 206:
            reply.status, reply.body = 200, LONG[FIRST]
            del reply.headers["Content-Range"]
        breaks(reply)

    hub.lie = lie
    assert fetch().get("error") is None


def test_a_server_that_begins_anew_each_time_is_given_up(hub, fetch):
    hub.commit(LONG)
    bodies = itertools.cycle([1_500_000, 0])

    def lie(reply):
        if reply.path == FIRST and reply.body:
            reply.status, reply.headers = 200, {"Content-Length": str(len(LONG[FIRST]))}
            reply.body = [LONG[FIRST][: next(bodies)]]

    hub.lie = lie
    assert "from its beginning again and again" in fetch()["error"]


def test_a_passing_error_of_the_hub_is_asked_again(hub, fetch):
    hub.commit(FILES)
    failing = {"tree": 1, "file": 1}

    def lie(reply):
        if failing.get(reply.kind):
            failing[reply.kind] -= 1
            reply.status, reply.body = 503, b"busy"

    hub.lie = lie
    assert fetch().get("error") is None


def test_nobody_waits_as_long_as_the_hub_asks_for(hub, fetch):
    hub.commit(FILES)

    def lie(reply):
        if reply.kind == "file":
            reply.status, reply.headers = 429, {"Retry-After": "86400", "RateLimit": '"api";r=0;t=86400'}

    hub.lie = lie
    start = time.monotonic()
    assert "HTTP status 429; run again later" in fetch()["error"]
    assert time.monotonic() - start < 30


def test_a_body_without_an_end_is_read_as_far_as_it_was_announced(hub, fetch, cache):
    hub.commit(FILES)

    def lie(reply):
        if reply.kind == "file" and reply.path.endswith(".safetensors"):
            reply.body = itertools.repeat(b"x" * 65536)

    hub.lie = lie
    assert "more than the 1100 bytes" in fetch()["error"]
    assert hub.sent < 64 << 20  # what the connection's buffers hold
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 4096


def test_a_byte_a_second_is_too_slow(hub, fetch):
    hub.commit(FILES)

    def drip():
        while True:
            time.sleep(0.2)
            yield b"x"

    def lie(reply):
        if reply.kind == "file":
            reply.body = drip()

    hub.lie = lie
    start = time.monotonic()
    assert "too slow: 64 KiB or a whole answer may take 2 seconds" in fetch(HF_HUB_DOWNLOAD_TIMEOUT="2")["error"]
    assert time.monotonic() - start < 30


def test_pages_have_an_end(hub, fetch):
    hub.commit(FILES)

    def lie(reply):
        if reply.kind == "tree":
            reply.headers["Link"] = f'<{hub.url}{reply.path}?cursor=0>; rel="next"'

    hub.lie = lie
    assert "more than 10 pages" in fetch()["error"]
    assert len(hub.requests) < 20


def test_a_size_beyond_the_disk_is_refused_before_a_byte_is_fetched(hub, fetch, tmp_path):
    hub.commit(FILES)

    def lie(reply):
        if reply.kind == "tree":
            entries = reply.json()
            for entry in entries:
                entry["size"] = 10**18
                if "lfs" in entry:
                    entry["lfs"]["size"] = 10**18
            reply.say(entries)

    hub.lie = lie
    result = fetch()
    assert result["exit_code"] == 2
    assert "are still to be downloaded and the disk of" in result["error"]
    assert hub.fetched() == []
    assert not (tmp_path / "out" / "recipe.lock.json").exists()


def test_only_what_was_checked_is_locked(hub, fetch, tmp_path):
    hub.commit(FILES)
    hub.served["tokenizer.json"] = bytes(reversed(FILES["tokenizer.json"]))
    assert "differs from the digest" in fetch()["error"]
    assert not (tmp_path / "out" / "recipe.lock.json").exists()


@pytest.mark.parametrize("where", ["info", "tree", "file", "next page"])
def test_the_token_stays_with_the_hub(hub, fetch, where):
    commit = hub.commit(FILES)
    hub.page = 3
    with HubServer() as other:
        other.commit(FILES)

        def lie(reply):
            if where == "next page" and "Link" in reply.headers:
                reply.headers["Link"] = reply.headers["Link"].replace(hub.url, other.url)
            elif reply.kind == where:
                reply.status, reply.body = 302, b""
                path = f"/acme/tiny/resolve/{commit}/{reply.path}" if where == "file" else reply.path
                reply.headers["Location"] = other.url + path

        hub.lie = lie
        assert set(fetch(HF_TOKEN="hf_secret")["files"]) == WANTED
        assert {asked.get("authorization") for asked in hub.asked} == {"Bearer hf_secret"}
        assert {asked.get("authorization") for asked in other.asked} <= {None}
        assert bool(other.asked) == (where != "next page")


def test_a_token_that_was_left_behind_is_not_taken_up_again(hub, fetch):
    commit = hub.commit(FILES)
    with HubServer() as other:
        other.commit(FILES)

        def away(reply):
            if reply.kind == "file":
                reply.status, reply.headers["Location"] = 302, f"{other.url}/{reply.path}"

        def back(reply):
            reply.status, reply.headers["Location"] = 302, f"{hub.url}/acme/tiny/resolve/{commit}/settings"

        hub.lie, other.lie = away, back
        fetch(HF_TOKEN="hf_secret")
        returned = [asked for (_, path), asked in zip(hub.requests, hub.asked, strict=True) if "settings" in path]
        assert returned
        assert {asked.get("authorization") for asked in returned} == {None}


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:x", "ftp://127.0.0.1/", "not an address", "http://"])
def test_an_endpoint_that_is_no_address_is_named(hub, fetch, endpoint):
    hub.commit(FILES)
    result = fetch(HF_ENDPOINT=endpoint)
    assert result["exit_code"] == 2
    assert "HF_ENDPOINT: " in result["error"]


def test_a_setting_that_the_client_cannot_read_is_named(hub, fetch):
    hub.commit(FILES)
    for setting in ({"HF_HUB_DOWNLOAD_TIMEOUT": "soon"}, {"HF_ENDPOINT": "http://["}):
        assert "in the environment (HF_…) cannot be used: " in fetch(**setting)["error"]


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
