"""The commands `cache ls`, `cache gc` and `cache verify`: their arguments, and what they show of the store.

Like `cli.py`, loads nothing but the standard library until a command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgewright import streams
from edgewright.arguments import command, group, output

if TYPE_CHECKING:
    from artifacts.stages import Listed, Store

_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def declare(commands: Any) -> None:
    """Add them to the command line."""
    cache = group(commands, "cache", "ls, gc, verify: what runs into a folder have finished, and what they may reuse")
    listing = command(cache, "ls", ls, "every finished stage with its size, its age and where it lies")
    collect = command(cache, "gc", gc, "remove what is kept of replaced outputs, least recently used first")
    collect.add_argument("--limit", metavar="SIZE", help="such as 2GB (10 GB at first; 0: nothing), for later runs too")
    check = command(cache, "verify", verify, "hash everything, and drop what is damaged: it is made again when needed")
    for made in (listing, collect, check):
        made.add_argument("--out", default="build", metavar="DIR", help="of `edgewright run` (default: build)")
        output(made)


def ls(args: argparse.Namespace) -> int:
    """Run `edgewright cache ls`."""
    import time

    from edgewright.text import size

    with _store(args.out) as store:
        found = sorted(store.listed(), key=lambda item: -item.used)
    if args.json:
        streams.write_json({"kept_bytes": _kept(found), "entries": [_plain(item) for item in found]})
        return 0
    now = time.time()
    for item in found:
        words = ", ".join(f"{name} {word}" for name, word in item.entry.words.items())
        where = "kept" if item.kept else item.entry.place or ""
        held = size(item.entry.bytes) if item.entry.files else ""
        stage = f"{item.entry.stage} {item.entry.key[:12]}"
        line = f"{stage:23} {held:>9}  used {_age(now - item.used):>7} ago  {where}"
        streams.write_lines(f"{line.rstrip()}\n    {words}".rstrip())
    streams.write(f"{len(found)} finished stages; {size(_kept(found))} kept of outputs that were replaced\n")
    return 0


def gc(args: argparse.Namespace) -> int:
    """Run `edgewright cache gc`."""
    from edgewright.text import size

    with _store(args.out) as store:
        if args.limit is not None:
            store.set_limit(_bytes(args.limit))
        dropped = store.collect()
        left = store.listed()
    freed = _kept(dropped)
    if args.json:
        streams.write_json({"freed_bytes": freed, "dropped": [_plain(item) for item in dropped]})
    else:
        streams.write(f"{len(dropped)} entries dropped, {size(freed)} freed, {size(_kept(left))} kept\n")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Run `edgewright cache verify`."""
    from edgewright import bars

    with _store(args.out) as store, bars.progress(shown=not args.json) as progress:
        problems = store.verify(progress)
        left = store.listed()
    if args.json:
        streams.write_json({"intact": not problems, "problems": problems})
    else:
        for problem in problems:
            streams.write_lines(problem)
        whole = "every digest matches" if not problems else f"{len(problems)} damaged: dropped, to be made again"
        streams.write(f"{len(left)} finished stages; {whole}\n")
    return 1 if problems else 0


@contextmanager
def _store(out: str) -> Iterator[Store]:
    from artifacts import EdgewrightError, user_path
    from artifacts.stages import Store

    place = user_path(out, "--out")
    if not place.is_dir():
        raise EdgewrightError(f"{place}: no such folder; --out names the one that `edgewright run` writes to")
    try:
        yield Store(place)
    except OSError as error:  # a full disk, somebody else's folder
        raise EdgewrightError(
            f"{place}: what runs finished there cannot be changed ({error}); make room, or check who may write there"
        ) from error


def _bytes(text: str) -> int:
    from artifacts import EdgewrightError
    from recipes.quantities import parse_bytes

    try:
        return 0 if text == "0" else parse_bytes(text)
    except ValueError as error:
        raise EdgewrightError(f"--limit {error}") from error


def _kept(items: list[Listed]) -> int:
    return sum(item.entry.bytes for item in items if item.kept)


def _plain(item: Listed) -> dict[str, object]:
    entry = item.entry
    return {
        "stage": entry.stage,
        "key": entry.key,
        "made": entry.made,
        "used": item.used,
        "bytes": entry.bytes,
        "place": entry.place,
        "kept": item.kept,
        "from": entry.words,
    }


def _age(seconds: float) -> str:
    return next((f"{seconds / unit:.0f} {word}" for unit, word in _AGES if seconds >= unit), "0 s")
