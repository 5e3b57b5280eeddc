"""Finding and reading recipes: a path or a shipped name in, a validated recipe or one RecipeError out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from recipes.document import MAX_BYTES, Document, key_path, parse
from recipes.errors import Problem, RecipeError, nearest
from recipes.schema import Recipe

_SHIPPED = Path(__file__).parent
_KIND = {
    "bool": "true or false",
    "dict": "a mapping (indented key: value lines)",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a mapping (indented key: value lines)",
    "string": "text",
    "tuple": "a list",
}
_BOUND = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}

R = TypeVar("R", bound=Recipe)


def shipped() -> dict[str, Path]:
    """The recipes that come with the package: name (the file's stem) to file, in order of name."""
    return {path.stem: path for path in sorted(_SHIPPED.rglob("*.yaml"), key=lambda path: path.stem)}


def find(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path, or by the name of one that ships. Raises RecipeError."""
    text, path = str(name_or_path), Path(name_or_path)
    looks_like_path = isinstance(name_or_path, Path) or len(path.parts) != 1 or path.suffix in (".yaml", ".yml")
    if looks_like_path:
        if os.path.isdir(path):
            raise RecipeError(text, "is a folder; name the recipe file in it")
        if not os.path.isfile(path):  # pipes and devices are none, and some names can be no file's
            what = "is no file that can be read" if os.path.lexists(path) else "no such recipe file"
            raise RecipeError(text, f"{what}{_same_name(path)}")
        return path
    known = shipped()
    if text not in known:
        raise RecipeError(text, f"no shipped recipe has this name{nearest(text, known)}")
    return known[text]


def load(name_or_path: str | Path, model: type[R]) -> R:
    """Read and validate a recipe. Every problem is reported with its line and key, in one RecipeError."""
    path = find(name_or_path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(str(path), f"cannot be read: {error.strerror}") from None
    recipe = validate(parse(raw, str(path)), model, str(path))
    recipe._origin = path.resolve()
    return recipe


def validate(document: Document, model: type[R], source: str) -> R:
    """Validate parsed YAML. Raises RecipeError with every problem, each at its place."""
    if not isinstance(document.data, dict):
        what = "is empty" if document.data is None else "is not a mapping of keys to values"
        raise RecipeError(source, [Problem(1, 1, "", what)])
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        schema = model.model_json_schema()
        raise RecipeError(source, [_problem(e, document, schema) for e in error.errors(include_url=False)]) from None


def _same_name(path: Path) -> str:
    return f'; a recipe named "{path.stem}" ships with the package: edgewright run {path.stem}' * (
        path.stem in shipped()
    )


def _problem(error: ErrorDetails, document: Document, schema: Mapping[str, Any]) -> Problem:
    """Pydantic's finding in the recipe's words, at the place of the key it is about."""
    path = _path(error, document.data)
    if error["type"] == "missing":
        line, column = document.places[path[:-1]].key
        return Problem(line, column, key_path(path[:-1]), f'missing key "{path[-1]}"')
    place = document.places[path]
    if error["type"] == "extra_forbidden":
        what = "unknown target" if path[:-1] == ("targets",) else "unknown key"
        hint = nearest(str(path[-1]), _keys(schema, error["loc"][:-1]))
        return Problem(*place.key, key_path(path), what + hint)
    if error["type"] == "unknown_profile":
        return Problem(*place.key, key_path(path), f"unknown phone profile{nearest(str(path[-1]), _known(error))}")
    if error["type"] == "union_tag_invalid":
        path = (*path, "method")
        method = error.get("ctx", {}).get("tag", "")
        hint = nearest(str(method), _known(error))
        return Problem(*document.places.get(path, place).value, key_path(path), f"unknown method {method!r}{hint}")
    return Problem(*place.value, key_path(path), _message(error))


def _message(error: ErrorDetails) -> str:
    kind, context, given = error["type"], error.get("ctx", {}), error["input"]
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        near = (
            get_close_matches(given, _known(error), n=1)
            if isinstance(given, str) and "'" in context["expected"]
            else ()
        )
        return f"must be {context['expected']}, not {_show(given)}" + (f'; did you mean "{near[0]}"?' if near else "")
    if kind in _BOUND:
        word, name = _BOUND[kind]
        return f"must be {word} {context[name]}, not {_show(given)}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind.endswith("_type") and kind.removesuffix("_type") in _KIND:
        return f"must be {_KIND[kind.removesuffix('_type')]}, not {_show(given)}"
    return error["msg"][:1].lower() + error["msg"][1:]


def _known(error: ErrorDetails) -> list[str]:
    context = error.get("ctx", {})
    if "known" in context:
        return list(context["known"])
    expected = str(context.get("expected_tags") or context.get("expected", ""))
    return [word.strip("' ") for word in expected.replace(" or ", ",").split(",")]


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _path(error: ErrorDetails, data: Any) -> tuple[str | int, ...]:
    """The error's location in the document: pydantic's, without union tags and its mark of a mapping's key."""
    path: list[str | int] = []
    for part in error["loc"]:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if inside:
            data = data[part]
            path.append(part)
    return (*path, error["loc"][-1]) if error["type"] == "missing" else tuple(path)


def _keys(schema: Mapping[str, Any], loc: Sequence[str | int]) -> set[str]:
    """The keys that the JSON Schema allows at a location; a union's members count together, or the tagged one alone."""
    nodes = list(_members(schema, schema))
    for part in loc:
        below: list[Mapping[str, Any]] = []
        for node in nodes:
            if isinstance(part, int):
                child = node.get("items")
            else:
                child = node.get("properties", {}).get(part) or node.get("additionalProperties")
            if isinstance(child, dict):
                below += _members(child, schema)
        tagged = [n for n in nodes if n.get("properties", {}).get("method", {}).get("const") == part]
        nodes = below or tagged or nodes
    return {key for node in nodes for key in node.get("properties", {})}


def _members(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in node:
        yield from _members(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    for union in ("anyOf", "oneOf", "allOf"):
        for member in node.get(union, ()):
            yield from _members(member, schema)
    if "properties" in node or "items" in node or "additionalProperties" in node:
        yield node
