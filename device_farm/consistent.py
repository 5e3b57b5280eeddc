"""What a profile may not say although every figure has its source: unknown chips, figures that exclude each other.

What lives here: the rules over a whole profile. What must not: the schema (``profile.py``), files and line numbers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from device_farm.chips import chip_names, core_isa, find_chip, merged
from device_farm.profile import AndroidMemory, AndroidProfile, IosMemory, IosProfile

Problem = tuple[tuple[str | int, ...], str]
"""A key's path in the profile, and what is wrong there."""

_CLUSTER = re.compile(r"([1-9]\d?)x (.+)")


def nearest(word: str, valid: list[str]) -> str:
    """The nearest valid word in brackets, as a message has it; empty where none is near."""
    close = difflib.get_close_matches(word, valid, 1, 0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def contradictions(profile: AndroidProfile | IosProfile) -> Iterator[Problem]:
    """Every key whose value cannot be true beside the others."""
    yield from _chip(profile)
    if profile.platform == "android":
        yield from _android(profile.memory, profile.ram_bytes.value)
    else:
        yield from _ios(profile.memory, profile.ram_bytes.value)


def _chip(profile: AndroidProfile | IosProfile) -> Iterator[Problem]:
    cpu, chip = profile.cpu, profile.soc
    clusters = cpu.clusters.value
    cores_known, found = core_isa(), chip and find_chip(chip.value)
    if chip is not None and found is None:
        names = chip_names()
        yield (
            ("soc", "value"),
            f"unknown chip {chip.value!r}{nearest(chip.value, names)}; known: {', '.join(names)}; for one that is none "
            "of these write `soc: null`: memory is judged all the same, speed is not",
        )
    if cpu.clocks_hz is not None and len(cpu.clocks_hz.value) != len(clusters):
        yield (
            ("cpu", "clocks_hz", "value"),
            f"{len(cpu.clocks_hz.value)} clocks for {len(clusters)} clusters; give one for each",
        )
    read = [_CLUSTER.fullmatch(cluster) for cluster in clusters]
    cores: dict[str, int] = {}
    for at, match in enumerate(read):
        if match is None:
            yield (
                ("cpu", "clusters", "value", at),
                f"{clusters[at]!r} is not a number of cores, such as '4x Cortex-A78'",
            )
        elif match[2] not in cores_known:
            core = match[2]
            yield (
                ("cpu", "clusters", "value", at),
                f"unknown core {core!r}{nearest(core, list(cores_known))}; known: {', '.join(cores_known)}",
            )
        else:
            cores[match[2]] = cores.get(match[2], 0) + int(match[1])
    if None in read or any(match and match[2] not in cores_known for match in read):
        return
    if chip is not None and found and found.clusters and merged(clusters) != found.clusters:
        yield ("cpu", "clusters", "value"), f"{chip.value} has {', '.join(found.clusters)}"
    if cpu.cores.value != sum(cores.values()):
        yield ("cpu", "cores", "value"), f"{cpu.cores.value}, and the clusters have {sum(cores.values())}"
    every = tuple(name for name in ("dotprod", "i8mm") if all(name in cores_known[core] for core in cores))
    if set(cpu.isa.value) != set(every):
        yield (
            ("cpu", "isa", "value"),
            f"[{', '.join(cpu.isa.value)}], and what every core of {', '.join(cores)} has is [{', '.join(every)}]",
        )


def _android(memory: AndroidMemory, ram: int) -> Iterator[Problem]:
    if memory.budget_bytes.value > ram:
        yield ("memory", "budget_bytes", "value"), _more(memory.budget_bytes.value, ram)
    if memory.play_p90_bytes is not None and memory.play_p90_bytes.value > ram:
        yield ("memory", "play_p90_bytes", "value"), _more(memory.play_p90_bytes.value, ram)
    if memory.background_bytes is not None and memory.background_bytes.value >= memory.budget_bytes.value:
        yield (
            ("memory", "background_bytes", "value"),
            f"{memory.background_bytes.value:,} bytes, which leave nothing of budget_bytes",
        )
    limiter = memory.limiter
    if limiter is None:
        return
    visible, other = limiter.visible_bytes.value, limiter.not_visible_bytes.value
    if visible > ram:
        yield ("memory", "limiter", "visible_bytes", "value"), _more(visible, ram)
    if other > visible:
        yield (
            ("memory", "limiter", "not_visible_bytes", "value"),
            f"{other:,} bytes, and a visible app has only {visible:,}; it is the smaller of the two",
        )


def _ios(memory: IosMemory, ram: int) -> Iterator[Problem]:
    seen: set[str] = set()
    for at, limit in enumerate(memory.limits):
        where = ("memory", "limits", at)
        if limit.since in seen:
            yield (*where, "since"), f"{limit.since!r} is there twice"
        seen.add(limit.since)
        footprint, increased = limit.footprint_bytes.value, limit.increased_footprint_bytes
        if footprint > ram:
            yield (*where, "footprint_bytes", "value"), _more(footprint, ram)
        if increased is not None and increased.value < footprint:
            yield (
                (*where, "increased_footprint_bytes", "value"),
                f"{increased.value:,} bytes, less than the {footprint:,} without the entitlement",
            )
        if increased is not None and increased.value > ram:
            yield (*where, "increased_footprint_bytes", "value"), _more(increased.value, ram)


def _more(value: int, ram: int) -> str:
    return f"{value:,} bytes, more than the {ram:,} of ram_bytes"
