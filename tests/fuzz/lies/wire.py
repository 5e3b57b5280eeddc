"""Lies in how the Hub says it: redirects, bodies that do not end or begin, broken HTTP, errors."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections.abc import Callable, Iterator

from tests.edgewright.hub_server import Reply
from tests.fuzz.lies.scene import MODES, TOKEN, Scene, on


# Redirects.
def _redirect(reply: Reply, to: str, status: int = 302) -> None:
    reply.status, reply.body = status, b""
    reply.headers["Location"] = to


for _label, _to in {
    "to itself": lambda r, s: r.path,
    "to another host": lambda r, s: f"{s.other.url}/acme/tiny/resolve/{s.commit}/{r.path}",
    "to another host by its user": lambda r, s: f"{s.hub.url}@127.0.0.1:{s.other.url.rpartition(':')[2]}/{r.path}",
    "to another host by a backslash": lambda r, s: f"{s.hub.url}\\@{s.other.url.removeprefix('http://')}/{r.path}",
    "to a file": lambda r, s: f"file://{s.mine}/precious",
    "to a port that is none": lambda r, s: "http://127.0.0.1:99999/x",
    "to nowhere": lambda r, s: "http://[",
    "to a relative nowhere": lambda r, s: "//",
    "to a name that is none": lambda r, s: "http://" + "a" * 300 + ".invalid/",
    "with control characters": lambda r, s: "http://127.0.0.1/\x01\x7f",
    "without a place": lambda r, s: "",
    "in a loop of two": lambda r, s: f"{s.hub.url}/x?{time.monotonic_ns()}",
}.items():
    for _kind in ("info", "file"):
        on(_kind, f"{_kind} redirects {_label}", lambda r, s, to=_to: _redirect(r, to(r, s)))


def _away_and_back(scene: Scene) -> None:
    def away(reply: Reply) -> None:
        if reply.kind == "file":
            _redirect(reply, f"{scene.other.url}/acme/tiny/resolve/{scene.commit}/{reply.path}")

    scene.hub.lie = away
    scene.other.lie = lambda reply: _redirect(reply, f"{scene.hub.url}/settings/tokens")


MODES["file redirects away and back"] = _away_and_back
MODES["everything redirects for ever"] = lambda scene: setattr(
    scene.hub, "lie", lambda reply: _redirect(reply, f"/again{time.monotonic_ns()}", 307)
)


# Bodies of files.
def _forever() -> Iterator[bytes]:
    return itertools.repeat(b"x" * 65536)


def _slowly() -> Iterator[bytes]:
    while True:
        time.sleep(0.3)
        yield b"x"


def _stall(piece: bytes) -> Iterator[bytes]:
    yield piece
    time.sleep(20)


def _whole(content: bytes) -> bytes:
    return content if isinstance(content, bytes) else b""


for _kind in ("info", "tree", "file"):
    on(_kind, f"{_kind} without an end", lambda r, s: setattr(r, "body", _forever()))
    on(_kind, f"{_kind} at three bytes a second", lambda r, s: setattr(r, "body", _slowly()))
    on(_kind, f"{_kind} that never begins", lambda r, s: time.sleep(20))
    on(_kind, f"{_kind} that stops half-way", lambda r, s: setattr(r, "body", _stall(_whole(r.body)[:5])))
    on(_kind, f"{_kind} breaks off", lambda r, s: r.headers.update({"Content-Length": str(len(r.body) + 9)}))
    on(_kind, f"{_kind} says it is compressed", lambda r, s: r.headers.update({"Content-Encoding": "gzip"}))
    on(_kind, f"{_kind} says it is something unknown", lambda r, s: r.headers.update({"Content-Encoding": "zip"}))
on("file", "other bytes of the same length", lambda r, s: setattr(r, "body", bytes(reversed(_whole(r.body)))))
_BOMB = gzip.compress(b"x" * (64 << 20))
for _kind in ("tree", "file"):
    on(
        _kind,
        f"{_kind} is 64 MB in 64 kB",
        lambda r, s: (setattr(r, "body", _BOMB), r.headers.update({"Content-Encoding": "gzip"})),
    )
on("file", "a login page", lambda r, s: setattr(r, "body", b"<html>"))
on("file", "nothing at all", lambda r, s: setattr(r, "body", b""))
on("file", "a length that is no number", lambda r, s: r.headers.update({"Content-Length": "many"}))
on("file", "a length of 10^18", lambda r, s: r.headers.update({"Content-Length": str(10**18)}))
on("file", "a length below zero", lambda r, s: r.headers.update({"Content-Length": "-5"}))
on("file", "a linked size of 10^18", lambda r, s: r.headers.update({"X-Linked-Size": str(10**18)}))


def _other_range(reply: Reply, scene: Scene) -> None:
    """Every body breaks off, and what follows is another part of the file than what was asked for."""
    if reply.status == 206:
        reply.headers["Content-Range"] = "bytes 0-4/1100"
    elif reply.status == 200 and isinstance(reply.body, bytes):
        reply.headers["Content-Length"] = str(len(reply.body))
        reply.body = iter([reply.body[:10]])


on("file", "another range than was asked for", _other_range)
on("file", "a range that nobody asked for", lambda r, s: setattr(r, "status", 206))


# The protocol.
def raw(name: str, write: Callable[[Callable[[bytes], object]], None]) -> None:
    for kind in ("info", "file"):
        on(kind, f"{kind} is {name}", lambda r, s: setattr(r, "raw", write))


def _endless_headers(send: Callable[[bytes], object]) -> None:
    send(b"HTTP/1.1 200 OK\r\n")
    while True:
        send(b"X-A: b\r\n")


def _slow_headers(send: Callable[[bytes], object]) -> None:
    for byte in itertools.chain(b"HTTP/1.1 200 OK\r\nX-A: ", itertools.repeat(97)):
        send(bytes([byte]))
        time.sleep(0.3)


def _continue_for_ever(send: Callable[[bytes], object]) -> None:
    while True:
        send(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)


def _slow_chunk(send: Callable[[bytes], object]) -> None:
    send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;")
    while True:
        send(b"a")
        time.sleep(0.3)


raw("no HTTP", lambda send: send(b"\x16\x03\x01\x02\x00" * 100))
raw("nothing", lambda send: None)
raw("an endless header", _endless_headers)
raw("a slow header", _slow_headers)
raw("a hundred times Continue", _continue_for_ever)
raw("a chunk that never begins", _slow_chunk)
raw("a chunk of negative length", lambda send: send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc"))
raw(
    "of two lengths", lambda send: send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + b"x" * 6)
)
raw("another protocol", lambda send: send(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nabc"))
raw("of status 999", lambda send: send(b"HTTP/1.1 999 \xff\xfe\x1b[2J\r\nContent-Length: 0\r\n\r\n"))
raw("of status 000", lambda send: send(b"HTTP/1.1 000 None\r\nContent-Length: 0\r\n\r\n"))
on(
    "any",
    "cookies that are none",
    lambda r, s: r.headers.update({"Set-Cookie": '=;;;expires=99; domain=..; path="\xff\x80; max-age=1e999'}),
)

# Errors.
for _status in (204, 304, 400, 401, 402, 403, 404, 409, 410, 416, 418, 451, 500, 503, 599):
    on(
        ("info", "tree", "file")[_status % 3],
        f"status {_status}",
        lambda r, s, status=_status: (setattr(r, "status", status), setattr(r, "body", b"")),
    )


def _error(reply: Reply, body: bytes | Iterator[bytes], **headers: str) -> None:
    reply.status, reply.body = 500, body
    reply.headers = {name.replace("_", "-"): value for name, value in headers.items()}


on("tree", "an error in a list", lambda r, s: _error(r, b"[1]"))
on("tree", "an error that is null", lambda r, s: _error(r, b"null"))
on("tree", "a deep error", lambda r, s: _error(r, b"[" * 100_000))
on("file", "an error without an end", lambda r, s: _error(r, _forever()))
on("tree", "an error with escapes", lambda r, s: _error(r, b"", X_Error_Message="\x1b[2J\x1b]0;owned\x07"))
on(
    "tree",
    "an error that repeats the token",
    lambda r, s: _error(r, json.dumps({"error": TOKEN}).encode(), X_Error_Message=TOKEN, X_Request_Id=TOKEN),
)


def _come_back(reply: Reply, scene: Scene) -> None:
    reply.status, reply.body = 429, b""
    reply.headers = {"Retry-After": "1000000", "RateLimit": '"api";r=0;t=1000000'}


on("info", "asks to come back next week", _come_back)
on("file", "asks to come back next week for the files", _come_back)
on("any", "a warning with escapes", lambda r, s: r.headers.update({"X-HF-Warning": f"a; \x1b[2J{TOKEN}"}))
