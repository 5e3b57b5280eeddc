"""Lies in what the Hub says: headers that a client may take for paths, the newest commit, listings and their pages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from tests.edgewright.hub_server import Reply
from tests.fuzz.lies.scene import SHARD, Scene, on

# Headers that a client may take for paths.
_PATHS = {
    "a file of the user": lambda s: f"{s.mine}/precious",
    "a new file": lambda s: f"{s.mine}/new",
    "out of the cache": lambda s: "../" * 6 + "mine/new",
    "another repository": lambda s: "../../models--acme--other/blobs/" + "0" * 40,
    "its own snapshot": lambda s: f"../snapshots/{s.commit}/config.json",
    "a folder": lambda s: "..",
    "very long": lambda s: "a" * 5000,
}
for _label, _path in _PATHS.items():
    on(
        "file",
        f"etag is {_label}",
        lambda r, s, path=_path: r.headers.update({"ETag": f'"{path(s)}"', "X-Linked-Etag": f'"{path(s)}"'}),
    )
    on("file", f"commit header is {_label}", lambda r, s, path=_path: r.headers.update({"X-Repo-Commit": path(s)}))


def _missing(reply: Reply, scene: Scene) -> None:
    reply.status, reply.body = 404, b""
    reply.headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": f"{scene.mine}/empty"}


on("file", "missing files at a commit that is a path", _missing)
on("file", "content-disposition names a file", lambda r, s: r.headers.update(disposition=f'filename="{s.mine}/new";'))
on("file", "etag of another file", lambda r, s: r.headers.update({"X-Linked-Etag": '"' + "0" * 64 + '"'}))
on("file", "no etag, no commit", lambda r, s: r.headers.clear())

# The newest commit.
for _label, _answer in {
    "a path": lambda s: {"id": "acme/tiny", "sha": f"{s.mine}/tree"},
    "a relative path": lambda s: {"id": "acme/tiny", "sha": "../" * 6 + "mine/tree"},
    "an integer": lambda s: {"id": "acme/tiny", "sha": 10**39},
    "null": lambda s: {"id": "acme/tiny", "sha": None},
    "missing": lambda s: {"id": "acme/tiny"},
    "a list": lambda s: {"id": "acme/tiny", "sha": ["0" * 40]},
    "a branch": lambda s: {"id": "acme/tiny", "sha": "main"},
    "in capitals": lambda s: {"id": "acme/tiny", "sha": "A" * 40},
    "followed by a line": lambda s: {"id": "acme/tiny", "sha": s.commit + "\n"},
    "in a list": lambda s: [{"sha": s.commit}],
}.items():
    on("info", f"newest commit: {_label}", lambda r, s, answer=_answer: r.say(answer(s)))

# Bodies that are no JSON, or no JSON to read.
_BODIES = {
    "HTML": b"<html><body>Please log in to the network</body></html>",
    "null": b"null",
    "a string": b'"tree"',
    "empty": b"",
    "cut": b'[{"type": "file", "pa',
    "deep": b"[" * 500_000,
    "deep objects": b'{"a":' * 200_000,
    "a huge number": b'[{"type":"file","path":"model.safetensors","size":' + b"9" * 10_000 + b"}]",
    "not UTF-8": b'["\xff\xfe"]',
    "many small lists": b"[" + b"[]," * 600_000 + b"[]]",
    "longer than any listing": b" " * (3 << 20) + b"[]",
}
for _kind, (_label, _body) in itertools.product(("info", "tree"), _BODIES.items()):
    on(_kind, f"{_kind} is {_label}", lambda r, s, body=_body: setattr(r, "body", body))


# Entries of the listing.
def entry(name: str, change: Callable[[dict], object], of: str = SHARD) -> None:
    """A mode that changes one entry of the listing."""

    def edit(reply: Reply, scene: Scene) -> None:
        entries = reply.json()
        for item in entries:
            if item["path"] == of:
                change(item)
        reply.say(entries)

    on("tree", f"entry: {name}", edit)


for _size in (10**18, 2**70, -1, "1100", 1100.5, None, True, [1]):
    entry(f"size {_size!r}", lambda e, v=_size: (e.update(size=v), e["lfs"].update(size=v)))
    entry(f"size of a small file {_size!r}", lambda e, v=_size: e.update(size=v), "config.json")
entry("no size", lambda e: e.pop("size"))
entry("two sizes", lambda e: e["lfs"].update(size=5))
entry("smaller than it is", lambda e: (e.update(size=5), e["lfs"].update(size=5)))
entry("larger than it is", lambda e: (e.update(size=5000), e["lfs"].update(size=5000)))
entry("empty, it says", lambda e: (e.update(size=0), e["lfs"].update(size=0)))
entry("no oid", lambda e: e.pop("oid"), "config.json")
entry("oid is an integer", lambda e: e.update(oid=7), "config.json")
entry("oid is a path", lambda e: e.update(oid="../../../../../../mine/new"), "config.json")
entry("oid of something else", lambda e: e.update(oid="0" * 40), "config.json")
entry("sha256 is an integer", lambda e: e["lfs"].update(oid=7))
entry("sha256 is a path", lambda e: e["lfs"].update(oid="../../../../../../mine/new"))
entry("sha256 in capitals", lambda e: e["lfs"].update(oid=e["lfs"]["oid"].upper()))
entry("sha256 followed by a line", lambda e: e["lfs"].update(oid=e["lfs"]["oid"] + "\n"))
entry("sha256 of something else", lambda e: e["lfs"].update(oid="0" * 64))
entry("no sha256", lambda e: e["lfs"].pop("oid"))
entry("lfs is a list", lambda e: e.update(lfs=[1]))
entry("lfs is a string", lambda e: e.update(lfs="yes"))
entry("lfs is empty", lambda e: e.update(lfs={}))
entry("no path", lambda e: e.pop("path"))
entry("path is a number", lambda e: e.update(path=5))
entry("path is null", lambda e: e.update(path=None))
entry("type is a list", lambda e: e.update(type=["file"]))
for _label, _path in {
    "leaves the folder": "model-../../x.safetensors",
    "leaves the cache": "model-/../../../../../../../mine/new.safetensors",
    "with NUL": "model-\0.safetensors",
    "with escapes": "model-\x1b[2J\x1b]0;owned\x07.safetensors",
    "with other escapes": "model-\x9b2J\u202e.safetensors",
    "with half a character": "model-\ud800.safetensors",
    "of two lines": "model-\n.safetensors",
    "with an empty part": "model-a//b.safetensors",
    "with backslashes": "model-\\..\\x.safetensors",
    "with a colon": "model-C:x.safetensors",
    "with a long name": "model-" + "a" * 300 + ".safetensors",
    "of many parts": "model-" + "a/" * 400 + ".safetensors",
    "of a megabyte": "model-" + "a" * 1_000_000 + ".safetensors",
    "below another file": "tokenizer.json/model.safetensors",
    "out and in again": f"LICENSE/../../../{SHARD}",
}.items():
    entry(f"path {_label}", lambda e, path=_path: e.update(path=path))


def listing(name: str, change: Callable[[list], object]) -> None:
    """A mode that changes the listing as a whole."""

    def edit(reply: Reply, scene: Scene) -> None:
        entries = reply.json()
        change(entries)
        reply.say(entries)

    on("tree", f"listing: {name}", edit)


_FOLDER = {"type": "file", "path": f"{SHARD}/model.safetensors", "oid": "0" * 40, "size": 1}
listing("a file twice", lambda entries: entries.append(entries[0]))
listing("two names that are one on a Mac", lambda entries: entries.append({**entries[0], "path": "LICENSE"}))
listing("and in capitals", lambda entries: entries.extend({**entries[0], "path": p} for p in ("LICENSEa", "LICENSEA")))
listing("a file that is a folder too", lambda entries: entries.append({**entries[1], "path": f"{SHARD}/LICENSE"}))
listing("a file below a file", lambda entries: entries.append({**entries[0], "path": "LICENSE/a"}))
listing("entries that are none", lambda entries: entries.extend([None, 5, "x", []]))
listing(
    "two thousand shards",
    lambda entries: entries.extend({**entries[1], "path": f"model-{n}.safetensors"} for n in range(2000)),
)
on("tree", "listing in an object", lambda r, s: r.say({"files": r.json()}))


# Pages.
def _pages(reply: Reply, scene: Scene) -> None:
    reply.headers["Link"] = f'<{scene.hub.url}{reply.path}?cursor=0>; rel="next"'


def _empty_pages(reply: Reply, scene: Scene) -> None:
    reply.body = b"[]"
    _pages(reply, scene)


on("tree", "pages without end", _pages)
on("tree", "empty pages without end", _empty_pages)
on("tree", "slow pages without end", lambda r, s: (time.sleep(0.7), _pages(r, s)))
for _label, _link in {
    "at another host": lambda s: f"<{s.other.url}/api/models/acme/tiny/tree/{s.commit}>",
    "in a file": lambda s: f"<file://{s.mine}/precious?a=b>",
    "at no address": lambda s: "<http://[::1?a>",
    "with a long tail": lambda s: "<" + "?" * 60_000,
    "with many brackets": lambda s: "<?a>;" * 9_000,
    "elsewhere by its query": lambda s: "<?cursor=../../../../api/whoami-v2#/?x=1>",
}.items():
    on(
        "tree",
        f"next page {_label}",
        lambda r, s, link=_link: r.headers.update({"Link": link(s) + '; rel="next"'}),
    )
