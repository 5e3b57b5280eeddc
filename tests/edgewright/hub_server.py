"""A download-only stand-in for the Hub on this machine: what the real client asks for, and faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")


class HubServer:
    """One repository, `acme/tiny`, with commits that map paths to bytes; the newest commit is main.

    `served` overrides the bytes of a path without its digests knowing: a damaged download.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.served: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
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
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
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
        head = next(reversed(self.hub.commits))
        for pattern, status in self.hub.status.items():
            if re.search(pattern, path):
                code = {403: "GatedRepo", 404: "RepoNotFound"}.get(status, "")
                return self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "refused"})
        if match := re.fullmatch(r"/api/models/acme/tiny(?:/revision/(.+))?", path):
            return self._json({"id": "acme/tiny", "modelId": "acme/tiny", "sha": match[1] or head, "siblings": []})
        if match := re.fullmatch(r"/api/models/acme/tiny/tree/(.+)", path):
            if match[1] not in self.hub.commits:
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return self._json([_entry(p, content) for p, content in self.hub.commits[match[1]].items()])
        if match := re.fullmatch(r"/acme/tiny/resolve/([0-9a-f]{40})/(.+)", path):
            return self._resolve(match[1], match[2])
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _resolve(self, commit: str, path: str) -> None:
        content = self.hub.commits.get(commit, {}).get(path)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        entry = _entry(path, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        return self._send(200, self.hub.served.get(path, content), headers)

    def _json(self, body: object) -> None:
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(path: str, content: bytes) -> dict:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "oid": blob, "size": len(content)}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return entry
