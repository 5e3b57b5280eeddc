"""A download-only stand-in for the Hub on this machine: what is asked of it, and lies and faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin")


@dataclass
class Reply:
    """What the server is about to answer.

    `kind` is info, tree, file or other, `path` the file's or the request's. A body that is no bytes is sent piece by
    piece until the client leaves, without a length unless `headers` have one. `raw` writes to the connection instead,
    from the status line on.
    """

    kind: str
    path: str
    status: int = 200
    body: bytes | Iterable[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict)
    raw: Callable[[Callable[[bytes], object]], None] | None = None

    def json(self) -> Any:
        return json.loads(self.body)

    def say(self, content: object) -> None:
        """Answer with this as JSON."""
        self.body = json.dumps(content).encode()


class HubServer:
    """One repository, `acme/tiny`, with commits that map paths to bytes; the newest commit is main.

    `served` overrides the bytes of a path without its digests knowing: a damaged download. `lie` may change any reply.
    `page` splits listings.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.served: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.page = 1000
        self.lie: Callable[[Reply], object] = lambda reply: None
        self.requests: list[tuple[str, str]] = []
        self.asked: list[dict[str, str]] = []  # the headers of each request, names in lower case
        self.sent = 0  # bytes of bodies that were sent piece by piece
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits.pop(oid, None)
        self.commits[oid] = files
        return oid

    def fetched(self) -> list[str]:
        """Paths whose content was asked for."""
        return [path.split("/", 5)[-1] for method, path in self.requests if method == "GET" and "/resolve/" in path]

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.hub.asked.append({name.lower(): value for name, value in self.headers.items()})
        reply = self._reply(path)
        self.hub.lie(reply)
        try:
            self._send(reply)
        except ConnectionError:
            self.close_connection = True

    do_HEAD = do_GET

    def _reply(self, path: str) -> Reply:
        head = next(reversed(self.hub.commits))
        for pattern, status in self.hub.status.items():
            if re.search(pattern, path):
                code = {403: "GatedRepo", 404: "RepoNotFound"}.get(status, "")
                return Reply("other", path, status, b"{}", {"X-Error-Code": code, "X-Error-Message": "refused"})
        if match := re.fullmatch(r"/api/models/acme/tiny(?:/revision/(.+))?", path):
            reply = Reply("info", path)
            reply.say({"id": "acme/tiny", "modelId": "acme/tiny", "sha": match[1] or head, "siblings": []})
            return reply
        if match := re.fullmatch(r"/api/models/acme/tiny/tree/(.+)", path):
            if match[1] not in self.hub.commits:
                return Reply("tree", path, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return self._tree(path, [_entry(p, content) for p, content in self.hub.commits[match[1]].items()])
        if match := re.fullmatch(r"/acme/tiny/resolve/([0-9a-f]{40})/(.+)", path):
            return self._resolve(match[1], match[2])
        return Reply("other", path, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _tree(self, path: str, entries: list[dict]) -> Reply:
        reply = Reply("tree", path)
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        reply.say(entries[start : start + self.hub.page])
        if len(entries) > start + self.hub.page:
            following = f"{self.hub.url}{path}?recursive=True&cursor={start + self.hub.page}"
            reply.headers["Link"] = f'<{following}>; rel="next"'
        return reply

    def _resolve(self, commit: str, path: str) -> Reply:
        content = self.hub.commits.get(commit, {}).get(path)
        if content is None:
            return Reply("file", path, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        entry = _entry(path, content)
        reply = Reply("file", path, headers={"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'})
        if "lfs" in entry:
            reply.headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        reply.body = self.hub.served.get(path, content)
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, end = int(match[1]), len(reply.body)
            if start >= end:
                return Reply("file", path, 416, b"", {"Content-Range": f"bytes */{end}"})
            reply.status, reply.body = 206, reply.body[start:]
            reply.headers["Content-Range"] = f"bytes {start}-{end - 1}/{end}"
        return reply

    def _send(self, reply: Reply) -> None:
        if reply.raw is not None:
            reply.raw(self.wfile.write)
            self.close_connection = True
            return
        self.send_response(reply.status)
        if isinstance(reply.body, bytes):
            reply.headers.setdefault("Content-Length", str(len(reply.body)))
        else:
            reply.headers.setdefault("Connection", "close")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(reply.body, bytes):
            self.wfile.write(reply.body)
            return
        for piece in reply.body:
            self.wfile.write(piece)
            self.hub.sent += len(piece)
        self.close_connection = True


def _entry(path: str, content: bytes) -> dict:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "oid": blob, "size": len(content)}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return entry
