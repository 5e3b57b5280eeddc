"""Phone profiles: what is known of a phone, every number with its source, and the memory budget that follows.

What lives here: the schema of ``profiles/*.yaml`` and their loader. What must not: running anything, and any number of
a phone.

A new phone is one new YAML file. A profile is data: unknown keys, aliases and numbers without a source are errors that
name the file, the line, the key and the nearest valid one.
"""

from __future__ import annotations

import difflib
import json
from abc import abstractmethod
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artifacts.documents import DocumentError, read_bytes
from artifacts.errors import EdgewrightError

Confidence = Literal["measured", "published", "weak", "policy"]
Value = TypeVar("Value")
KeyPath = tuple[str | int, ...]
_MAX_FILE_BYTES = 1 << 17
_MAX_DEPTH = 16


class ProfileError(EdgewrightError):
    """A profile that cannot be read; the message says file, line, key and what would be valid."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Sourced(_Strict, Generic[Value]):
    """One number or fact of a phone, with where and when it was read and how far to trust it.

    ``measured``: on that phone, by the source. ``published``: by the maker, the operating system's source or a
    standard. ``weak``: aggregators, communities, carried over from another phone. ``policy``: our choice, without a
    source.
    """

    value: Value
    source: str = Field(min_length=10)
    date: str = Field(
        pattern=r"^\d{4}-\d{2}(-\d{2})?$", description="year-month, or year-month-day, of the source or of its reading"
    )
    confidence: Confidence


PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Cpu(_Strict):
    """``isa``: the extensions that every core has, of those that quantized kernels ask for."""

    cores: Sourced[PositiveInt]
    clusters: Sourced[Annotated[tuple[str, ...], Field(min_length=1)]]
    isa: Sourced[tuple[Literal["dotprod", "i8mm"], ...]]


class IosLimit(_Strict):
    """The footprint at which iOS kills a foreground app, from operating system ``since`` ("14.0") on.

    None: no figure is known.
    """

    since: str = Field(pattern=r"^\d+(\.\d+)*$")
    footprint_bytes: Sourced[PositiveInt]
    increased_footprint_bytes: Sourced[PositiveInt] | None


class IosMemory(_Strict):
    """``single_mapping_bytes``: the largest mapping without the extended-virtual-addressing entitlement."""

    limits: tuple[IosLimit, ...] = Field(min_length=1)
    single_mapping_bytes: Sourced[PositiveInt] | None
    uncertainty: Sourced[Fraction]


class AndroidMemory(_Strict):
    """``budget_bytes`` is a policy: Android publishes no limit per app. The rest are lmkd's settings (AOSP source)."""

    budget_bytes: Sourced[PositiveInt]
    uncertainty: Sourced[Fraction]
    low_ram: Sourced[bool]
    thrashing_limit_percent: Sourced[PositiveFloat]
    thrashing_decay_percent: Sourced[PositiveFloat]
    psi_partial_stall_ms: Sourced[PositiveInt]
    psi_complete_stall_ms: Sourced[PositiveInt]
    psi_window_ms: Sourced[PositiveInt]
    swap_free_low_percent: Sourced[PositiveFloat]
    zram_bytes: Sourced[Annotated[int, Field(ge=0)]]


@dataclass(frozen=True)
class MemoryBudget:
    """What the sandbox enforces and the verdict compares with; sizes in bytes over the interpreter's baseline.

    Up to ``comfortable_bytes`` a run fits, up to ``limit_bytes`` it is tight.
    """

    rule: Literal["android", "ios"]
    limit_bytes: int
    comfortable_bytes: int
    thrashing_limit_percent: float | None
    swap_bytes: int
    source: str
    confidence: Confidence


class Profile(_Strict):
    """What every phone has. Read one with ``load_profile``; it is an ``AndroidProfile`` or an ``IosProfile``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    notes: str
    platform: Literal["android", "ios"]
    os_version: Sourced[str]
    ram_bytes: Sourced[PositiveInt]
    soc: Sourced[str]
    cpu: Cpu
    bandwidth_bytes_per_s: Sourced[PositiveFloat] | None

    @abstractmethod
    def budget(
        self, peak_memory_bytes: int | None = None, *, os_version: str | None = None, increased: bool = False
    ) -> MemoryBudget:
        """The memory budget of an app on this phone.

        ``peak_memory_bytes`` is a recipe's own limit: it can make the budget smaller, not larger than the phone's.
        ``os_version`` chooses among the limits of iOS versions (default: the profile's), ``increased`` asks for the
        increased-memory-limit entitlement. Raises ProfileError when the profile has no figure for that.
        """

    def _budget(
        self, limit: Sourced[PositiveInt], uncertainty: float, wish: int | None, thrash: float | None, swap: int
    ) -> MemoryBudget:
        own = limit.value if wish is None else min(wish, limit.value)
        # a recipe's own limit is exact; the uncertainty is that of the phone's
        comfortable = min(own, int(limit.value * (1 - uncertainty)))
        return MemoryBudget(self.platform, own, comfortable, thrash, swap, limit.source, limit.confidence)


class AndroidProfile(Profile):
    """An Android phone."""

    platform: Literal["android"]
    memory: AndroidMemory

    def budget(
        self, peak_memory_bytes: int | None = None, *, os_version: str | None = None, increased: bool = False
    ) -> MemoryBudget:
        """See ``Profile.budget``; ``os_version`` and ``increased`` have no meaning here and must not be given."""
        if os_version is not None or increased:
            raise ProfileError(f"profile {self.name}: limits by OS version and the increased limit exist on iOS only")
        memory = self.memory
        thrashing, swap = memory.thrashing_limit_percent.value, memory.zram_bytes.value
        return self._budget(memory.budget_bytes, memory.uncertainty.value, peak_memory_bytes, thrashing, swap)


class IosProfile(Profile):
    """An iPhone or iPad."""

    platform: Literal["ios"]
    memory: IosMemory

    def budget(
        self, peak_memory_bytes: int | None = None, *, os_version: str | None = None, increased: bool = False
    ) -> MemoryBudget:
        """See ``Profile.budget``; the newest limit that is not newer than the OS version counts."""
        version = os_version or self.os_version.value
        since = [limit for limit in self.memory.limits if _version(limit.since) <= _version(version)]
        if not since:
            raise ProfileError(f"profile {self.name}: no memory limit is known for iOS {version}")
        newest = max(since, key=lambda limit: _version(limit.since))
        figure = newest.increased_footprint_bytes if increased else newest.footprint_bytes
        if figure is None:
            raise ProfileError(
                f"profile {self.name}: no figure is known for increased-memory-limit on iOS {version}; leave it out"
            )
        return self._budget(figure, self.memory.uncertainty.value, peak_memory_bytes, None, 0)


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
            f"there is no profile {text!r}{_nearest(text, list_profiles())}; known: {', '.join(list_profiles())}"
        )
    return parse_profile((_shipped() / f"{text}.yaml").read_bytes(), f"{text}.yaml")


def parse_profile(content: bytes, file: str) -> AndroidProfile | IosProfile:
    """A profile from the bytes of a YAML file; ``file`` is for messages. Raises ProfileError."""
    data, lines = _read_yaml(content, file)
    platform = data.get("platform")
    if not isinstance(platform, str) or platform not in _PLATFORMS:
        where = f"{file}, line {lines.get(('platform',), 1)}, key 'platform'"
        raise ProfileError(
            f"{where}: must be one of {', '.join(_PLATFORMS)}{_nearest(str(platform), list(_PLATFORMS))}"
        )
    model = _PLATFORMS[platform]
    try:
        # through JSON: pydantic's strict mode then takes lists for tuples, and nothing else in place of something else
        return model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise ProfileError(
            "\n".join(_message(file, lines, model, dict(problem)) for problem in error.errors())
        ) from error


def _shipped() -> Any:
    return resources.files("device_farm") / "profiles"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _nearest(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, 1, 0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _message(file: str, lines: dict[KeyPath, int], model: type[BaseModel], problem: dict[str, Any]) -> str:
    where: KeyPath = problem["loc"]
    known = next(where[:size] for size in range(len(where), -1, -1) if where[:size] in lines or not size)
    key = ".".join(str(part) for part in where)
    text = f"{file}, line {lines.get(known, 1)}, key {key!r}: "
    if problem["type"] == "missing":
        return f"{text}missing; add it"
    if problem["type"] == "extra_forbidden":
        valid = list(_model_at(model, where[:-1]).model_fields)
        return f"{text}unknown{_nearest(str(where[-1]), valid)}; valid here: {', '.join(valid)}"
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
