"""edgewright.index.json: which packages a repository holds, and on which phone each was found to work.

What lives here: its schema (README.md beside this file is its documentation), what a package becomes in it, and the
choice of one for a phone. What must not: the Hub, and files.

An app may read it to choose for the phone that it runs on; `edgewright pull` does.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from artifacts import Check, EdgewrightError, GateFailed, Manifest, passes
from artifacts.documents import DocumentError, first_error, parse_json
from artifacts.manifest import QuantizationGroup, Sha256, Size, Standing, ValidationRecord
from device_farm import ProfileError, load_profile
from edgewright import text
from runtime_tests.quality import QUALITY
from runtime_tests.task import NAME as TASK
from runtime_tests.vectors import PARITY

# The files of the root: the repository's page, one that the Hub counts downloads by, and the index.
CARD = "README.md"
CONFIG = "config.json"
INDEX = "edgewright.index.json"
SCHEMA_VERSION: Final = 1
MAX_INDEX_BYTES = 4 << 20
_OF_THE_MODEL = (PARITY, QUALITY, TASK)
_NOT_FOR: Final = "not for this platform"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Origin(_Strict):
    """The checkpoint on the Hub that the packages were made from, and its commit."""

    repo: str
    revision: str


class Phone(_Strict):
    """What is known of a phone, so that an app can tell which one it runs on."""

    platform: Literal["android", "ios"]
    ram_bytes: Size


class ManifestFile(_Strict):
    """edgewright.json of a variant, which holds the digest of every other file."""

    sha256: Sha256
    bytes: Size


class Judged(_Strict):
    """A variant on one phone: the verdict, and every figure with its limit and how it was obtained."""

    verdict: Literal["passed", "failed", "not for this platform"]
    checks: tuple[Check, ...]


class Variant(_Strict):
    """One package, in the folder `name`. `payload_bytes` is what an app ships of it, by platform (null: not stated)."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(-[A-Za-z0-9]+(\.[A-Za-z0-9]+)*)+$", max_length=96)]
    target: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    verdict: Standing
    manifest: ManifestFile
    bytes: Size
    payload_bytes: dict[str, Size] | None
    quantization: tuple[QuantizationGroup, ...]
    profiles: dict[str, Judged]

    def payload(self, platform: str | None) -> int:
        """Bytes that an app for the platform ships; the most of all platforms where it is not known."""
        sizes = self.payload_bytes or {}
        return sizes.get(platform or "", max(sizes.values(), default=self.bytes))


class Index(_Strict):
    """The whole file. `profiles` holds the phones that ship with Edgewright; one of somebody's own is not in it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    base_model: Origin | None
    profiles: dict[str, Phone]
    variants: tuple[Variant, ...]

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        if len({variant.name.casefold() for variant in self.variants}) < len(self.variants):
            raise ValueError("two variants have one name")
        return self

    def content(self) -> bytes:
        """The content of edgewright.index.json."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def read_index(raw: bytes, where: str) -> Index:
    """Raises EdgewrightError, which names `where`, for anything but an index of this schema version."""
    try:
        version: JsonValue = parse_json(raw, where).get("schema_version")
        if type(version) is int and version > SCHEMA_VERSION:
            raise EdgewrightError(
                f"{where}: schema version {version} is newer than this Edgewright reads ({SCHEMA_VERSION}); upgrade it"
            )
        return Index.model_validate_json(raw, strict=True)
    except DocumentError as error:
        raise EdgewrightError(f"{error}; publish the packages again") from error
    except ValidationError as error:
        raise EdgewrightError(
            f"{where}: not an index of Edgewright ({first_error(error)}); publish the packages again"
        ) from error


def variant(manifest: Manifest, digest: str, size: int, payload: dict[str, int] | None) -> Variant:
    """What a package is in the index. digest, size: of its manifest's file; payload: see `artifacts.payload`."""
    return Variant(
        name=_name(manifest, payload),
        target=manifest.target,
        verdict=manifest.verdict,
        manifest=ManifestFile(sha256=digest, bytes=size),
        bytes=manifest.total_bytes,
        payload_bytes=payload,
        quantization=manifest.quantization,
        profiles=_judged(manifest.validations),
    )


def of_the_model(check: Check) -> bool:
    """Whether a check is of the model by itself; else it is of the phone that its group names."""
    return check.group in _OF_THE_MODEL


def phones(variants: Sequence[Variant]) -> dict[str, Phone]:
    """What is known of every phone that a variant was judged on."""
    found = {}
    for name in sorted({name for item in variants for name in item.profiles}):
        try:
            profile = load_profile(name)
        except ProfileError:  # somebody's own, which is a file on another machine
            continue
        found[name] = Phone(platform=profile.platform, ram_bytes=profile.ram_bytes.value)
    return found


def choose(index: Index, profile: str, repo: str) -> Variant:
    """The variant with the smallest payload among those that passed on the phone.

    Raises:
        EdgewrightError: none of them was ever judged on it.
        GateFailed: none of them passed; the message says what each lacks.
    """
    if not any(profile in item.profiles for item in index.variants):
        known = sorted({name for item in index.variants for name in item.profiles})
        near = difflib.get_close_matches(profile, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known there: {', '.join(known) or 'no phone'}"
        raise EdgewrightError(f"{repo}: no package was judged on {profile!r}; {hint}")
    platform = index.profiles[profile].platform if profile in index.profiles else None
    good = [item for item in index.variants if _lacking(item, profile) is None]
    if not good:
        lines = [f"  {item.name}: {_lacking(item, profile)}" for item in index.variants]
        raise GateFailed("\n".join([f"{repo}: no package passed on {profile}, so none was fetched", *lines]))
    return min(good, key=lambda item: (item.payload(platform), item.name))


def _lacking(item: Variant, profile: str) -> str | None:
    """Why a variant is not for a phone; None if it is."""
    judged = item.profiles.get(profile)
    if judged is None:
        return "never judged on it"
    if judged.verdict == "failed":
        failing = [check for check in judged.checks if not passes([check])]
        return "; ".join(text.failed(check) for check in failing) or "failed on it"
    if judged.verdict == _NOT_FOR:
        return _NOT_FOR
    return None if item.verdict == "passed" else f"{item.verdict} as a whole: it was published all the same"


def _judged(records: Sequence[ValidationRecord]) -> dict[str, Judged]:
    """By phone, the last validation that judged it; failed if any of them failed on it."""
    found: dict[str, Judged] = {}
    for record in sorted(records, key=lambda item: item.created):
        for name in dict.fromkeys(check.group for check in record.checks if not of_the_model(check)):
            checks = tuple(check for check in record.checks if check.group == name)
            verdict: Literal["passed", "failed", "not for this platform"] = "failed"
            if all(check.verdict == _NOT_FOR for check in checks):
                verdict = _NOT_FOR
            elif record.verdict == "passed" or passes(checks):  # the recipe may accept what is tight or not assessed
                verdict = "passed"
            if name not in found or found[name].verdict != "failed" or verdict == "failed":
                found[name] = Judged(verdict=verdict, checks=checks)
    return dict(sorted(found.items()))


def _name(manifest: Manifest, payload: dict[str, int] | None) -> str:
    """`onnx-int4-1.93GB`: the target, the bits of most parameters, and what an app ships of it."""
    largest = max(manifest.quantization, key=lambda group: group.parameters, default=None)
    bits = "half" if largest is None or largest.bits == 16 else f"int{largest.bits}"
    shipped = max((payload or {}).values(), default=manifest.total_bytes)
    return f"{manifest.target}-{bits}-{text.size(shipped).replace(' ', '').replace(',', '')}"
