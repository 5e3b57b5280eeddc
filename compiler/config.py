"""config.json of a checkpoint, and typed readings of its keys: each says which key is wrong, and what it must be.

Whoever made a checkpoint wrote these values, so nothing of them is used before it was read through `Keys`. What must
not live here: what a key means to a family of models.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.documents import DocumentError, read_json
from compiler.tensors import CheckpointError

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_MAX_NAME = 80


def read_config(path: Path) -> dict[str, Any]:
    """The checkpoint's config.json as a dict; special tokens it leaves out come from generation_config.json.

    Raises EdgewrightError.
    """
    if not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such checkpoint folder")
    if not os.path.lexists(path / "config.json"):
        if adapter(path) is not None:
            raise CheckpointError(adapter_alone(path))
        raise CheckpointError(f"{path}: no config.json: is this a Hugging Face checkpoint folder?")
    config = read_json(path / "config.json")
    if os.path.lexists(path / "generation_config.json"):
        generation = Keys(read_json(path / "generation_config.json"), "generation_config.json: ")
        for key in _TOKENS:
            if config.get(key) is None and generation.tokens(key):
                config[key] = generation.values[key]
    return config


def adapter(path: Path) -> str | None:
    """The file by which a folder is seen to hold a LoRA adapter; None when it holds none."""
    return next((name for name in _ADAPTER if os.path.lexists(path / name)), None)


def adapter_alone(path: Path) -> str:
    """What to say of a folder that holds an adapter and not the weights that it belongs to."""
    try:
        base = read_json(path / _ADAPTER[0]).get("base_model_name_or_path")
    except DocumentError:
        base = None
    of = f" for {base[:_MAX_NAME]!r}" if isinstance(base, str) and base else ""
    return (
        f"{path}: holds a LoRA adapter{of}, not a whole checkpoint ({adapter(path)}). Merge it into its base model "
        "first: with peft, model.merge_and_unload().save_pretrained(folder), and save the tokenizer there too"
    )


def adapter_beside(path: Path) -> str | None:
    """What to say of an adapter beside whole weights; None where there is none."""
    found = adapter(path)
    return found and (
        f"a LoRA adapter lies beside the weights ({found}) and is not applied: the packages are those of the "
        "base model; merge it first (peft: model.merge_and_unload().save_pretrained(folder))"
    )


@dataclass(frozen=True)
class Keys:
    """An object of a JSON file. A key that is missing or null takes the default; where there is none, that is an error.

    where: the beginning of every message, the file and the path to the object: `config.json: text_config.`
    """

    values: Mapping[str, Any]
    where: str = "config.json: "

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from `low` to `high`."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, f"must be a whole number from {low} to {high}")
        return value

    def integers(self, key: str, counts: range, default: Sequence[int]) -> tuple[int, ...]:
        """A list of whole numbers from 1 up, of a length that is in `counts`."""
        value = self.values.get(key)
        if value is None:
            return tuple(default)
        if (
            not isinstance(value, list)
            or len(value) not in counts
            or any(type(v) is not int or not 0 < v < 1 << 14 for v in value)
        ):
            many = str(counts.start) if len(counts) == 1 else f"{counts.start} to {counts.stop - 1}"
            raise self.error(key, f"must be a list of {many} whole numbers from 1 to {(1 << 14) - 1}")
        return tuple(value)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number from `low` to `high`."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key)
        if not isinstance(value, bool | None):
            raise self.error(key, "must be true or false")
        return default if value is None else value

    def word(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """One of a few words."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, f"must be one of {', '.join(choices)}")
        return value

    def tokens(self, key: str) -> tuple[int, ...]:
        """Token ids, given as one or as a list; none when the key is missing."""
        value = self.values.get(key)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(v, int) or isinstance(v, bool) or not 0 <= v < 2**31 for v in found):
            raise self.error(key, "must be a token id or a list of token ids, whole numbers from 0 up")
        return tuple(found)

    def section(self, key: str) -> Keys:
        """An object in this one; an empty one when the key is missing."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "must be an object")
        return Keys(value or {}, f"{self.where}{key}.")

    def error(self, key: str, what: str) -> CheckpointError:
        """That a key is wrong: what it must be, and what it is."""
        value = self.values.get(key)
        return CheckpointError(f"{self.where}{key} {what}" + (", and is missing" if value is None else _not(value)))


def _not(value: Any) -> str:
    return f", not {reprlib.repr(value)}"
