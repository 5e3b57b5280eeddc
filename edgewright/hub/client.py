"""One repository through the Hub's own client, for writing: what that repeats, what we repeat, and its errors in words.

What lives here: the calls. What must not: which files are sent, and in which order things happen (`publish.py`).

The client repeats uploads of large files by itself, but neither the creation of a repository nor a commit nor a tag.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from artifacts import EdgewrightError
from edgewright.hub.wire import RETRIED, tame, token, trust

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    Operation = CommitOperationAdd | CommitOperationDelete

T = TypeVar("T")
_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Head:
    """The newest commit of a repository, and whether others can see it."""

    commit: str
    private: bool


class Repository:
    """A model repository on the Hub, `owner/name`."""

    def __init__(self, name: str) -> None:
        """trusted: the token is that of a CI job. Raises EdgewrightError when there is none."""
        from huggingface_hub import HfApi

        self.name = name
        self.trusted = trust(name)
        self._token = token()
        if self._token is None:
            raise EdgewrightError("publishing needs a token with write rights: `hf auth login`, or set HF_TOKEN")
        self._api = HfApi(token=self._token)

    @property
    def url(self) -> str:
        """The page of the repository."""
        return f"{self._api.endpoint}/{self.name}"

    def head(self) -> Head | None:
        """None where there is no such repository, or none that the token may see."""
        try:
            with self._explained():
                found = self._repeated(lambda: self._api.model_info(self.name))
        except _NotFound:
            return None
        return Head(found.sha or "", bool(found.private))

    def create(self, *, private: bool) -> None:
        """Make the repository; one that another made meanwhile is taken as it is."""
        with self._explained():
            self._repeated(lambda: self._api.create_repo(self.name, private=private, exist_ok=True))

    def tree(self, commit: str) -> dict[str, RepoFile]:
        """Every file at a commit, by its path."""
        from huggingface_hub.hf_api import RepoFile

        with self._explained():
            found = self._repeated(lambda: list(self._api.list_repo_tree(self.name, revision=commit, recursive=True)))
        return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}

    def tags(self) -> dict[str, str]:
        """The commit that each tag points at."""
        with self._explained():
            refs = self._repeated(lambda: self._api.list_repo_refs(self.name))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def upload(self, additions: Sequence[CommitOperationAdd]) -> None:
        """Send the content of large files, those that the Hub has not; a commit names them later."""
        with self._explained(), _without_bars():
            self._api.preupload_lfs_files(self.name, additions, free_memory=False)

    def commit(self, operations: Sequence[Operation], message: str, parent: str, landed: Callable[[str], bool]) -> str:
        """One commit with all operations on top of `parent`, and its id.

        landed: whether a commit that is not `parent` holds what was to be sent; asked where an answer was lost.
        """

        def attempt() -> str:
            head = self._api.model_info(self.name).sha or ""
            if head != parent:
                if landed(head):
                    return head
                raise EdgewrightError(
                    f"{self.name}: somebody else committed to it meanwhile ({head}), so nothing was published; look at "
                    "it and run again"
                )
            return self._api.create_commit(
                self.name, list(operations), commit_message=message, parent_commit=parent
            ).oid

        with self._explained(), _without_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the Hub's, on the metadata of the card
            return self._repeated(attempt, also=(412,))

    def tag(self, name: str, commit: str) -> None:
        """Let a new tag point at a commit; one that exists is left as it is."""
        with self._explained():
            self._repeated(lambda: self._api.create_tag(self.name, tag=name, revision=commit, exist_ok=True))

    def _repeated(self, call: Callable[[], T], also: Sequence[int] = ()) -> T:
        """The call's result; what passes by itself, and the statuses in `also`, are tried again after a while."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        for attempt in range(1, _ATTEMPTS):
            wait = _FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
            try:
                return call()
            except HfHubHTTPError as error:
                if error.response.status_code not in (*RETRIED, *also):
                    raise
                wait = _asked_to_wait(error.response.headers, wait)
            except httpx2.TransportError:
                pass
            time.sleep(wait)
        return call()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except EdgewrightError:
            raise
        # RuntimeError: an upload that failed, around the reason. ValueError: an answer that is none, or metadata that
        # the Hub refuses. KeyError, TypeError, AttributeError: an answer without what the client reads from it.
        # OSError: the offline switch, and files that cannot be read.
        except (httpx2.HTTPError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            cause: BaseException = error
            while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, HfHubHTTPError):
                raise self._refused(cause) from cause
            raise EdgewrightError(
                f"{self.name}: publishing broke off ({self._harmless(str(cause) or type(cause).__name__)}); nothing is "
                "visible under a tag yet. Run again: what the Hub has already is not sent again"
            ) from cause

    def _refused(self, error: HfHubHTTPError) -> EdgewrightError:
        from huggingface_hub.errors import RepositoryNotFoundError

        status, said = error.response.status_code, self._harmless(error.server_message or "")
        if status == 401 and "Invalid credentials" in said:
            return EdgewrightError(f"{self.name}: the Hub does not know the token; check HF_TOKEN, or `hf auth login`")
        if isinstance(error, RepositoryNotFoundError):
            return _NotFound(f"{self.name}: no such repository on the Hub, or the token may not see it")
        if status in (401, 403):
            return EdgewrightError(
                f"{self.name}: the token has no right to write there ({said or f'HTTP status {status}'}); make one "
                "with write access to it, on the Hub under Settings, Access Tokens"
            )
        return EdgewrightError(
            f"{self.name}: the Hub refused ({said or 'without a reason'}, HTTP status {status}); nothing is visible "
            "under a tag yet. Run again later: what the Hub has already is not sent again"
        )

    def _harmless(self, said: str) -> str:
        """Text of the server's in a line, without the token, should it repeat that."""
        return tame(said.replace(self._token or "\0", "…"))


class _NotFound(EdgewrightError):
    """There is no such repository."""


def _asked_to_wait(headers: Mapping[str, str], otherwise: float) -> float:
    """Seconds that a Retry-After asks for, within reason."""
    asked = headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_WAIT_SECONDS) if asked.isdecimal() and len(asked) < 10 else otherwise


@contextmanager
def _without_bars() -> Iterator[None]:
    """The client's own progress bars off; ours say what happens."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
