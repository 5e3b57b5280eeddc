"""A Hub on this machine that can be written to, under the real client: repositories, large files, commits, tags.

Modelled on what huggingface_hub 2.4 asks for. `faults` go wrong on request, `log` holds every request with its status.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from .identity import EXCHANGED, READER, WRITER, Identity, Refused
from .repositories import Blob, Repo

_LARGE = (".safetensors", ".onnx", ".bin", ".data")
_CHUNK = 1 << 14


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match, after the first `skip` of them.

    status: answered with that and `answer`. drop: the connection ends after `after` bytes of the body, the request's or
    (GET) the answer's. lost: done, and the answer never arrives. first: `action` happens before the request is served.
    """

    kind: Literal["status", "drop", "lost", "first"]
    method: str  # a pattern, as `path` is
    path: str
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b"{}"
    after: int = 0
    skip: int = 0
    action: Callable[[], object] = lambda: None


class WritableHub:
    """The server. `acme` is the namespace of both tokens; only WRITER's may be written to."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.store: dict[str, bytes] = {}  # large files by their sha256, named by a commit or not
        self.damaged: dict[str, bytes] = {}  # what is served in place of a path's bytes
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int | str]] = []
        self.ranges: list[str] = []  # parts of files that were asked for
        self.page = 1000
        self.publishers: set[str] = set()

    def make(self, name: str, *, private: bool = True, **files: bytes) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit({".gitattributes": Blob(b"*.onnx filter=lfs diff=lfs merge=lfs -text\n", False)})
        if files:
            repo.write(**files)
        return repo

    def requests(self, method: str, path: str) -> list[int | str]:
        """The statuses of the requests of that method whose path has this in it."""
        return [status for m, p, status in self.log if m == method and path in p]

    def __enter__(self) -> WritableHub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        pass  # a client that was killed


class _Dropped(Exception):
    pass


class _Handler(Identity, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
    hub: WritableHub

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        self.address = urlsplit(self.path)
        self.query = parse_qs(self.address.query)
        self.fault = self._next_fault()
        self.unread = True
        try:
            if self.fault and self.fault.kind == "first":
                self.fault.action()
            if self.fault and self.fault.kind == "status":
                self._body()
                self._send(self.fault.status, self.fault.answer, self.fault.headers)
                return
            status, answer, headers = self._route()
            if self.unread:
                self._body()
            if self.fault and self.fault.kind == "lost":
                raise _Dropped
            self._send(status, answer, headers)
        except Refused as error:
            if self.unread:
                self._body()
            headers = {"X-Error-Message": error.message, "X-Error-Code": error.code}
            self._send(error.status, json.dumps({"error": error.message}).encode(), headers)
        except (_Dropped, ConnectionError):
            self.hub.log.append((self.command, self.address.path, "dropped"))
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_HEAD = _serve

    def _next_fault(self) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and re.fullmatch(fault.method, self.command) and re.search(fault.path, self.path):
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None

    def _body(self) -> bytes:
        """The request's body, announced or in chunks."""
        self.unread = False
        received = bytearray()
        for piece in self._pieces():
            received += piece
            if self.fault and self.fault.kind == "drop" and len(received) >= self.fault.after:
                raise _Dropped
        if self.fault and self.fault.kind == "drop" and self.command != "GET":
            raise _Dropped
        return bytes(received)

    def _pieces(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while length := int(self.rfile.readline() or b"0", 16):
                yield self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, _CHUNK))
            if not piece:  # who sent it was killed: without this the thread would go round for good
                raise ConnectionAbortedError
            left -= len(piece)
            yield piece

    def _send(self, status: int, answer: bytes, headers: dict[str, str]) -> None:
        self.hub.log.append((self.command, self.address.path, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.kind == "drop":
            self.wfile.write(answer[: self.fault.after])
            self.close_connection = True
            return
        self.wfile.write(answer)

    def _route(self) -> tuple[int, bytes, dict[str, str]]:
        path = unquote(self.address.path)
        for method, pattern, name in _ROUTES:
            if (method == self.command or (method, self.command) == ("GET", "HEAD")) and (
                found := re.fullmatch(pattern, path)
            ):
                answer = getattr(self, f"_{name}")(*found.groups())
                return answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode(), {})
        raise Refused(404, f"{self.command} {path}: not here")

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._token() != READER and not self._writes(name)):
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write and not self._writes(name):
            raise Refused(403, f"{self._token()} has no write access to {name}")  # repeats the token, as no Hub should
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        commit = repo.find(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- repositories

    def _whoami(self) -> Any:
        self._known()
        return {"type": "user", "name": "acme", "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def _create(self) -> Any:
        wanted = json.loads(self._body())
        self._known()
        name = f"{wanted['organization']}/{wanted['name']}"
        if self._token().startswith(EXCHANGED):  # such a token makes nothing
            return {"url": f"{self.hub.url}/{name}", "name": name}
        if self._token() != WRITER or wanted["organization"] != "acme":
            raise Refused(403, f"You don't have the rights to create a model under {wanted['organization']}")
        with self.hub.lock:
            if name in self.hub.repos:
                said = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
                return 409, json.dumps(said).encode(), {}
            self.hub.make(name, private=wanted.get("visibility") == "private")
        return {"url": f"{self.hub.url}/{name}", "name": name}

    def _info(self, name: str, revision: str | None = None) -> Any:
        repo = self._repo(name)
        return {
            "id": name,
            "modelId": name,
            "sha": self._commit_of(repo, revision or "main"),
            "private": repo.private,
            "siblings": [],
        }

    def _tree(self, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self._repo(name)
        recursive = self.query.get("recursive", ["False"])[0].lower() == "true"
        listed = []
        for path, blob in sorted(repo.commits[self._commit_of(repo, revision)].items()):
            if not recursive and "/" in path:
                continue
            entry = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content)}
            if blob.large:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
            listed.append(entry)
        start = int(self.query.get("cursor", ["0"])[0])
        following = f"{self.hub.url}{self.address.path}?recursive={recursive}&cursor={start + self.hub.page}"
        more = len(listed) > start + self.hub.page
        headers = {"Link": f'<{following}>; rel="next"'} if more else {}
        return 200, json.dumps(listed[start : start + self.hub.page]).encode(), headers

    def _refs(self, name: str) -> Any:
        repo = self._repo(name)
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}
        return {"branches": [main], "tags": tags, "converts": []}

    def _tag(self, name: str, revision: str) -> Any:
        wanted = json.loads(self._body())
        repo = self._repo(name, write=True)
        with self.hub.lock:
            if wanted["tag"] in repo.tags:
                raise Refused(409, "Reference already exists")
            repo.tags[wanted["tag"]] = self._commit_of(repo, revision)
        return {}

    # ---- writing

    def _validate(self) -> Any:
        card = json.loads(self._body())["content"]
        if "license: forbidden" in card:
            return 400, json.dumps({"errors": [{"message": '"license" must be one of …'}]}).encode(), {}
        return {"errors": [], "warnings": []}

    def _preupload(self, name: str, revision: str) -> Any:
        wanted = json.loads(self._body())
        repo = self._repo(name, write=True)
        tree = repo.commits[self._commit_of(repo, revision)]
        files = []
        for file in wanted["files"]:
            large = file["path"].endswith(_LARGE) or b"\0" in base64.b64decode(file["sample"])
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if blob := tree.get(file["path"]):
                answer["oid"] = blob.sha256 if blob.large else blob.oid
            files.append(answer)
        return {"files": files}

    def _batch(self, name: str) -> Any:
        wanted = json.loads(self._body())
        self._repo(name, write=True)
        objects = []
        for item in wanted["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.store:
                upload = {"href": f"{self.hub.url}/store/{item['oid']}", "header": {}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/{name}.git/info/lfs/verify"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _put(self, digest: str) -> tuple[int, bytes, dict[str, str]]:
        content = self._body()
        if hashlib.sha256(content).hexdigest() != digest:
            raise Refused(400, "BadDigest")
        self.hub.store[digest] = content
        return 200, b"", {"ETag": f'"{digest[:32]}"'}

    def _verify(self, name: str) -> Any:
        wanted = json.loads(self._body())
        if len(self.hub.store.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(422, "no such object")
        return {}

    def _commit(self, name: str, revision: str) -> Any:
        head, *operations = [json.loads(line) for line in self._body().splitlines()]
        with self.hub.lock:
            repo = self._repo(name, write=True)
            if head["value"].get("parentCommit") not in (None, repo.head):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(repo.commits[repo.head])
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "file":
                    tree[value["path"]] = Blob(base64.b64decode(value["content"]), False)
                elif operation["key"] == "lfsFile":
                    if value["oid"] not in self.hub.store:
                        raise Refused(400, "LFS pointer pointed to a file that does not exist")
                    tree[value["path"]] = Blob(self.hub.store[value["oid"]], True)
                else:
                    assert operation["key"] == "deletedFile", operation
                    del tree[value["path"]]
            commit = repo.commit(tree)
        return {"commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"}

    # ---- reading

    def _resolve(self, name: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self._repo(name)
        commit = self._commit_of(repo, revision)
        blob = repo.commits[commit].get(path)
        if blob is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
            return 302, b"", {**headers, "Location": f"{self.hub.url}/cdn/{commit}/{name}/{path}"}
        return self._ranged(path, blob, headers)

    def _cdn(self, commit: str, name: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        return self._ranged(path, self.hub.repos[name].commits[commit][path], {})

    def _ranged(self, path: str, blob: Blob, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        content = self.hub.damaged.get(path, blob.content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked:
            return 200, content, headers
        self.hub.ranges.append(path)
        start = int(asked[1])
        return 206, content[start:], {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}


_REPO = r"/api/models/([^/]+/[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("GET", r"/github/identity", "id_token"),
    ("POST", r"/oauth/token", "exchange"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", _REPO, "info"),
    ("GET", _REPO + r"/revision/([^/]+)", "info"),
    ("GET", _REPO + r"/tree/([^/]+)", "tree"),
    ("GET", _REPO + r"/refs", "refs"),
    ("POST", _REPO + r"/tag/([^/]+)", "tag"),
    ("POST", _REPO + r"/preupload/([^/]+)", "preupload"),
    ("POST", _REPO + r"/commit/([^/]+)", "commit"),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("POST", r"/(.+)\.git/info/lfs/verify", "verify"),
    ("PUT", r"/store/([0-9a-f]{64})", "put"),
    ("GET", r"/cdn/([0-9a-f]{40})/([^/]+/[^/]+)/(.+)", "cdn"),
    ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
]
