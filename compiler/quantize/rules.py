"""From a recipe's rules to the scheme and method of every slot: the first rule that matches wins."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from artifacts import EdgewrightError
from compiler.models.base import Model
from compiler.slots import HALF, Scheme, Slot
from recipes.schema import Rule


@dataclass(frozen=True)
class Assignment:
    """Schemes by slot name (norms are not in it) and the rules that decided: of quantized slots, and of every slot."""

    schemes: Mapping[str, Scheme]
    rules: Mapping[str, Rule]
    every: Mapping[str, Rule]

    def method(self, slot: str) -> str:
        return self.rules[slot].method


def assign(rules: Sequence[Rule], slots: Sequence[Slot]) -> Assignment:
    """Give every matrix its scheme.

    Raises EdgewrightError when a rule matches no tensor, or only tensors that earlier rules take, when a tensor is
    matched by none, or when a group does not divide a tensor's columns: each with the tensor or rule by name.
    """
    matrices = [s for s in slots if not s.is_vector]
    chosen: dict[str, Rule] = {}
    for at, rule in enumerate(rules):
        matched = [s.name for s in matrices if fnmatchcase(s.name, rule.match)]
        if not matched:
            near = difflib.get_close_matches(rule.match, [s.name for s in matrices], 1, 0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise EdgewrightError(f"quantize.rules[{at}]: {rule.match!r} matches no tensor of this checkpoint{hint}")
        new = [name for name in matched if name not in chosen]
        if not new:
            raise EdgewrightError(
                f"quantize.rules[{at}]: every tensor that {rule.match!r} matches is taken by an earlier rule; "
                "put the special rule above the general one"
            )
        chosen |= dict.fromkeys(new, rule)
    missing = [s.name for s in matrices if s.name not in chosen]
    if missing:
        raise EdgewrightError(
            f"quantize.rules: no rule matches {missing[0]!r} ({len(missing)} tensors in all); "
            'add a last rule {match: "*", …}'
        )
    schemes = {s.name: scheme_of(chosen[s.name], s) for s in matrices}
    return Assignment(schemes, {name: rule for name, rule in chosen.items() if schemes[name].bits != 16}, chosen)


def scheme_of(rule: Rule, slot: Slot) -> Scheme:
    """The scheme a rule gives to a slot. Raises EdgewrightError when its columns do not divide into groups or words."""
    if rule.bits == 16:
        return HALF
    group = 0 if rule.group == "channel" else int(rule.group)
    if group and slot.columns % group:
        fitting = [g for g in (256, 128, 64, 32, 16) if slot.columns % g == 0]
        raise EdgewrightError(
            f"tensor {slot.name!r} has {slot.columns} columns, which groups of {group} do not divide; "
            f"groups that do: {', '.join(map(str, fitting)) or 'none, keep it at 16 bits'}"
        )
    if slot.columns * rule.bits % 8:
        raise EdgewrightError(f"tensor {slot.name!r}: {slot.columns} codes of {rule.bits} bits do not fill bytes")
    return Scheme(rule.bits, group, rule.symmetric)


def rounded_slots(model: Model, assignment: Assignment) -> dict[str, frozenset[str]]:
    """The convolutions whose rules want activations of 8 bits, by component.

    Raises EdgewrightError for a rule that no convolution takes, and for a component that calibration cannot follow.
    """
    wanted = {name for name, rule in assignment.rules.items() if rule.activations is not None}
    found = {
        part.name: frozenset(s.name for s in part.slots if s.kind == "convolution" and s.name in wanted)
        for part in model.components
    }
    taken = {assignment.rules[name].match for names in found.values() for name in names}
    for match in (assignment.rules[name].match for name in sorted(wanted)):
        if match not in taken:
            raise EdgewrightError(
                f"quantize.rules: activations: int8 is for convolutions, and {match!r} matches none; leave it out "
                "(onnxruntime rounds the activations of other layers as they come)"
            )
    for part in model.components:
        if found[part.name] and (len(part.shipped) > 1 or part.states or part.shipped[0].dimensions):
            raise EdgewrightError(
                f"quantize.rules: activations: int8 is for components of one entry, without states and of fixed sizes, "
                f"which {part.name} is not; leave it out for {sorted(found[part.name])[0]!r}"
            )
    return {name: slots for name, slots in found.items() if slots}


def options_of(rule: Rule) -> dict[str, Any]:
    """The method's own options in a rule."""
    return {k: v for k, v in rule.model_dump().items() if k not in Rule.model_fields}
