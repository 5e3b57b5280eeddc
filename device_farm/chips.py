"""Chips: what a phone's processor is, as far as speed depends on it.

What lives here: reading ``chips.yaml``, looking a chip up by the words of a profile or of a table of figures, and the
two rules by which phones that nobody measured stand beside those that were; and what a profile may say of its chip.
What must not: rates, and figures of a phone, which stand in its profile with their source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

Isa = Literal["dotprod", "i8mm"]
_ISA: tuple[Isa, ...] = ("dotprod", "i8mm")
# llama.cpp in apps runs on 0.8 of the cores (PocketPal's default); networks on four
_THREADS_SHARE, _NETWORK_THREADS = 0.8, 4
# of the clock of an in-order core without i8mm, so that the one public figure of such a phone is met: a 1B Q4 model at
# about 7 tokens a second on a Redmi Note 9 Pro; policy, not cross-validated
_SMALL = 0.35


@dataclass(frozen=True)
class Core:
    """A kind of core: its clock in GHz and what its vector unit can do."""

    name: str
    ghz: float
    dotprod: bool
    i8mm: bool
    in_order: bool
    width: float


@dataclass(frozen=True)
class Chip:
    """cores: every one, fastest first; of Apple's none. clusters: `2x Cortex-A76`, of several clocks as one; none where
    they are not known. apple: its A-number; bandwidth: 1e9 bytes a second."""

    name: str
    cores: tuple[Core, ...]
    clusters: tuple[str, ...] = ()
    apple: int | None = None
    bandwidth: float | None = None

    @property
    def dotprod(self) -> bool:
        return all(core.dotprod for core in self.cores)

    @property
    def i8mm(self) -> bool:
        return all(core.i8mm for core in self.cores)

    def clock(self, threads: int | None = None) -> float:
        """GHz of the slowest core that a language model's threads run on: work is divided evenly, so it decides."""
        used = self.cores[: threads or int(_THREADS_SHARE * len(self.cores))]
        return min(core.ghz * (_SMALL if core.in_order and not core.i8mm else 1) for core in used)

    def throughput(self) -> float:
        """GHz times width of the four fastest cores: what a network's threads run on."""
        used = self.cores[:_NETWORK_THREADS]
        return sum(core.ghz * core.width * (_SMALL if core.in_order and not core.i8mm else 1) for core in used)


def find_chip(words: str) -> Chip | None:
    """The chip whose longest name stands in `words`, as in "Snapdragon 680 class" or "Samsung Galaxy S25"."""
    said = f" {_plain(words)} "
    found = [(len(name), chip) for name, chip in _names().items() if f" {_plain(name)} " in said]
    return _chips()[max(found)[1]] if found else None


def chip_names() -> list[str]:
    """Every name by which a chip is known."""
    return list(_names())


def core_isa() -> Mapping[str, tuple[Isa, ...]]:
    """What each kind of core has of the instructions that quantized kernels ask for."""
    document = _document()
    cores = {**document["cores"], **document["apple_cores"]}
    return {name: tuple(isa for isa in _ISA if known[isa]) for name, known in cores.items()}


def merged(clusters: Sequence[str]) -> tuple[str, ...]:
    """Clusters of one kind of core beside each other as one: a chip's is the same whoever counts its clocks."""
    counts: list[tuple[str, int]] = []
    for cluster in clusters:
        count, _, kind = cluster.partition("x ")
        if counts and counts[-1][0] == kind:
            counts[-1] = (kind, counts[-1][1] + int(count))
        else:
            counts.append((kind, int(count)))
    return tuple(f"{count}x {kind}" for kind, count in counts)


def _plain(words: str) -> str:
    """Letters, digits and + alone, as "samsung-s23" and "Samsung S23" are the same."""
    return re.sub(r"[^a-z0-9+]+", " ", words.lower()).strip()


@cache
def _names() -> dict[str, str]:
    """Every name of every chip, to the chip's own."""
    chips = _document()["chips"]
    return {name: chip for chip, known in chips.items() for name in (chip, *known["names"])}


@cache
def _chips() -> dict[str, Chip]:
    document = _document()
    found = {}
    for name, known in document["chips"].items():
        cores: list[Core] = []
        for line in known.get("cores", ()):
            count, kind, ghz = re.fullmatch(r"(\d+)x (\S+) ([\d.]+)", line).groups()  # type: ignore[union-attr]
            cores += [Core(kind, float(ghz), **document["cores"][kind])] * int(count)
        clusters = known.get("clusters", [line.rpartition(" ")[0] for line in known.get("cores", ())])
        found[name] = Chip(name, tuple(cores), merged(clusters), known.get("apple"), known.get("bandwidth"))
    return found


@cache
def _document() -> dict[str, Any]:
    text = (resources.files("device_farm") / "chips.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # seven times as fast
    return loaded
