"""A choice as a recipe with comments: why each line is there, how its figures are known, and what to change.

What lives here: the text, at most 80 columns wide but for names and paths. What must not: choosing (`init_choice.py`).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compiler.plan import TargetPlan
from edgewright import text
from edgewright.fit import PlanFit
from edgewright.init_choice import MARGIN, SCHEMES, Choice, Phone, Planner, lacking
from edgewright.streams import plain
from edgewright.text import size

_WIDTH = 80
_KINDS = {"text": "A text decoder", "talking_head": "An avatar"}


def written(
    found: Choice, planner: Planner, phones: Sequence[Phone], fits: Sequence[PlanFit], source: str, file: str
) -> str:
    """The file's text. source: the checkpoint as it was given; file: the recipe's own name."""
    return "\n".join(_lines(found, planner, phones, fits, source, file)) + "\n"


def _lines(
    found: Choice, planner: Planner, phones: Sequence[Phone], fits: Sequence[PlanFit], source: str, file: str
) -> Iterator[str]:
    document = found.document
    parameters = sum(slot.rows * slot.columns for slot in found.model.slots)
    kind = _KINDS.get(found.model.driver, "A model that sees")
    where = ", ".join(phone.name for phone in phones)
    yield from comment(f"Made by `edgewright init` from {source}, for {where}.")
    yield from comment(f"{kind}, {parameters / 1e6:,.1f} million parameters ({found.model.family}).")
    yield "#"
    yield from comment(
        "Nothing was built yet. Sizes here are declared: counted from config.json alone, the least that a package and "
        f"a runtime need. Of what is certain of each phone's budget {100 * MARGIN:.0f} % is left free for what a "
        "runtime holds beyond that; speed is modelled, where anything is known. A run measures what this machine can:"
    )
    yield "#"
    yield f"#   edgewright plan {file}"
    yield f"#   edgewright run {file}"
    yield f"name: {document['name']}  # also the folder of the packages"
    yield from _checkpoint(document["checkpoint"])
    yield "quantize:"
    yield "  rules:  # the first that matches a tensor wins"
    yield from comment(_why_scheme(found, planner, phones), 4)
    before = ""
    for rule in document["quantize"]["rules"]:
        why = _why_rule(rule, found)
        yield from [*(comment(why, 4) if why != before else []), f"    - {_flow(rule)}"]
        before = why
    yield from _shape(found, planner, phones)
    yield "targets:"
    for item in sorted(found.plans, key=lambda item: item.target not in found.targets):
        yield from _target(item, found, phones)
    yield "validate:"
    if found.model.driver == "text":
        yield from comment(
            "A gate on quality: what nobody has measured is no finding, so no limit is set. To set one:", 2
        )
        yield "  # quality: {max_perplexity_increase: 5%, min_top1_agreement: 85%}"
    yield "  profiles:"
    for phone in phones:
        yield from _phone(phone, found, fits)


def comment(words: str, indent: int = 0) -> list[str]:
    """Comment lines of at most 80 columns; a word that is longer stays whole."""
    lead = " " * indent + "# "
    return textwrap.wrap(
        plain(words, lines=False), _WIDTH, initial_indent=lead, subsequent_indent=lead,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def named(scheme: tuple[int, Any]) -> str:
    """`INT8 group 32`."""
    bits, group = scheme
    return f"INT{bits} per channel" if group == "channel" else f"INT{bits} group {group}"


def least(item: TargetPlan, phone: Phone) -> str:
    """`51.9 MB of 300 MB`."""
    return f"{size(phone.need(item))} of {size(phone.budget.limit_bytes)}"


def _checkpoint(wanted: Mapping[str, Any]) -> Iterator[str]:
    if "hub" not in wanted:
        yield from comment("The folder that was given. --checkpoint FOLDER takes a fine-tune of it.")
    else:
        yield from comment(
            "Downloaded by the first run, every file checked; revision: null would take the newest commit then. The "
            "config stands for the checkpoint until it is there, so that a plan needs no network."
        )
    yield "checkpoint:"
    for key, value in wanted.items():
        yield f"  {key}: {_scalar(value)}"


def _why_scheme(found: Choice, planner: Planner, phones: Sequence[Phone]) -> str:
    known = planner.schemes()
    if len(known) == 1:
        return (
            "8 bits, a scale for each row: 4 break a picture or a face unless somebody picks the tensors that keep 8 "
            "(`edgewright recipes show feathertalk-int4` is such a choice)."
        )
    at = known.index(found.scheme)
    if at == 0:
        return f"{named(found.scheme)} is the finest of all, and fits."
    better = planner.at(known[at - 1], found.shape)
    over = [said for item in better.plans for said in lacking(item, phones)]
    return f"{named(found.scheme)} is the finest that fits. With {named(known[at - 1])} {'; '.join(over)}."


def _why_rule(rule: Mapping[str, Any], found: Choice) -> str:
    if rule["bits"] == 16:
        return "Half precision: no group divides these rows, or loaders of packages hold them so."
    scheme = (rule["bits"], rule.get("group"))
    if rule["match"] == "*" and rule["bits"] == 4:
        coarser = [named(one) for one in SCHEMES[SCHEMES.index(found.scheme) + 1 :]]
        smaller = f" Smaller: {', '.join(coarser)}." if coarser else ""
        return f"mse clips scales; awq and gptq look at text, take longer and lose less.{smaller}"
    if rule["match"] == "*":
        return "rtn rounds to nearest, which is enough at 8 bits. Half the size: bits: 4, method: gptq." * (
            "max_positions" in found.model.constants
        )
    if scheme == (8, "channel"):
        return "What sees bears 4 bits badly and is small beside the text."
    return f"These rows are not divided by groups of {found.scheme[1]}."


def _shape(found: Choice, planner: Planner, phones: Sequence[Phone]) -> Iterator[str]:
    tokens = found.shape.context
    longest = planner.longest(found, phones)
    if longest is None:
        yield f"context: {{max_tokens: {tokens}}}  # nothing here counts tokens of a text"
        return
    state = max(item.state_bytes for item in found.plans if item.target in found.targets)
    yield from comment(
        f"Prompt and answer together. It sizes the KV cache, {size(state)} here; up to {longest:,} tokens would fit."
    )
    yield f"context: {{max_tokens: {tokens}}}"
    if found.shape.blind:
        yield from comment("Its text side alone: with its eyes nothing fits. vision: {max_image: 336} would add them.")
    elif found.shape.vision is not None:
        yield from comment("The largest images for which memory suffices; larger ones are reduced to that.")
        yield f"vision: {_flow(found.shape.vision.model_dump(exclude_none=True))}"
    elif isinstance(tiles := found.model.constants.get("max_tiles"), int):
        yield from comment(f"Images of up to {tiles} tiles, as published. Fewer need less: vision: {{max_tiles: 5}}.")


def _target(item: TargetPlan, found: Choice, phones: Sequence[Phone]) -> Iterator[str]:
    there = [phone for phone in phones if phone.profile.platform in item.app_bytes]
    if item.target in found.targets:
        yield from comment(f"{text.sizes(item.app_bytes)}. Runs on {', '.join(item.app_bytes)}.", 2)
        yield f"  {item.target}: {{}}"
    elif item.refused:
        yield from comment(f"{item.target}: {{}} is refused: {item.refused}", 2)
    elif not there:
        yield from comment(f"{item.target}: {{}} is for {', '.join(item.app_bytes)}, none of these phones.", 2)
    elif over := lacking(item, phones):
        yield from comment(f"{item.target}: {{}} does not fit: {'; '.join(over)}.", 2)
    else:
        yield from comment(f"{item.target}: {{}} would fit too, {text.sizes(item.app_bytes)}.", 2)


def _phone(phone: Phone, found: Choice, fits: Sequence[PlanFit]) -> Iterator[str]:
    needs = [
        f"{least(item, phone)} with {item.target}"
        for item in found.plans
        if item.target in found.targets and phone.profile.platform in item.app_bytes
    ]
    speeds = [
        f"{row.name} {row.figure} with {item.target}"
        for item in fits
        if item.profile == phone.profile.name
        for row in map(text.row, item.latency)
        if row.obtained
    ]
    said = f"{phone.profile.title}: needs at least {', '.join(needs)} (budget: {phone.budget.confidence})."
    said += f" Modelled: {'; '.join(speeds)}." if speeds else " No speed is modelled: `edgewright plan` says why."
    yield from comment(said, 4)
    yield f"    {_scalar(phone.name)}: {{}}  # a limit of one's own: {{peak_memory: {_rounded(phone.room)}}}"


def _rounded(count: int) -> str:
    return f"{count // 10**6}MB"


def _flow(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in values.items()) + "}"


def _scalar(value: Any) -> str:
    """YAML on one line; quoted wherever it might be anything but plain text."""
    if value is None:
        return "null"
    if not isinstance(value, str):
        return str(value)
    bare = value.replace("-", "").replace(".", "").replace("_", "").replace("/", "")
    return value if bare.isalnum() and bare.isascii() and bare[0].isalpha() else json.dumps(value, ensure_ascii=False)
