"""Questions to the Hub, every one bounded: bytes are counted, every wait ends, the token goes to the endpoint only.

What lives here: one exchange over the session of the Hub's own client (its proxies, certificates and offline switch),
redirects, retries, and how much of an answer is read. What must not: what an answer says, and any path of this machine.

The client's own downloads are not used: it writes to the path that the answer's ETag names, reads a body to its end
whatever its length, and waits as long as the answer's Retry-After says.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from artifacts import EdgewrightError

# How long 64 KiB of a body, or its rest, may take: 8 KB/s. HF_HUB_DOWNLOAD_TIMEOUT, if set, replaces it.
PATIENCE_SECONDS = 8
_WINDOW_BYTES = 64 << 10
# A download that breaks off goes on from there, but for good only while every attempt brings this much.
FRESH_BYTES = 1 << 20
ATTEMPTS = 3
_REDIRECTS = 5
_JSON_BYTES = 2 << 20
RETRIED = (408, 429, 500, 502, 503, 504)
_MOVED = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class Refusal(Exception):
    """An HTTP status that is no success, with the Hub's own code for it (`GatedRepo`, ...)."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.code = code
        self.bad_token = reason == "Invalid credentials in Authorization header"
        self.final = status not in RETRIED


class Unreachable(Exception):
    """No answer, or not the whole one. `final`: asking again at once would not help."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(tame(reason))
        self.final = final


class Nonsense(Exception):
    """An answer that is not what the Hub's interface promises; it was not used."""

    def __init__(self, reason: str) -> None:
        super().__init__(tame(reason))


def tame(text: str) -> str:
    """One short line without control characters, of text that may be the server's."""
    line = "".join(c if c.isprintable() else " " for c in text.strip())
    return line if len(line) <= 300 else f"{line[:300]}…"


class Hub:
    """The endpoint that HF_ENDPOINT names, asked with the user's token if there is one."""

    def __init__(self) -> None:
        from huggingface_hub import constants

        self.endpoint = constants.ENDPOINT
        if _address(self.endpoint) is None:
            raise EdgewrightError(
                f"HF_ENDPOINT: {tame(self.endpoint)!r} is no address of a server; unset it for the Hub's"
            )
        chosen = constants.HF_HUB_DOWNLOAD_TIMEOUT if "HF_HUB_DOWNLOAD_TIMEOUT" in os.environ else PATIENCE_SECONDS
        self.patience = min(max(chosen, 1), 3600)
        found = token()
        self._token = {"Authorization": f"Bearer {found}"} if found else {}

    def ask(self, path: str, until: float) -> tuple[Any, str | None]:
        """The JSON below `path`, and the query of its next page if it names one. `until` is in monotonic seconds.

        Raises:
            Refusal, Unreachable, Nonsense: see there; what passes is asked up to three times.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._answer(self.endpoint + path, {}, until) as exchange:
                    body = bytearray()
                    while piece := exchange.receive(until):
                        body += piece
                        if len(body) > _JSON_BYTES:
                            raise Nonsense(f"longer than {_JSON_BYTES >> 20} MiB")
                    return _decoded(bytes(body)), _next_query(exchange.headers)
            except (Refusal, Unreachable) as error:
                if error.final or attempt == ATTEMPTS or time.monotonic() + attempt / 2 > until:
                    raise
                time.sleep(attempt / 2)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def content(self, path: str, start: int, size: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The file of `size` bytes below `path`, from byte `start` on, or from 0 if the server knows no ranges.

        Yields where it starts and its pieces, which are never longer in sum than they should be.

        Raises:
            Refusal, Unreachable, Nonsense: see there; here or while the pieces are read.
        """
        asked = {"Range": f"bytes={start}-"} if start else {}
        with self._answer(self.endpoint + path, asked, time.monotonic() + self.patience) as exchange:
            if exchange.status == 200:
                start = 0
            elif not start or _content_range(exchange.headers) != (start, size - 1, size):
                raise Nonsense("other bytes of the file than those that were asked for")
            length = exchange.headers.get("content-length")
            if length not in (None, str(size - start)):
                raise Nonsense(f"announces {length} bytes where the listing promises {size - start}")
            yield start, self._paced(exchange, size - start)

    def _paced(self, exchange: _Exchange, expected: int) -> Iterator[bytes]:
        due, counted, total = time.monotonic() + self.patience, 0, 0
        while piece := exchange.receive(due):
            total += len(piece)
            if total > expected:
                raise Nonsense(f"more than the {expected} bytes that the listing promises")
            yield piece
            counted += len(piece)
            if counted >= _WINDOW_BYTES:
                due, counted = time.monotonic() + self.patience, 0
        if total < expected:
            raise Unreachable("the connection broke off", final=False)

    @contextmanager
    def _answer(self, url: str, headers: Mapping[str, str], until: float) -> Iterator[_Exchange]:
        """The exchange at the end of all redirects, its status a success."""
        home, token = _origin(_address(url)), self._token
        for _ in range(_REDIRECTS + 1):
            with _Exchange(url, {**headers, **token}, self.patience) as exchange:
                exchange.open(until)
                if exchange.status not in _MOVED:
                    if exchange.status not in (200, 206):
                        refused = exchange.headers
                        raise Refusal(
                            exchange.status, refused.get("x-error-code", ""), refused.get("x-error-message", "")
                        )
                    if exchange.headers.get("content-encoding", "identity").lower() != "identity":
                        raise Nonsense("compressed, which was not asked for")
                    yield exchange
                    return
            target = _target(url, exchange.headers.get("location", ""))
            if _origin(target) != home:
                token = {}  # for good, also if it leads back
            url = str(target)
        raise Nonsense(f"more than {_REDIRECTS} redirects")


class _Exchange:
    """One request, run in a thread of its own and given up by leaving it.

    The transport's timeouts start anew with every byte, also between two headers, so they bound nothing; here the one
    who waits decides for how long. The thread holds no more than a few pieces and touches no file.
    """

    def __init__(self, url: str, headers: Mapping[str, str], patience: float) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._request = (url, {"User-Agent": "edgewright", "Accept-Encoding": "identity", **headers}, patience)
        self._patience = patience
        self._queue: queue.Queue[_Head | bytes | Exception] = queue.Queue(maxsize=16)
        self._left = threading.Event()

    def __enter__(self) -> _Exchange:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def open(self, until: float) -> None:
        """Wait for status and headers."""
        head = self._next(until)
        assert isinstance(head, _Head)
        self.status, self.headers = head.status, head.headers

    def receive(self, until: float) -> bytes:
        """The next piece of the body; empty at its end."""
        piece = self._next(until)
        assert isinstance(piece, bytes)
        return piece

    def _next(self, until: float) -> _Head | bytes:
        try:
            item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise self._too_slow() from None
        if isinstance(item, Exception):
            raise self._failure(item) from item
        return item

    def _too_slow(self) -> Unreachable:
        allowed = f"64 KiB or a whole answer may take {self._patience:g} seconds"
        return Unreachable(f"too slow: {allowed}, see HF_HUB_DOWNLOAD_TIMEOUT", final=True)

    def _failure(self, error: Exception) -> Exception:
        import httpx2

        if isinstance(error, httpx2.TimeoutException):
            return self._too_slow()
        if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
            return Unreachable("the connection broke off, or does not speak HTTP", final=False)
        # UnicodeError: a redirect to a host whose name no encoding has
        if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL | OSError | UnicodeError):
            return Unreachable(str(error) or type(error).__name__, final=True)
        return error

    def _run(self) -> None:
        from huggingface_hub import get_session

        url, headers, patience = self._request
        try:
            with get_session().stream(
                "GET", url, headers=headers, follow_redirects=False, timeout=patience
            ) as response:
                self._put(_Head(response.status_code, dict(response.headers)))
                for piece in response.iter_raw():
                    if not self._put(piece):
                        return
            self._put(b"")
        except Exception as error:  # raised where the answer is waited for
            self._put(error)

    def _put(self, item: _Head | bytes | Exception) -> bool:
        while not self._left.is_set():
            try:
                self._queue.put(item, timeout=1)
                return True
            except queue.Full:
                continue
        return False


@dataclass(frozen=True)
class _Head:
    status: int
    headers: Mapping[str, str]


def trust(repo: str) -> bool:
    """Where a CI job can prove its identity and has no token: have the Hub's client exchange that for one, which holds
    for an hour and for this repository alone (Trusted Publishers). Whether such a token is used."""
    identity = os.environ.keys() & {"HF_OIDC_ID_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL"}
    if identity and not os.environ.keys() & {"HF_OIDC_RESOURCE", "HF_TOKEN"}:
        os.environ["HF_OIDC_RESOURCE"] = repo
    return bool(os.environ.get("HF_OIDC_RESOURCE"))


def token() -> str | None:
    """The user's token as the Hub's own client finds it: that of a trusted CI job, HF_TOKEN, or what a login left.

    Raises EdgewrightError.
    """
    import httpx2
    from huggingface_hub import constants, errors, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    try:
        found = get_token()
    except (OSError, ValueError, KeyError, httpx2.HTTPError, errors.OIDCError) as error:
        if resource := os.environ.get("HF_OIDC_RESOURCE"):
            raise EdgewrightError(
                f"the Hub gives this CI job no token for {resource} ({tame(str(error))}); name its workflow as a "
                "trusted publisher in the repository's settings, and give the job `permissions: id-token: write`; or "
                "set HF_TOKEN"
            ) from error
        raise EdgewrightError(
            f"the Hub's token cannot be had ({tame(str(error))}); log in with `hf auth login`"
        ) from error
    if found is not None and not (found.isascii() and found.isprintable()):
        raise EdgewrightError("HF_TOKEN, or what `hf auth login` left, has characters that no token has")
    return found or None


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Nonsense("not JSON") from None


def _next_query(headers: Mapping[str, str]) -> str | None:
    """The query of `Link: <...>; rel="next"`. Host and path are not followed: the next page lies where this one did."""
    for link in headers.get("link", "").split(","):
        target, _, attributes = link.partition(">")
        if re.search(r"rel=\"?next\b", attributes):
            return target.partition("#")[0].partition("?")[2]
    return None


def _content_range(headers: Mapping[str, str]) -> tuple[int, ...] | None:
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    return tuple(int(number) for number in found.groups()) if found else None


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _address(url: str, base: str = "") -> Any:
    """The URL, seen from `base`, as the transport will read it; None if it is none that leads to a server."""
    import httpx2

    try:
        address = httpx2.URL(base).join(url) if base else httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        return None
    return address if url and address.scheme in ("http", "https") and address.host else None


def _target(url: str, location: str) -> Any:
    """Where a redirect leads."""
    target = _address(location, url)
    if target is None or target.userinfo:
        raise Nonsense("a redirect to no address")
    if url.startswith("https:") and target.scheme != "https":
        raise Nonsense("a redirect that leaves https")
    return target
