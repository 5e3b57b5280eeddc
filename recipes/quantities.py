"""Quantities as people write them in a recipe: sizes, percentages, times and rates.

Each is a pydantic type: it takes text with a unit and gives a number in one fixed unit (bytes, a fraction of one,
seconds, tokens per second, decibels).
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

_SIZES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES = {"ms": 1e-3, "s": 1.0, "min": 60.0}
_AMOUNT = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*(\S*)\s*", re.ASCII)
_BYTES_LIMIT = 2**50


def parse_bytes(value: Any) -> int:
    """`1400MB` (10^6), `1.5GiB` (2^30) or a whole number of bytes. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        amount, unit = _split(value, "a size such as 1400MB or 1.5GiB")
        if unit not in _SIZES:
            raise ValueError(f"must be a size with one of the units {', '.join(_SIZES)}, not {value!r}")
        size = round(amount * _SIZES[unit])
    if not 0 < size < _BYTES_LIMIT:
        raise ValueError(f"must be between 1 byte and 1024 TiB, not {value!r}")
    return size


def parse_fraction(value: Any) -> float:
    """`3%` or `0.03`, as a fraction of one. Raises ValueError, also for a bare number above one: it is ambiguous."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= 1:
            raise ValueError(f"must be a percentage such as 3%, or a fraction between 0 and 1, not {value!r}")
        return float(value)
    amount, unit = _split(value, "a percentage such as 3%")
    if unit != "%" or amount > 1000:
        raise ValueError(f"must be a percentage such as 3%, not {value!r}")
    return amount / 100


def parse_share(value: Any) -> float:
    """A fraction that cannot pass one, such as an agreement: `95%` or `0.95`. Raises ValueError."""
    share = parse_fraction(value)
    if share > 1:
        raise ValueError(f"must be at most 100%, not {value!r}")
    return share


def parse_seconds(value: Any) -> float:
    """`4s`, `800ms`, `1.5 min`, or a number of seconds. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        amount, unit = float(value), "s"
    else:
        amount, unit = _split(value, "a time such as 4s or 800ms")
    if unit not in _TIMES or not 0 < amount * _TIMES[unit] < 1e6:
        raise ValueError(f"must be a time such as 4s or 800ms, not {value!r}")
    return amount * _TIMES[unit]


def parse_rate(value: Any) -> float:
    """`12 tok/s`, or a number of tokens per second. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        amount, unit = float(value), "tok/s"
    else:
        amount, unit = _split(value, "a rate such as 12 tok/s")
    if unit != "tok/s" or not 0 < amount < 1e6:
        raise ValueError(f"must be a rate such as 12 tok/s, not {value!r}")
    return amount


def _split(value: Any, expected: str) -> tuple[float, str]:
    match = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if match is None or not math.isfinite(float(match[1])):
        raise ValueError(f"must be {expected}, not {value!r}")
    return float(match[1]), match[2]


def parse_decibels(value: Any) -> float:
    """`36 dB`, or the bare number. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        amount, unit = float(value), "dB"
    else:
        amount, unit = _split(value, "decibels such as 36 dB")
    if unit != "dB" or not 0 < amount <= 100:
        raise ValueError(f"must be decibels from 0 to 100, such as 36 dB, not {value!r}")
    return amount


def _text_or_number(example: str, number: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "string", "examples": [example]}, {"type": number}]})


Bytes = Annotated[int, BeforeValidator(parse_bytes), _text_or_number("1400MB", "integer")]
Fraction = Annotated[float, BeforeValidator(parse_fraction), _text_or_number("3%", "number")]
Share = Annotated[float, BeforeValidator(parse_share), _text_or_number("95%", "number")]
Seconds = Annotated[float, BeforeValidator(parse_seconds), _text_or_number("4s", "number")]
Decibels = Annotated[float, BeforeValidator(parse_decibels), _text_or_number("36 dB", "number")]
TokensPerSecond = Annotated[float, BeforeValidator(parse_rate), _text_or_number("12 tok/s", "number")]
