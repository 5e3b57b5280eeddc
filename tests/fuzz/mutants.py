"""Mutations of documents: JSON and YAML trees, text and bytes, each from a seeded generator. Knows no door."""

from __future__ import annotations

import json
from random import Random
from typing import Any

# What json.dumps cannot write: put in as a word, exchanged in the text.
_LITERALS = {
    "@deep@": "[" * 3000 + "]" * 3000,
    "@deeper@": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "@below the limit of recursion@": "[" * 900 + "]" * 900,
    "@overflows@": "1e999",
    "@4,000 digits@": "9" * 4000,
    "@5,000 digits@": "9" * 5000,
    "@surrogate@": '"\\ud800"',
}
_NUMBERS = [0, 1, -1, 2, 3, 7, 31, 33, 2**15, 2**31, 2**32, 2**63, 2**64, 10**30, 0.5, -0.0, 1.0, 1e-320, 1e-9, 1e300]
_WORDS = ["", "x", "1", "true", "NaN", "model", "yarn", "\x1b[31m\x07", "\x00", "ä" * 300, "../../x", "/dev/zero", "~"]
_OTHERS = [None, True, False, float("nan"), float("inf"), float("-inf"), [], {}, [1], [[]], {"a": 1}, [None], ["x"] * 3]
NASTY: list[Any] = [*_NUMBERS, *_WORDS, *_OTHERS, *_LITERALS]


def json_text(tree: Any) -> str:
    """JSON of a mutated tree, with the literals that only a hostile writer uses."""
    text = json.dumps(tree)
    for word, literal in _LITERALS.items():
        text = text.replace(json.dumps(word), literal)
    return text


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


def mutate_tree(tree: Any, random: Random, nasty: list[Any] = NASTY) -> Any:
    """One to three changes: a value replaced, removed, swapped with another, wrapped, or a number moved a little."""
    tree = json.loads(json.dumps(tree))
    for _ in range(random.choice((1, 1, 2, 3))):
        found = places(tree)
        if not found:
            return random.choice(nasty)
        node, key = random.choice(found)
        change = random.randrange(6)
        if change <= 1:
            node[key] = random.choice(nasty)
        elif change == 2:
            del node[key]
        elif change == 3:
            other, place = random.choice(found)
            node[key] = json.loads(json.dumps(other[place])) if place in _keys(other) else None
        elif change == 4:
            node[key] = random.choice(([node[key]], {"a": node[key]}, str(node[key])))
        elif isinstance(node[key], int | float):
            node[key] = random.choice((node[key] + 1, node[key] - 1, -node[key], node[key] * 2, node[key] / 2))
    return tree


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def mutate_bytes(raw: bytes, random: Random) -> bytes:
    """A bit flipped, a run removed, repeated or written over, bytes put in, the end cut off, or nothing left."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(data) + 1)
        length = random.choice((1, 2, 8, 64, 1024))
        change = random.randrange(6)
        if change == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = data[at : at + length]
        elif change == 3:
            data[at : at + length] = random.randbytes(min(length, len(data) - at))
        elif change == 4:
            data[at:at] = random.choice((b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"{", b"]", b",", b"1e9", b"\\u"))
        elif change == 5 and random.random() < 0.3:
            del data[at if random.random() < 0.9 else 0 :]
    return bytes(data)
