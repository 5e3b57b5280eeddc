"""Whether a plan fits a phone: what it needs at the least, against the phone's limit, before anything is built.

Everything is estimated from the geometry alone, and a lower bound: what does not fit here cannot fit, what does is for
a run to prove.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from artifacts import Check
from compiler.models.base import read_model
from compiler.plan import TargetPlan, longest_context, plan, with_tiles
from compiler.quantize.rules import assign
from compiler.work import work_of
from device_farm import MemoryBudget, Profile, modelled
from recipes.schema import Recipe

if TYPE_CHECKING:
    from runtime_tests.validate import Limits

Word = Literal["fits by estimate", "does not fit", "not assessed", "not for this platform"]


@dataclass(frozen=True)
class PlanFit:
    """One target on one phone. needed_bytes: the least that it holds; limit_bytes: the recipe's or the phone's own.

    longest_context: the most tokens with which the least need stays within the limit, 0 where none does; None where
    nothing is judged. latency: the recipe's limits of speed on the phone, and what is modelled of it;
    unknown: why the rest is not, by figure.
    """

    target: str
    profile: str
    verdict: Word
    needed_bytes: int
    limit_bytes: int
    longest_context: int | None
    reason: str
    latency: tuple[Check, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "latency": [check.model_dump(mode="json") for check in self.latency]}


def fits(
    recipe: Recipe,
    config: Mapping[str, Any],
    plans: Sequence[TargetPlan],
    phones: Sequence[tuple[Profile, Limits]],
) -> list[PlanFit]:
    """Every target on every phone. phones: with the recipe's own limits."""
    from runtime_tests.phones import latency

    model = read_model(config, None, recipe.context.max_tokens, recipe.vision)
    work = work_of(model, assign(recipe.quantize.rules, model.slots).schemes)
    found = []
    for whole in plans:
        if whole.refused:
            continue
        for profile, limits in phones:
            budget = limits.budget(profile)
            there = with_tiles(recipe, whole.target, limits.max_tiles)
            item = whole if limits.max_tiles is None else plan(there, config)[0]
            if profile.platform not in item.app_bytes:
                reason = f"{item.target} packages do not run on {profile.platform}"
                found.append(
                    PlanFit(
                        item.target,
                        profile.name,
                        "not for this platform",
                        item.held_bytes,
                        budget.limit_bytes,
                        None,
                        reason,
                    )
                )
                continue
            judged = _judged(there, config, item, profile.name, budget)
            speed = modelled(work, item.target, profile)
            checks = tuple(latency(profile.name, limits, speed))
            known = {"decode_short", "decode_sustained", *(check.name for check in checks)}  # those follow from decode
            why = {name: text for name, text in speed.items() if isinstance(text, str) and name not in known}
            found.append(replace(judged, latency=checks, unknown=why))
    return found


def _judged(
    recipe: Recipe, config: Mapping[str, Any], found: TargetPlan, profile: str, budget: MemoryBudget
) -> PlanFit:
    held, limit = found.held_bytes, budget.limit_bytes
    mapped = found.weight_bytes if found.copied_bytes < found.weight_bytes or budget.rule == "android" else 0
    longest = longest_context(recipe, config, found.target, limit)
    if held > limit:
        verdict: Word = "does not fit"
        reason = "its cache, activations and copies of weights alone are more"
    elif budget.rule == "android" and held + mapped > limit:
        verdict = "not assessed"
        reason = (
            "beside them its mapped weights do not all stay in memory; only a run tells what reading them again costs"
        )
    else:
        verdict, reason = "fits by estimate", "a run measures what the runtime holds beyond it"
    return PlanFit(found.target, profile, verdict, held, limit, longest, reason)
