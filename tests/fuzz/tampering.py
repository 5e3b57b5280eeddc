"""Ways to tamper with an artifact's folder, each a function of a random generator; the same seed, the same mutant.

What lives here: the mutations. What must not: what is expected of them (`test_artifacts.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MANIFEST = "edgewright.json"
_WEIRD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, -0.0, "", "x", "x" * 100_000, [], {}, [[]], "onnx", "tvm"),
    *("../../outside/evil.onnx", "/etc/passwd", "\x1b[2J\x9b31m\u202e", "[bold red]x[/]", "[/nothing]", "a\nb", "\0"),
    *("golden.safetensors", MANIFEST, "~nosuchuser", "é" * 300, {"x": {"y": ["z"]}}, ["a", 1, None], 0.5),
)


def mutate(artifact: Path, outside: Path, seed: int) -> str:
    """Tamper with `artifact` in one or two ways; links may lead to files in `outside`. Returns what was done."""
    rng = random.Random(seed)
    done = []
    for _ in range(rng.choice((1, 1, 2))):
        way = rng.choice(_WAYS)
        done.append(f"{way.__name__}: {way(artifact, outside, rng)}")
    return "; ".join(done)


def _plain(path: Path) -> bool:
    """Whether a file is still one that can be read whole, after what earlier mutations did."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 26


def _manifest(artifact: Path) -> Any:
    """The manifest's content, where an earlier mutation left any."""
    path = artifact / MANIFEST
    try:
        return json.loads(path.read_bytes()) if _plain(path) else {}
    except (ValueError, RecursionError):
        return {}


def _write(artifact: Path, content: Any) -> None:
    path = artifact / MANIFEST
    if _plain(path):
        path.write_text(json.dumps(content), encoding="utf-8")


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from _nodes(child, (*path, key))


def _payload(artifact: Path, rng: random.Random) -> Path:
    """A regular file of the artifact that is not its manifest."""
    found = [path for path in sorted(artifact.rglob("*")) if _plain(path)]
    return rng.choice([path for path in found if path.name != MANIFEST] or [artifact / MANIFEST])


def field(artifact: Path, _: Path, rng: random.Random) -> str:
    """One value of the manifest becomes another, or a key goes, comes or is doubled."""
    content = _manifest(artifact)
    places = list(_nodes(content))
    if not places:
        return "nothing left"
    container, key = rng.choice(places)
    way = rng.choice(("set", "set", "set", "delete", "add", "double"))
    if way == "set":
        container[key] = rng.choice(_WEIRD)
    elif way == "delete":
        del container[key]
    elif isinstance(container, dict):
        container[rng.choice(("x", "\x1b[31m", "__class__", "path"))] = rng.choice(_WEIRD)
    else:
        container.append(container[key])
    _write(artifact, content)
    return f"{way} {key!r}"


def text(artifact: Path, _: Path, rng: random.Random) -> str:
    """Bytes of the manifest's text: flipped, cut, doubled, or tokens that JSON does not have."""
    path = artifact / MANIFEST
    if not _plain(path):
        return "nothing left"
    raw = bytearray(path.read_bytes())
    way = rng.choice(("flip", "cut", "double", "deep", "word", "utf16", "huge number"))
    at = rng.randrange(len(raw) or 1)
    if way == "flip" and raw:
        raw[at] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del raw[at:]
    elif way == "double":
        raw *= 2
    elif way == "deep":
        raw[:0] = b"[" * rng.choice((100, 2_000, 100_000))
    elif way == "utf16":
        raw = bytearray(raw.decode(errors="replace").encode("utf-16"))
    else:
        word = rng.choice((b"NaN", b"-Infinity", b"1e999")) if way == "word" else b"9" * 5000
        raw = bytearray(bytes(raw).replace(b"1", word, 1))
    path.write_bytes(raw)
    return f"{way} at {at}"


def listing(artifact: Path, outside: Path, rng: random.Random) -> str:
    """The list of files: paths that leave the folder, sizes and digests of others, entries that come and go."""
    content = _manifest(artifact)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, list) or not files or not isinstance(files[0], dict):
        return "nothing left"
    entry = rng.choice(files)
    precious = outside / "precious.txt"
    told = {"size": precious.stat().st_size, "sha256": hashlib.sha256(precious.read_bytes()).hexdigest()}
    paths = ("../outside/precious.txt", str(precious), "a/../../outside/precious.txt", ".", "..", "a//b", "C:x", "a\\b")
    way = rng.choice(("path", "path", "entry", "size", "digest", "remove", "none", "case", "many"))
    if way == "path":
        entry.update(path=rng.choice(paths), **told)
    elif way == "entry":
        files.append({"path": rng.choice((*paths, "not-there.bin")), **told})
    elif way == "size":
        entry["size"] = rng.choice((0, 1, -1, 2**63, 10**30, 1.5))
    elif way == "digest":
        entry["sha256"] = rng.choice(("0" * 64, "x" * 64, "", told["sha256"], "A" * 64))
    elif way == "remove":
        files.remove(entry)
    elif way == "none":
        content["files"] = []
    elif way == "case":
        files.append({**entry, "path": str(entry.get("path")).upper()})
    else:
        files += [{"path": f"f{i}", "size": 1, "sha256": "0" * 64} for i in range(20_000)]
    _write(artifact, content)
    return way


def payload(artifact: Path, _: Path, rng: random.Random) -> str:
    """Bytes of a file, the manifest left as it is."""
    path = _payload(artifact, rng)
    return f"{_damage(path, rng)} {path.name}" if _plain(path) else "nothing left"


def signed(artifact: Path, _: Path, rng: random.Random) -> str:
    """Bytes of a file, and the manifest told so: an artifact that agrees with itself and is wrong all the same."""
    path = _payload(artifact, rng)
    if not _plain(path):
        return "nothing left"
    done = _damage(path, rng)
    content, raw = _manifest(artifact), path.read_bytes()
    for entry in content.get("files", ()) if isinstance(content, dict) else ():
        if isinstance(entry, dict) and entry.get("path") == path.relative_to(artifact).as_posix():
            entry.update(size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    _write(artifact, content)
    return f"{done} {path.name}"


def _damage(path: Path, rng: random.Random) -> str:
    raw = bytearray(path.read_bytes())
    way = rng.choice(("flip", "flip", "head", "cut", "append", "empty", "json", "zeros"))
    if way == "flip" and raw:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif way == "head" and raw:
        raw[rng.randrange(min(len(raw), 300))] = rng.randrange(256)
    elif way == "cut":
        del raw[rng.randrange(len(raw) or 1) :]
    elif way == "append":
        raw += rng.randbytes(100)
    elif way == "empty":
        raw.clear()
    elif way == "zeros":
        raw = bytearray(len(raw))
    elif way == "json":
        try:
            content = json.loads(raw)
        except ValueError:
            raw[:0] = b"{"
        else:
            places = list(_nodes(content))
            if places:
                container, key = rng.choice(places)
                container[key] = rng.choice(_WEIRD)
            raw = bytearray(json.dumps(content).encode())
    path.write_bytes(raw)
    return way


def replaced(artifact: Path, outside: Path, rng: random.Random) -> str:
    """A file, the manifest too, becomes a link, a hard link, a pipe, a socket, a folder, a device, or nothing."""
    path = rng.choice((_payload(artifact, rng), _payload(artifact, rng), artifact / MANIFEST))
    if path.is_dir() and not path.is_symlink():
        return "nothing left"
    path.unlink(missing_ok=True)
    kinds = ("link", "null", "dangling", "loop", "hard link", "pipe", "socket", "folder", "sparse", "missing")
    way = rng.choice(kinds)
    if way in ("link", "null", "dangling", "loop"):
        places = {"link": outside / "precious.txt", "null": Path("/dev/zero"), "dangling": outside / "none"}
        path.symlink_to(places.get(way, path))
    elif way == "hard link":
        os.link(outside / "precious.txt", path)
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "socket":
        here = os.getcwd()
        try:
            os.chdir(path.parent)  # a socket's whole path has 107 bytes at most
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(here)
    elif way == "folder":
        path.mkdir()
    elif way == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 30)
    return f"{way} {path.name}"


def added(artifact: Path, outside: Path, rng: random.Random) -> str:
    """Something more: files, links to files and folders outside, pipes, folders deeper than any path."""
    way = rng.choice(("file", "odd name", "link", "linked folder", "pipe", "deep", "many", "aside"))
    if way == "file":
        (artifact / "extra.bin").write_bytes(b"x")
    elif way == "odd name":
        (artifact / os.fsdecode(rng.choice((b"\xff\xfe", b"\x1b[31mred", b"a\nb", "é".encode())))).write_bytes(b"x")
    elif way == "link":
        (artifact / "linked").symlink_to(outside / "precious.txt")
    elif way == "linked folder":
        (artifact / "folder").symlink_to(outside, target_is_directory=True)
    elif way == "pipe":
        os.mkfifo(artifact / f"pipe{rng.randrange(100)}")
    elif way == "deep":
        here = os.getcwd()
        try:
            os.chdir(artifact)
            for _ in range(40):
                os.makedirs("d" * 120, exist_ok=True)
                os.chdir("d" * 120)
        finally:
            os.chdir(here)
    elif way == "many":
        for at in range(2_000):
            (artifact / f"extra{at}").touch()
    else:  # names that Edgewright itself writes under
        for name in (f".{MANIFEST}.{os.getpid()}", f".{MANIFEST}.1"):
            (artifact / name).symlink_to(outside / "precious.txt")
        beside = artifact.parent / f".{artifact.name}.manifest-{os.getpid()}"
        beside.unlink(missing_ok=True)
        beside.symlink_to(outside / "precious.txt")
    return way


def moved(artifact: Path, outside: Path, rng: random.Random) -> str:
    """The artifact itself is a link, or a folder in it is one."""
    folders = [path for path in sorted(artifact.iterdir()) if path.is_dir() and not path.is_symlink()]
    path = rng.choice([artifact, *folders])
    if path.is_symlink():
        return "nothing left"
    place = path.parent / f"{path.name}-moved" if path == artifact else outside / f"moved-{path.name}"
    shutil.move(path, place)
    path.symlink_to(place, target_is_directory=True)
    return path.name


_WAYS: tuple[Callable[[Path, Path, random.Random], str], ...] = (
    *(field, field, field, text, listing, listing, payload, payload, signed, signed, replaced, replaced, added, moved),
)
