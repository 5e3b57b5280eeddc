"""Profiles from YAML files, those that ship and one's own.

What lives here: their loader, and errors that name the file, the line and the key. What must not: the schema
(``profile.py``), what a profile may not say as a whole (``consistent.py``).

A new phone is one new YAML file. A profile is data: unknown keys, aliases and numbers without a source are errors that
name the nearest valid key.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from artifacts.documents import DocumentError, read_bytes
from device_farm.consistent import contradictions, nearest
from device_farm.profile import AndroidProfile, IosProfile, ProfileError

KeyPath = tuple[str | int, ...]
_MAX_FILE_BYTES = 1 << 17
_MAX_DEPTH = 16

_PLATFORMS: dict[str, type[AndroidProfile | IosProfile]] = {"android": AndroidProfile, "ios": IosProfile}


def list_profiles() -> list[str]:
    """Names of the profiles that Edgewright ships, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def load_profile(name_or_path: str | Path) -> AndroidProfile | IosProfile:
    """Reads a shipped profile by its name, or one's own by its path (anything with a slash or ending in .yaml).

    Raises ProfileError.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        try:
            return parse_profile(read_bytes(Path(name_or_path), _MAX_FILE_BYTES), text)
        except DocumentError as error:
            raise ProfileError(f"{error}; it was given as a phone profile") from error
    if text not in list_profiles():
        raise ProfileError(
            f"there is no profile {text!r}{nearest(text, list_profiles())}; known: {', '.join(list_profiles())}"
        )
    return _shipped_profile(text)


def parse_profile(content: bytes, file: str) -> AndroidProfile | IosProfile:
    """A profile from the bytes of a YAML file; ``file`` is for messages. Raises ProfileError."""
    data, lines = _read_yaml(content, file)
    platform = data.get("platform")
    if not isinstance(platform, str) or platform not in _PLATFORMS:
        where = f"{file}, line {lines.get(('platform',), 1)}, key 'platform'"
        raise ProfileError(f"{where}: must be one of {', '.join(_PLATFORMS)}{nearest(str(platform), list(_PLATFORMS))}")
    model = _PLATFORMS[platform]
    try:
        # through JSON: pydantic's strict mode then takes lists for tuples, and nothing else in place of something else
        profile = model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise ProfileError(
            "\n".join(_message(file, lines, model, dict(problem)) for problem in error.errors())
        ) from error
    if problems := [f"{_place(file, lines, where)}: {what}" for where, what in contradictions(profile)]:
        raise ProfileError("\n".join(problems))
    return profile


@cache
def _shipped_profile(name: str) -> AndroidProfile | IosProfile:
    return parse_profile((_shipped() / f"{name}.yaml").read_bytes(), f"{name}.yaml")


def _shipped() -> Any:
    return resources.files("device_farm") / "profiles"


def _place(file: str, lines: dict[KeyPath, int], where: KeyPath) -> str:
    known = next(where[:size] for size in range(len(where), -1, -1) if where[:size] in lines or not size)
    return f"{file}, line {lines.get(known, 1)}, key {'.'.join(str(part) for part in where)!r}"


def _message(file: str, lines: dict[KeyPath, int], model: type[BaseModel], problem: dict[str, Any]) -> str:
    where: KeyPath = problem["loc"]
    text = f"{_place(file, lines, where)}: "
    if problem["type"] == "missing":
        return f"{text}missing; add it"
    if problem["type"] == "extra_forbidden":
        valid = list(_model_at(model, where[:-1]).model_fields)
        return f"{text}unknown{nearest(str(where[-1]), valid)}; valid here: {', '.join(valid)}"
    if problem["type"] == "model_type" and not isinstance(problem["input"], dict | list):
        return f"{text}{problem['input']!r} needs its source: {{value: …, source: …, date: …, confidence: …}}"
    return f"{text}{problem['msg'][0].lower()}{problem['msg'][1:]}"


def _model_at(model: type[BaseModel], where: KeyPath) -> type[BaseModel]:
    """The model that a path of field names and list indices leads to."""
    for part in where:
        if isinstance(part, str):
            annotation: Any = model.model_fields[part].annotation
            inner = [annotation, *get_args(annotation)]
            model = next(kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel))
    return model


def _read_yaml(content: bytes, file: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """A YAML mapping and the line of every key in it.

    Refused: aliases and deep nesting (they can grow without bound), keys given twice, any tag that is not plain YAML.
    """
    if len(content) > _MAX_FILE_BYTES:
        raise ProfileError(f"{file}: larger than {_MAX_FILE_BYTES} bytes: not a profile")
    lines: dict[KeyPath, int] = {}
    depth = 0
    try:
        text = content.decode()
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise ProfileError(f"{file}, line {line}: aliases and deep nesting are not allowed; write values out")
        node = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise ProfileError(f"{file}, line 1: must be a mapping of keys; see the shipped profiles for one")
        _note_lines(node, (), lines, file)
        data: dict[str, Any] = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = 1 if mark is None else mark.line + 1
        raise ProfileError(f"{file}, line {line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProfileError(f"{file}: not valid YAML: {type(error).__name__}") from error
    return data, lines


def _note_lines(node: yaml.Node, where: KeyPath, lines: dict[KeyPath, int], file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*where, str(key.value))
            if key.tag != "tag:yaml.org,2002:str" or inner in lines:
                raise ProfileError(
                    f"{file}, line {key.start_mark.line + 1}, key {str(key.value)!r}: given twice, or not a word"
                )
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*where, index)] = value.start_mark.line + 1
            _note_lines(value, (*where, index), lines, file)
