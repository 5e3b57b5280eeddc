"""What the memory of a run is made of, as far as its figures and the artifact's manifest tell.

What lives here: that division, each part with how it is known. What must not: verdicts, and any measuring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from artifacts import Manifest
from device_farm import PhaseMemory, SandboxResult

_BYTES = {"float32": 4, "int64": 8, "int32": 4, "uint8": 1}
_LOAD = "load"
_WRITTEN_AT_LOAD = ("onnx", "tvm")  # sessions whose `load` fills every state with zeros


@dataclass(frozen=True)
class Contributor:
    """A part of a peak, in bytes over the interpreter's baseline. estimated: counted or left over, not read."""

    name: str
    bytes: int
    known: Literal["measured", "estimated"]

    def __str__(self) -> str:
        return f"{self.name} {self.bytes / 1e6:,.0f} MB" + (" (estimated)" if self.known == "estimated" else "")


def contributors(run: SandboxResult, manifest: Manifest) -> tuple[Contributor, ...]:
    """The parts of the phase in which a run held most, the largest first; none where it reached no phase.

    File-backed: the artifact's own files, and those of the runtime. Anonymous: what the load left (copies of weights,
    such as prepacked ones, and the runtime), the states that the manifest declares at their full size, and the rest,
    which is activations and whatever else came after the load. States that a session writes to their ends as it loads
    are part of what the load left, and are taken out of that.
    """
    phase = max(run.phases, key=_most, default=None)
    if phase is None:
        return ()
    loaded = next((item.anonymous_bytes for item in run.phases if item.phase == _LOAD), 0)
    loaded = min(loaded, phase.peak_unreclaimable_bytes)
    weights = min(run.mapped.all_bytes, phase.peak_file_bytes)
    if manifest.target in _WRITTEN_AT_LOAD:
        loaded -= min(state_bytes(manifest), loaded)
    states = min(state_bytes(manifest), phase.peak_unreclaimable_bytes - loaded)
    rest = phase.peak_unreclaimable_bytes - loaded - states
    found = [
        Contributor("weights, mapped", weights, "measured"),
        Contributor("the runtime's files", phase.peak_file_bytes - weights, "measured"),
        Contributor("copies of weights and the runtime", loaded, "measured"),
        Contributor("KV cache and other states", states, "estimated"),
        Contributor("activations and the rest", rest, "estimated"),
    ]
    return tuple(sorted((item for item in found if item.bytes > 0), key=lambda item: -item.bytes))


def in_words(parts: Sequence[Contributor], most: int = 3) -> str:
    """The largest of them."""
    return ", ".join(str(part) for part in parts[:most])


def state_bytes(manifest: Manifest) -> int:
    """What the states of all components come to, where their shapes are numbers."""
    return sum(
        _BYTES[state.dtype] * math.prod(size for size in state.shape if isinstance(size, int))
        for component in manifest.components
        for state in component.states
        if all(isinstance(size, int) for size in state.shape)
    )


def _most(phase: PhaseMemory) -> int:
    return phase.peak_unreclaimable_bytes + phase.peak_file_bytes
