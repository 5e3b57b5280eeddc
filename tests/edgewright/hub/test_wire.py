"""Downloads that break off and go on, answers that have no end, and where the token goes."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.edgewright.hub_server import HubServer

from .conftest import FILES, WANTED

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


def test_two_runs_at_once_fetch_each_file_once(hub, fetch):
    commit = hub.commit(FILES)
    hub.lie = lambda reply: reply.kind == "file" and time.sleep(0.3)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(fetch, [commit, commit]))
    assert [set(result["files"]) for result in results] == [WANTED, WANTED]
    assert sorted(hub.fetched()) == sorted(WANTED)


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
    assert "HTTP status 429; run again later" in fetch()["error"]  # the child has two minutes, of the day asked for


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
    assert "too slow: 64 KiB or a whole answer may take 2 seconds" in fetch(HF_HUB_DOWNLOAD_TIMEOUT="2")["error"]


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
