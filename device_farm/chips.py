"""Phone chips: the cores of each, and the instructions of each core that quantized kernels ask for.

What lives here: what a profile may say of its chip, so that a wrong name and a figure of another chip are found. What
must not: figures of a phone; those stand in its profile, with their source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Isa = Literal["dotprod", "i8mm"]

_NEITHER: tuple[Isa, ...] = ()
_DOTPROD: tuple[Isa, ...] = ("dotprod",)
_BOTH: tuple[Isa, ...] = ("dotprod", "i8mm")

CORES: Mapping[str, tuple[Isa, ...]] = {
    **dict.fromkeys(("Cortex-A53", "Cortex-A73"), _NEITHER),
    **dict.fromkeys(("Cortex-A55", "Cortex-A75", "Cortex-A76", "Cortex-A77", "Cortex-A78", "Cortex-X1"), _DOTPROD),
    **dict.fromkeys(("Cortex-A510", "Cortex-A520", "Cortex-A710", "Cortex-A715", "Cortex-A720", "Cortex-A725"), _BOTH),
    **dict.fromkeys(("Cortex-X2", "Cortex-X3", "Cortex-X4", "Oryon"), _BOTH),
    **dict.fromkeys(("Vortex", "Tempest"), _NEITHER),
    **dict.fromkeys(("Lightning", "Thunder", "Firestorm", "Icestorm"), _DOTPROD),
    **dict.fromkeys(("Avalanche", "Blizzard", "Everest", "Sawtooth"), _BOTH),
    **dict.fromkeys(("A17 Pro performance", "A17 Pro efficiency"), _BOTH),
}
"""Extensions by core. Source: LLVM, AArch64Processors.td; Apple's cores by their chip."""

_G9X = ("2x Cortex-A76", "6x Cortex-A55")
_SIX_NINETY_FIVE = ("2x Cortex-A78", "6x Cortex-A55")

CHIPS: Mapping[str, tuple[str, ...]] = {
    "Helio G25": ("8x Cortex-A53",),
    "Helio G85": ("2x Cortex-A75", "6x Cortex-A55"),
    "Helio G96": _G9X,
    "Helio G99": _G9X,
    "Dimensity 700": _G9X,
    "MediaTek MT6899": ("8x Cortex-A725",),
    "Snapdragon 680": ("4x Cortex-A73", "4x Cortex-A53"),
    "Snapdragon 695": _SIX_NINETY_FIVE,
    "Snapdragon 4 Gen 2": _SIX_NINETY_FIVE,
    "Snapdragon 778G": ("4x Cortex-A78", "4x Cortex-A55"),
    "Snapdragon 8 Gen 2": ("1x Cortex-X3", "2x Cortex-A715", "2x Cortex-A710", "3x Cortex-A510"),
    "Snapdragon 8 Gen 3": ("1x Cortex-X4", "5x Cortex-A720", "2x Cortex-A520"),
    "Snapdragon 8 Elite": ("2x Oryon", "6x Oryon"),
    "Tensor G2": ("2x Cortex-X1", "2x Cortex-A78", "4x Cortex-A55"),
    "Tensor G3": ("1x Cortex-X3", "4x Cortex-A715", "4x Cortex-A510"),
    "Tensor G4": ("1x Cortex-X4", "3x Cortex-A720", "4x Cortex-A520"),
    "Apple A12": ("2x Vortex", "4x Tempest"),
    "Apple A13": ("2x Lightning", "4x Thunder"),
    "Apple A14": ("2x Firestorm", "4x Icestorm"),
    "Apple A15": ("2x Avalanche", "4x Blizzard"),
    "Apple A16": ("2x Everest", "4x Sawtooth"),
    "Apple A17 Pro": ("2x A17 Pro performance", "4x A17 Pro efficiency"),
}
"""Clusters by chip, the fastest first. Sources: the makers' specifications, by way of aggregators."""
