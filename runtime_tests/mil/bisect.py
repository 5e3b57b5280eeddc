"""Which operation is the first to differ from a reference: the answer to "parity failed, but where?".

A reference gives tensors by the names of the graph that was converted (torch.export's node names). The converter keeps
these names and decorates them (`linear_3` becomes `linear_3_cast_fp16`), so a value of the program is compared when
its plain name is known and the number of elements agrees. One run sees every intermediate value: no search is needed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime_tests.mil.program import Function, State

_PREFIX = re.compile(r"^(float32_)+")
_SUFFIX = re.compile(r"(_cast_(fp|u?int)\d+|_to_(fp|u?int)\d+)+$")


@dataclass(frozen=True)
class Divergence:
    """The first operation that differs: its MIL type, the name of its result, and by how much (relative RMS).

    after: the last operation before it that agreed, None when none did. The fault is between the two.
    """

    function: str
    operation: str
    name: str
    error: float
    after: str | None

    def __str__(self) -> str:
        since = f"after {self.after!r}, which agrees" if self.after else "nothing before it was compared"
        return (
            f"{self.function}: operation {self.operation} {self.name!r} is the first to differ from the reference "
            f"(relative RMS {self.error:.3g}; {since})"
        )


@dataclass(frozen=True)
class Comparison:
    """How many values were compared, and the first that differs, if any."""

    compared: int
    divergence: Divergence | None


def plain_name(name: str) -> str:
    """The name a value had before the converter decorated it."""
    return _SUFFIX.sub("", _PREFIX.sub("", name))


def relative_rms(value: Tensor, reference: Tensor) -> float:
    """RMS of the difference over the RMS of the reference, in float64; infinite when anything is not finite."""
    x, y = value.double().reshape(-1), reference.double().reshape(-1)
    scale = float(y.square().mean().sqrt())
    error = float((x - y).square().mean().sqrt())
    if error != error or error == float("inf"):
        return float("inf")
    return error / scale if scale else error


def compare(
    function: Function,
    inputs: Mapping[str, Any],
    reference: Mapping[str, Tensor],
    tolerance: float,
    state: State | None = None,
    bypass: Collection[str] = (),
) -> Comparison:
    """Run a function once and compare every value that the reference names, in the program's order.

    tolerance: on relative_rms. Use an `exact` function to tell a wrong operation from rounding.
    """
    compared = 0
    after: str | None = None
    first: Divergence | None = None

    def watch(kind: str, name: str, value: Tensor) -> None:
        nonlocal compared, after, first
        expected = reference.get(plain_name(name))
        if first is not None or expected is None or not value.is_floating_point():
            return
        if value.numel() != expected.numel() or not torch.as_tensor(expected).is_floating_point():
            return
        compared += 1
        error = relative_rms(value, expected)
        if error <= tolerance:
            after = name
        else:
            first = Divergence(function.name, kind, name, error, after)

    function(inputs, state, watch=watch, bypass=bypass)
    return Comparison(compared, first)
