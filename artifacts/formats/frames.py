"""What a driver's constants say of the work of one frame, and what follows for a phone before anything is measured.

Where a model states it, `frames.each` has the entries that every frame calls, with the multiplications of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# eight cores at 4 GHz, four multiply-adds of four float32 in each cycle: more than the cores of any phone have
FLOAT32_A_SECOND = 8 * 4e9 * 16
_REAL_TIME_S = 1 / 25


def pace(constants: Mapping[str, Any]) -> str | None:
    """A sentence on a model that is not for real time on any phone's CPU; None on any other."""
    frames = constants.get("frames")
    each = frames.get("each") if isinstance(frames, Mapping) else None
    if not isinstance(each, Mapping) or not all(type(count) is int for count in each.values()):
        return None
    total = sum(each.values())
    if total <= FLOAT32_A_SECOND * _REAL_TIME_S:
        return None
    largest = sorted(each.items(), key=lambda item: -item[1])[:2]
    parts = ", ".join(f"{name} {count / 1e9:.0f}" for name, count in largest)
    return (
        f"no real-time model on a phone's CPU: a frame is {total / 1e9:.0f} thousand million multiplications "
        f"({parts}), which eight cores at 4 GHz with 16 in each cycle, more than any phone's, compute in "
        f"{total / FLOAT32_A_SECOND:.1f} s"
    )
