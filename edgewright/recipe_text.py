"""A recipe's file as text that works from anywhere: the paths in it that are relative to the file made absolute; and
as that of a variant, whose name and catch-all rule are others.

Reads text that has been validated as a recipe. What must not live here: what a recipe means (`recipes/`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from edgewright.streams import plain
from recipes.fields import BUILT_IN_TEXT
from recipes.schema import Recipe

_PATHS = (
    ("checkpoint", "path"),
    ("checkpoint", "config"),
    ("quantize", "calibration", "text"),
    ("quantize", "calibration", "images"),
    ("validate", "quality", "text"),
    ("validate", "quality", "clips"),
    ("validate", "task", "file"),
)


def standalone(file: Path, recipe: Recipe) -> str:
    """The file's text below comments that say where it comes from, and which of its paths were made absolute."""
    text = file.read_text(encoding="utf-8-sig")
    root = yaml.compose(text, yaml.SafeLoader)
    changed = []
    for key, node in sorted(_path_nodes(root), key=lambda item: -item[1].start_mark.index):
        if not Path(node.value).is_absolute() and node.value != BUILT_IN_TEXT:
            absolute = json.dumps(str(recipe.resolve(node.value).absolute()), ensure_ascii=False)
            text = text[: node.start_mark.index] + absolute + text[node.end_mark.index :]
            changed.append(key)
    head = [f"# {file}", f"# digest {recipe.digest}"]
    if changed:
        head.append(f"# relative to that file there, absolute here: {', '.join(reversed(changed))}")
    return "".join(plain(line, lines=False) + "\n" for line in head) + text


def varied(recipe: Recipe, variant: Recipe, source: str) -> str:
    """The text of a recipe's file with the name and the last rule's choice of a variant, comments and all else kept,
    below a comment that says where it comes from.

    variant: the same recipe with another name and another rule in the place of the one that matches "*".
    """
    assert recipe.origin is not None  # it was read from a file
    text = standalone(recipe.origin, recipe)
    root = yaml.compose(text, yaml.SafeLoader)
    rules = _value(_value(root, "quantize"), "rules")
    at = next(i for i, rule in enumerate(variant.quantize.rules) if rule.match == "*")
    assert isinstance(rules, yaml.SequenceNode)
    rule = variant.quantize.rules[at].model_dump(mode="json", exclude_unset=True)
    name = _value(root, "name")
    assert name is not None
    for node, said in sorted(((rules.value[at], rule), (name, variant.name)), key=lambda i: -i[0].start_mark.index):
        text = text[: node.start_mark.index] + json.dumps(said, ensure_ascii=False) + text[_end(node) :]
    return f"# {plain(variant.name, lines=False)}: {plain(source, lines=False)} of this recipe:\n{text}"


def _end(node: yaml.Node) -> int:
    """Where a node's text ends; the mark of a block mapping is where the next token begins, comments behind it."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _end(node.value[-1][1])
    return int(node.end_mark.index)


def _path_nodes(root: yaml.Node | None) -> Iterator[tuple[str, yaml.ScalarNode]]:
    for keys in _PATHS:
        node = root
        for key in keys:
            node = _value(node, key)
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":str"):
            yield ".".join(keys), node
    for name, _ in _items(_value(_value(root, "validate"), "profiles")):
        if name.value.endswith((".yaml", ".yml")):
            yield f"validate.profiles.{name.value}", name


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    return next((value for name, value in _items(node) if name.value == key), None)


def _items(node: yaml.Node | None) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []
