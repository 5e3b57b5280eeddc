"""Publishing while things go wrong: under the tag there is everything or nothing, and the next run goes on."""

from __future__ import annotations

import os
import signal

import pytest

from .packages import FILES, contents, package
from .repositories import Blob
from .writable import Fault

REPO = "acme/small-edge"
VARIANT = "onnx-int4-32.3kB"


@pytest.fixture
def onnx(tmp_path):
    return package(tmp_path / "build" / "onnx")


def complete(repo, folder, revision="main"):
    """Whether a revision holds the whole package and the root files."""
    files = repo.files(revision)
    whole = {f"{VARIANT}/{name}": content for name, content in contents(folder).items()}
    return whole.items() <= files.items() and {"README.md", "config.json", "edgewright.index.json"} <= files.keys()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop", "PUT", "/store/", after=9000),
        Fault("status", "PUT", "/store/", status=500),
        Fault("status", "PUT", "/store/", status=429, headers={"Retry-After": "0"}),
        Fault("lost", "PUT", "/store/"),
        Fault("status", "POST", "/preupload/", status=503),
        Fault("status", "POST", "/commit/", status=500),
        Fault("status", "POST", "/commit/", status=429, headers={"Retry-After": "1"}),
        Fault("drop", "POST", "/commit/", after=200),
        Fault("lost", "POST", "/commit/"),
        Fault("status", "POST", "/tag/", status=502),
        Fault("lost", "POST", "/tag/"),
        Fault("status", "POST", "/repos/create", status=429, times=2),
        Fault("lost", "POST", "/repos/create"),
        Fault("status", "GET", "/tree/", status=504, times=2),
        Fault("drop", "GET", "/refs"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status if fault.kind == 'status' else ''} {fault.method} {fault.path}",
)
def test_what_passes_by_itself_is_waited_for(writable, edgewright, onnx, fault):
    writable.faults = [Fault(**vars(fault))]
    done = edgewright("publish", onnx, "--repo", REPO, "--json")
    assert done.code == 0, done.err
    assert writable.faults[0].times == 0
    repo = writable.repos[REPO]
    assert len(repo.commits) == 2 and repo.tags == {done.json()["tag"]: repo.head} and complete(repo, onnx)


def test_a_retry_waits_as_long_as_the_hub_asks(writable, edgewright, onnx):
    import time

    writable.faults = [Fault("status", "POST", "/tag/", status=429, headers={"Retry-After": "3"})]
    begin = time.monotonic()
    assert edgewright("publish", onnx, "--repo", REPO).code == 0
    assert time.monotonic() - begin > 3


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/repos/create"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("PUT", "/store/"),
        ("POST", "/lfs/verify"),
        ("POST", "/validate-yaml"),
        ("POST", "/commit/"),
        ("POST", "/tag/"),
        ("GET", "/refs"),
    ],
)
def test_wherever_it_breaks_off_no_tag_shows_a_part_and_the_next_run_goes_on(writable, edgewright, onnx, method, path):
    writable.faults = [Fault("status", method, path, status=400, times=99)]
    broken = edgewright("publish", onnx, "--repo", REPO)
    assert broken.code == 2 and REPO in broken.err
    assert REPO not in writable.repos or writable.repos[REPO].tags == {}

    stored = len(writable.store)
    writable.faults, writable.log = [], []
    assert edgewright("publish", onnx, "--repo", REPO).code == 0
    repo = writable.repos[REPO]
    (tagged,) = repo.tags.values()
    assert complete(repo, onnx, tagged) and len(repo.commits) == 2
    assert len(writable.requests("PUT", "/store/")) == len(writable.store) - stored


def test_a_kill_at_any_request_that_writes_leaves_no_part_under_a_tag(writable, edgewright, onnx):
    edgewright("publish", onnx, "--repo", REPO)
    asked = [(method, path) for method, path, _ in writable.log if method != "GET"]
    assert len(asked) >= 10
    tagged = 0
    for number in range(len(asked) + 1):  # the last kill: while the refs are read back
        writable.reset()
        last = number == len(asked)
        kill = Fault(
            "first",
            "GET" if last else "POST|PUT",
            "/refs" if last else "",
            skip=1 if last else number,
            action=lambda: os.kill(edgewright.process, signal.SIGKILL),
        )
        writable.faults = [kill]
        assert edgewright("publish", onnx, "--repo", REPO).code == -signal.SIGKILL
        if REPO in writable.repos and writable.repos[REPO].tags:
            tagged += 1
            assert all(complete(writable.repos[REPO], onnx, tag) for tag in writable.repos[REPO].tags)
        writable.faults = []
        assert edgewright("publish", onnx, "--repo", REPO).code == 0
        repo = writable.repos[REPO]
        assert complete(repo, onnx) and len(repo.commits) == 2 and list(repo.tags.values()) == [repo.head]
    assert tagged  # the last kill came after the tag; one while it is asked for may come in time


def test_somebody_elses_commit_meanwhile_wins(writable, edgewright, onnx, tmp_path):
    edgewright("publish", onnx, "--repo", REPO)
    repo = writable.repos[REPO]
    before = dict(repo.tags)
    other = package(tmp_path / "again", files={**FILES, "model.onnx": b"\0newer"})
    writable.faults = [Fault("first", "POST", "/commit/", action=lambda: repo.write(NOTES=b"theirs"))]
    refused = edgewright("publish", other, "--repo", REPO)
    assert refused.code == 2 and "somebody else committed to it meanwhile" in refused.err
    assert 412 in writable.requests("POST", "/commit/")
    assert repo.tags == before and repo.files()["NOTES"] == b"theirs"
    assert edgewright("publish", other, "--repo", REPO).code == 0
    assert repo.files()["NOTES"] == b"theirs" and len(repo.tags) == 2


def test_a_hub_that_holds_something_else_gets_no_tag(writable, edgewright, onnx):
    def spoil():
        tree = writable.repos[REPO].commits[writable.repos[REPO].head]
        if f"{VARIANT}/model.onnx" in tree:
            tree[f"{VARIANT}/model.onnx"] = Blob(b"\0GRAPH" * 50, True)

    writable.faults = [Fault("first", "GET", "/tree/", times=99, action=spoil)]
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2
    assert f"holds something else than what was sent ({VARIANT}/model.onnx)" in refused.err
    assert writable.repos[REPO].tags == {}


def test_a_tag_that_somebody_made_meanwhile_is_noticed(writable, edgewright, onnx):
    def take():
        repo = writable.repos[REPO]
        repo.tags["v1"] = next(iter(repo.commits))

    writable.faults = [Fault("first", "POST", "/tag/", action=take)]
    refused = edgewright("publish", onnx, "--repo", REPO, "--tag", "v1")
    assert refused.code == 2 and "the tag v1 points at" in refused.err


def test_a_hub_that_is_not_there_or_switched_off_is_one_message(writable, edgewright, onnx):
    writable.faults = [Fault("drop", "GET", "/api/models/", times=99)]
    broken = edgewright("publish", onnx, "--repo", REPO)
    assert broken.code == 2 and "publishing broke off (" in broken.err and "Run again" in broken.err
    assert writable.repos == {}


@pytest.mark.parametrize(
    ("path", "answer"), [("/refs", b"<html>"), ("/refs", b"{}"), ("/commit/", b"{}"), ("/preupload/", b"null")]
)
def test_an_answer_that_makes_no_sense_is_one_message(writable, edgewright, onnx, path, answer):
    method = "GET" if path == "/refs" else "POST"
    writable.faults = [Fault("status", method, path, status=200, answer=answer, times=99)]
    broken = edgewright("publish", onnx, "--repo", REPO)
    assert broken.code == 2 and "publishing broke off (" in broken.err
    assert writable.repos[REPO].tags == {}
