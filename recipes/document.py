"""YAML text to plain data, with the place of every key and value.

Strict where YAML is lenient: duplicate keys, tags, merge keys and keys that are not text are refused, and so are
documents that are too large, too deep, or that aliases blow up. Knows nothing of recipes.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from recipes.errors import Problem, RecipeError

MAX_BYTES = 256 * 1024
MAX_NODES = 10_000
MAX_DEPTH = 32
_LONGEST_KEY = 80

Path = tuple[Hashable, ...]
_TAG = "tag:yaml.org,2002:"
_BOOLS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


@dataclass(frozen=True)
class Place:
    """Where a key and its value stand, counted from 1; an item of a list has no key, so its value's place stands in."""

    key: tuple[int, int]
    value: tuple[int, int]


@dataclass
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the place of each part by its path."""

    data: Any = None
    places: dict[Path, Place] = field(default_factory=dict)


def key_path(path: Path) -> str:
    """`("quantize", "rules", 0, "bits")` as `quantize.rules[0].bits`; a key's control characters are escaped."""
    text = ""
    for part in path:
        word = str(part) if len(str(part)) <= _LONGEST_KEY else f"{str(part)[:_LONGEST_KEY]}…"
        word = word if word.isprintable() else repr(word)[1:-1]
        text += f"[{word}]" if isinstance(part, int) else f".{word}" if text else word
    return text


def parse(raw: bytes, source: str) -> Document:
    """Parse one YAML document. Raises RecipeError, naming `source`, for anything that is not strict and modest YAML."""
    if len(raw) > MAX_BYTES:
        raise RecipeError(source, f"is larger than {MAX_BYTES // 1024} KiB, so it is not a recipe")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(source, [Problem(line, 1, "", "is not UTF-8 text")]) from None
    try:
        _check_depth(text, source)
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        place = _start(mark) if mark else (1, 1)
        raise RecipeError(source, [Problem(*place, "", f"not valid YAML: {what}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(source, [Problem(line, 1, "", f"not valid YAML: character {error.character!r}")]) from None
    builder = _Builder(source)
    if node is not None:
        builder.document.data = builder.build(node, (), None)
    if builder.problems:
        raise RecipeError(source, builder.problems)
    return builder.document


def _start(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _check_depth(text: str, source: str) -> None:
    """Walk the flat stream of events before anything recursive does: deep nesting is an attack, not a recipe."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > 2 * MAX_NODES:
            what = f"nested deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else "has too many parts"
            raise RecipeError(source, [Problem(*_start(event.start_mark), "", what)])


class _Builder:
    """Turns YAML nodes into plain data, collecting places and problems; stops at MAX_NODES expanded nodes."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.document = Document()
        self.problems: list[Problem] = []
        self._nodes = 0

    def build(self, node: yaml.Node, path: Path, key: yaml.Node | None) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise RecipeError(
                self.source,
                [Problem(*_start(node.start_mark), key_path(path[:4]), "its aliases expand to too much; write it out")],
            )
        value = _start(node.start_mark)
        self.document.places[path] = Place(_start(key.start_mark) if key else value, value)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.build(item, (*path, i), None) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        return self._problem(node, path, f"the tag {node.tag!r} has no place in a recipe")

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
                shown = f" {key.value!r}" if isinstance(key, yaml.ScalarNode) else ""
                self._problem(key, path, f"the key{shown} is not text; put it in quotes if it is meant to be")
            elif key.value in built:
                line = self.document.places[(*path, key.value)].key[0]
                self._problem(key, (*path, key.value), f"duplicate key; it stands in line {line} already")
            else:
                built[key.value] = self.build(value, (*path, key.value), key)
        return built

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind in ("str", "timestamp"):  # a date is text here
            return text
        if kind == "null":
            return None
        try:
            if kind == "bool":
                return _BOOLS[text.lower()]
            if kind in ("int", "float"):
                if ":" in text:  # YAML 1.1 reads 1:30 as 90; nobody means that
                    return text
                loader = yaml.SafeLoader("")
                return loader.construct_yaml_int(node) if kind == "int" else loader.construct_yaml_float(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            return self._problem(node, path, f"cannot be read as {kind}")
        return self._problem(node, path, f"the tag {node.tag!r} has no place in a recipe")

    def _problem(self, node: yaml.Node, path: Path, message: str) -> None:
        self.problems.append(Problem(*_start(node.start_mark), key_path(path), message))
