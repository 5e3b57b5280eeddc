"""The store beside the outputs: which stage is finished, what it was made from, where its result is, and whether that
is still whole.

What lives here: entries, finding them, keeping outputs that are replaced, and the limit on what is kept. What must not:
what a stage is and what its key holds (``compiler.keys``, ``edgewright``), and staging a folder (``store.py``).

``<out>/.edgewright/``, shared by all recipes below one ``<out>``:

- ``entries/<stage>-<key>@<place>.json``: one result in one place. It is written before its folder gets its name, so
  that no kill comes between a finished stage and the knowledge of it; a place that holds something else is no result.
- ``kept/<stage>-<key>/``: folders that were replaced, until the limit asks for their room, least recently used first.
- ``runs/<recipe>/``: locked by the one run that works on this recipe's outputs.
- ``limit``: of ``kept/``, in bytes, where it is not the usual one.

A live output exists once, in its own place, which the entry names; nothing here is a link.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from .entries import Entry, StoredFile, compared, core, identity, read_entry, sealed
from .locks import lock, locked
from .manifest import read_manifest, sha256_file
from .progress import Progress, silent
from .store import make_folder, put_in_place, tentative_folder

FOLDER = ".edgewright"
DEFAULT_LIMIT = 10 * 10**9
_MOST_NOTES = 512  # results without files, the newest of which stay


@dataclass(frozen=True)
class Found:
    """An entry whose files are what they were, and where they are. kept: in the store, in no recipe's folder."""

    entry: Entry
    folder: Path
    kept: bool


@dataclass(frozen=True)
class Listed:
    """An entry as it lies in the store. used: seconds since the epoch. kept: in the store, within the limit."""

    file: Path
    entry: Entry
    used: float
    kept: bool


class Store:
    """The store below one output folder. Nothing is made there before the first entry.

    fresh: nothing that was there before is found. since: nothing older than that, in seconds since the epoch; for a
    process that goes on with a fresh run of another one.
    """

    def __init__(self, out: Path, *, fresh: bool = False, since: float = 0) -> None:
        self.out = Path(os.path.abspath(out))
        self.path = self.out / FOLDER
        self.fresh = fresh
        self._since = since
        self._entries, self._kept, self._limit = self.path / "entries", self.path / "kept", self.path / "limit"
        self._made: set[tuple[str, str]] = set()

    @property
    def limit(self) -> int:
        """Bytes that `kept/` may hold."""
        try:
            return int(self._limit.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return DEFAULT_LIMIT

    def set_limit(self, limit: int) -> None:
        """For all runs to come. Raises OSError."""
        with self._locked():
            self._put(self._limit, f"{limit}\n")

    def place(self, path: Path) -> str:
        """The name of a place, for entries."""
        return Path(os.path.abspath(path)).relative_to(self.out).as_posix()

    @contextmanager
    def running(self, recipe: str, wait: Callable[[], None]) -> Iterator[None]:
        """Be the only run of a recipe; `wait` is called where another has to end first."""
        folder = self.path / "runs" / recipe
        with tentative_folder(folder), _alone(folder, wait):
            yield

    def find(self, stage: str, key: str, place: Path) -> Found | None:
        """A finished stage whose files are whole, rather in its own place than elsewhere. One that is damaged is
        dropped: the stage is to be done again."""
        if not self._knows(stage, key):
            return None
        wanted = self.place(place)
        found = [item for item in self.listed(stage, key) if item.entry.place is not None and item.used >= self._since]
        for item in sorted(found, key=lambda item: item.entry.place != wanted):
            current = compared(item.entry, self._folder(item.entry), "changed")
            if isinstance(current, str):
                if item.kept or item.entry.place == wanted:  # elsewhere another run may be about to put it in place
                    self._drop(item)
                continue
            if current != item.entry:
                with suppress(OSError), self._locked():
                    self._write(current)
            _touch(item.file)
            return Found(current, self._folder(current), item.kept)
        return None

    def has(self, stage: str) -> bool:
        """Whether any result of a stage may be there."""
        return not self.fresh and any(self._entries.glob(f"{stage}-*"))

    def put(
        self, stage: str, key: str, folder: Path, place: Path, words: Mapping[str, str], names: Sequence[str] = ()
    ) -> None:
        """Enter a folder that is there, or is about to get the name `place`; `names`: some files of one that is no
        artifact."""
        manifest = None if names else read_manifest(folder)
        known = {entry.path: entry.sha256 for entry in manifest.files} if manifest else {}
        files = []
        for name in names or known:
            before = identity(folder / name)
            sha256 = known.get(name) or sha256_file(folder / name)
            files.append(StoredFile(path=name, size=before[2], sha256=sha256, identity=before))
        entry = Entry(
            stage=stage,
            key=key,
            made=_now(),
            words=dict(words),
            place=self.place(place),
            manifest=manifest and core(manifest),
            files=tuple(files),
        )
        with self._locked():
            self._write(entry)
        self._made.add((stage, key))

    def content(self, stage: str, key: str) -> dict[str, JsonValue] | None:
        """What `note` kept under a key."""
        for item in self.listed(stage, key) if self._knows(stage, key) else ():
            if item.used < self._since:
                continue
            _touch(item.file)
            return item.entry.content
        return None

    def note(self, stage: str, key: str, words: Mapping[str, str], content: dict[str, JsonValue]) -> None:
        """Keep a result that is no file. Where nothing can be written, the next run finds it out again."""
        with suppress(OSError), self._locked():
            self._write(Entry(stage=stage, key=key, made=_now(), words=dict(words), content=content))
            self._made.add((stage, key))

    def take(self, found: Found, final: Path) -> bool:
        """Give a kept folder the name `final` and keep what is there; False where another process was quicker."""
        moved = found.entry.model_copy(update={"place": self.place(final)})
        try:
            with self._locked():
                self._write(moved)
            put_in_place(found.folder, final, self.keeping(final, moved.key))
        except OSError:
            self._file(moved).unlink(missing_ok=True)
            return False
        self._file(found.entry).unlink(missing_ok=True)
        return True

    def keeping(self, final: Path, key: str) -> Callable[[Path], None]:
        """What is to be done with the folder that was in `final` and gave way to the result of `key`."""

        def keep(old: Path) -> None:
            gone = [item for item in self.listed(at=self.place(final)) if item.entry.key != key]
            found = [compared(item.entry, old, "changed") for item in gone]
            with suppress(OSError), self._locked():
                for entry in found:
                    if isinstance(entry, Entry):
                        self._move(entry, old)
                for item in gone:
                    item.file.unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)

        return keep

    def listed(self, stage: str = "*", key: str = "*", at: str | None = None) -> list[Listed]:
        """Entries that can be read, those of a stage, a key or a place."""
        found = []
        for file in sorted(self._entries.glob(f"{stage}-{key}@{'*' if at is None else _slug(at)}.json")):
            with suppress(FileNotFoundError):
                entry, used = read_entry(file), file.stat().st_mtime
                if entry is not None and self._file(entry) == file:
                    found.append(Listed(file, entry, used, self._folder(entry).parent == self._kept))
        return found

    def collect(self) -> list[Listed]:
        """Remove what nobody knows and what is gone, and of what is kept the least recently used until the rest is
        within the limit. What was dropped is returned."""
        if not self.path.is_dir():
            return []
        with self._locked():
            for file in [*self._entries.glob(".*"), *self._unreadable()]:
                file.unlink(missing_ok=True)
            found = self.listed()
            gone = [i for i in found if i.entry.place and not self._folder(i.entry).exists() and self._idle(i.entry)]
            notes = sorted((item for item in found if item.entry.place is None), key=lambda item: -item.used)
            for item in (dropped := [*gone, *notes[_MOST_NOTES:]]):
                self._drop(item)
            known = {item.entry.place for item in found if item.kept}
            for folder in self._kept.glob("*"):
                if self.place(folder) not in known:
                    shutil.rmtree(folder, ignore_errors=True)
            return [*dropped, *self._shrink(self.limit)]

    def verify(self, progress: Progress = silent) -> list[str]:
        """Hash all that is known, drop what is damaged and say of each what is wrong with it; empty: all is whole."""
        problems = [f"{file}: an entry that cannot be read" for file in self._unreadable()]
        for file in self._unreadable():
            file.unlink(missing_ok=True)
        found = [item for item in self.listed() if item.entry.place is not None]
        results = []
        for done, item in enumerate(found):
            progress("verifying the store", done, len(found))
            results.append(compared(item.entry, self._folder(item.entry), "all"))
        whole = {item.entry.place for item, result in zip(found, results, strict=True) if isinstance(result, Entry)}
        for item, result in zip(found, results, strict=True):
            there = self._there(item.entry) and item.entry.place not in whole  # else it was replaced
            if isinstance(result, str) and self._idle(item.entry):
                self._drop(item)
                problems += [f"{self._folder(item.entry)} ({item.entry.stage}): {result}"] if there else []
        return problems

    def _knows(self, stage: str, key: str) -> bool:
        return not self.fresh or (stage, key) in self._made

    def _folder(self, entry: Entry) -> Path:
        return self.out / (entry.place or "")

    def _there(self, entry: Entry) -> bool:
        """Whether there is anything of a result: files that share a folder with others may never have come there."""
        folder = self._folder(entry)
        return folder.exists() and (entry.manifest is not None or any((folder / f.path).exists() for f in entry.files))

    def _file(self, entry: Entry) -> Path:
        return self._entries / f"{entry.stage}-{entry.key}@{_slug(entry.place or '')}.json"

    def _unreadable(self) -> list[Path]:
        files = self._entries.glob("*.json")
        return [file for file in files if file.exists() and ((e := read_entry(file)) is None or self._file(e) != file)]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only one that writes entries and moves what is kept."""
        self._entries.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            yield

    def _idle(self, entry: Entry) -> bool:
        """Whether no run works on an entry's place: one may have entered what it is about to put there."""
        folder = self.path / "runs" / str(entry.place).partition("/")[0]
        if not folder.is_dir():
            return True
        if (held := lock(folder)) is None:
            return False
        os.close(held)
        return True

    def _write(self, entry: Entry) -> None:
        """The caller holds the lock."""
        self._put(self._file(entry), sealed(entry))

    def _put(self, path: Path, content: str) -> None:
        aside = self._entries / f".{os.getpid()}"
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _drop(self, item: Listed) -> None:
        """An entry, and the folder if it is kept: a recipe's own outputs are never removed."""
        item.file.unlink(missing_ok=True)
        if item.kept:
            shutil.rmtree(self._folder(item.entry), ignore_errors=True)

    def _move(self, entry: Entry, old: Path) -> None:
        """Into `kept/`, if there is room; the caller holds the lock."""
        if entry.bytes > (limit := self.limit):
            return
        self._shrink(limit - entry.bytes)
        kept = self._kept / f"{entry.stage}-{entry.key}"
        shutil.rmtree(kept, ignore_errors=True)
        self._kept.mkdir(exist_ok=True)
        self._write(entry.model_copy(update={"place": self.place(kept)}))
        old.rename(kept)

    def _shrink(self, limit: int) -> list[Listed]:
        """Drop what is kept, least recently used first, until `limit` bytes hold the rest. The caller holds the
        lock."""
        kept = sorted((item for item in self.listed() if item.kept), key=lambda item: item.used)
        total, dropped = sum(item.entry.bytes for item in kept), []
        for item in kept:
            if total <= limit:
                break
            self._drop(item)
            dropped.append(item)
            total -= item.entry.bytes
        return dropped


@contextmanager
def _alone(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
            if _same(descriptor, folder):
                yield
                return
        finally:
            os.close(descriptor)
        make_folder(folder)  # the run before this one failed, and took the empty folder away


def _same(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def _slug(place: str) -> str:
    return place.replace("/", "+")


def _touch(file: Path) -> None:
    with suppress(OSError):
        os.utime(file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
