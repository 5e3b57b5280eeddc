"""Variants of one recipe: other bits, groups and methods for what no rule of its own excepts, each run by itself.

What lives here: which variants there are, why others are left out, and running them over the store that all share.
What must not: what is said of the results (`sweep_table.py`), and words on the command line.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from artifacts import EdgewrightError, Progress, prefixed
from compiler.config import read_config
from compiler.models.base import Model, read_model
from compiler.plan import plan
from compiler.quantize.methods import method_options
from compiler.quantize.rules import assign, options_of
from edgewright import __version__, api
from edgewright.parallel import opened
from edgewright.parallel.beside import Beside
from edgewright.parallel.local import available_bytes, usable_cores
from edgewright.parallel.stages import Arguments, Order, memory
from edgewright.report import Report
from edgewright.steps import Built, Run, local_checkpoint
from recipes.errors import RecipeError, nearest
from recipes.schema import Recipe, Rule

CATCH_ALL = "*"
_EXPECTED = (RecipeError, EdgewrightError)


@dataclass(frozen=True)
class Choice:
    """What a variant says of the tensors that no rule of their own excepts. group: 'channel' or weights per scale."""

    bits: int
    group: int | str
    method: str

    @property
    def name(self) -> str:
        """As folders are named: `int4-g32-gptq`."""
        group = self.group if isinstance(self.group, str) else f"g{self.group}"
        return f"int{self.bits}-{group}-{self.method}" if self.bits != 16 else "half"


@dataclass(frozen=True)
class Variant:
    """A choice, and the recipe that has it."""

    choice: Choice
    recipe: Recipe


@dataclass(frozen=True)
class LeftOut:
    """A combination that is not run, and why."""

    choice: Choice
    reason: str


@dataclass(frozen=True)
class Ran:
    """A variant that came to its end (`report`), or did not (`error`); seconds: from its first step to its last."""

    variant: Variant
    report: Report | None
    seconds: float
    error: str = ""
    exit_code: int = 0


def choices(recipe: Recipe, bits: Sequence[int], groups: Sequence[int | str], methods: Sequence[str]) -> list[Choice]:
    """Every combination, in the order given; what is not given is as the recipe's catch-all rule has it. Raises
    EdgewrightError for a method that nobody knows, and where there is nothing to vary."""
    rule = _catch_all(recipe)
    for name in methods:
        if name not in method_options():
            raise EdgewrightError(f"--method: there is no method {name!r}{nearest(name, method_options())}")
    if recipe.quantize.budget is not None and (bits or groups):
        raise EdgewrightError(
            "quantize.budget: chooses the bits and group of each tensor, which a sweep sets; take it out, or sweep "
            "methods alone"
        )
    combined = itertools.product(bits or [rule.bits], groups or [rule.group], methods or [rule.method])
    half = Choice(16, rule.group, rule.method)  # which has no use for either
    return list(dict.fromkeys(half if found[0] == 16 else Choice(*found) for found in combined))


def variants(
    recipe: Recipe, found: Sequence[Choice], *, targets: Sequence[str] = (), checkpoint: str | None = None
) -> tuple[list[Variant], list[LeftOut]]:
    """The variants to run, and the combinations that are the same as one of them or cannot be.

    Where nothing says yet what the model is (a repository of the Hub without `checkpoint.config`), what cannot be is
    found out when it is run. Raises EdgewrightError and RecipeError for what is wrong with the recipe itself.
    """
    chosen = api.with_targets(recipe, targets)
    config = _config(chosen, checkpoint)
    model = None if config is None else read_model(config, None, chosen.context.max_tokens, chosen.vision)
    kept: dict[str, Variant] = {}
    left: list[LeftOut] = []
    for choice in found:
        try:
            made = _with(recipe, choice)
            same = _identity(made, model)
            refused = [] if config is None else plan(api.with_targets(made, targets), config)
        except (EdgewrightError, _Impossible) as error:
            left.append(LeftOut(choice, str(error)))
            continue
        if reason := next((f"{item.target}: {item.refused}" for item in refused if item.refused), None):
            left.append(LeftOut(choice, reason))
        elif same in kept:
            left.append(LeftOut(choice, f"the same as {kept[same].choice.name}"))
        else:
            kept[same] = Variant(choice, made)
    return list(kept.values()), left


def run(
    found: Sequence[Variant],
    *,
    out: str,
    targets: Sequence[str],
    profiles: Sequence[str],
    checkpoint: str | None,
    progress: Progress,
) -> Iterator[Ran]:
    """What `api.run` of each variant gives, in their order; what one has made, the next finds in the store.

    The next one is built while the last one is validated, where this machine has the cores and the memory for both. A
    variant that fails ends no other.
    """
    given = Arguments(out=out, targets=tuple(targets), profiles=tuple(profiles), checkpoint=checkpoint)
    with Beside() as beside:
        waiting: deque[Future[Ran]] = deque()
        for at, variant in enumerate(found):
            said = prefixed(progress, f"{variant.choice.name} ({at + 1} of {len(found)})")
            waiting.append(_begin(variant, given, beside, said))
            while waiting and (waiting[0].done() or not _room_beside(variant, given)):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _begin(variant: Variant, given: Arguments, beside: Beside, progress: Progress) -> Future[Ran]:
    """Build a variant, and have the rest of its run done beside this thread."""
    began = time.monotonic()

    def failed(error: EdgewrightError | RecipeError) -> Ran:
        return Ran(variant, None, time.monotonic() - began, str(error), error.exit_code)

    def ending(run: Run, built: Built) -> Ran:
        try:
            for target in built.packages:
                judged = beside.ended(_order(run, given, target), run.prefixed(progress, target))
                if judged.done is None or judged.done.judged is None:
                    return Ran(variant, None, time.monotonic() - began, judged.error, judged.exit_code)
                built.enter(judged.done.judged)
            return Ran(variant, run.end(built.found, built.ledger), time.monotonic() - began)
        except _EXPECTED as error:
            return failed(error)

    try:
        run = opened(variant.recipe, given)
        with ExitStack() as held:
            held.enter_context(run.held(progress))
            if (report := run.asked.unchanged()) is not None:
                return _ended(Ran(variant, report, time.monotonic() - began))
            built = run.build(beside.building(progress))
            ended = beside.submit(partial(ending, run, built))
            # then and not when this thread comes by: another sweep may wait for it while this one waits for the other
            ended.add_done_callback(partial(_close, held.pop_all()))
            return ended
    except _EXPECTED as error:
        return _ended(failed(error))


def _close(held: ExitStack, _: object) -> None:
    held.close()


def _ended(ran: Ran) -> Future[Ran]:
    future: Future[Ran] = Future()
    future.set_result(ran)
    return future


def _order(run: Run, given: Arguments, target: str) -> Order:
    """The validation of a variant, whose recipe no file says."""
    return Order(
        version=__version__,
        kind="validation",
        recipe=str(run.whole.origin or run.whole.name),
        content=run.whole.model_dump(mode="json", by_alias=True, exclude_unset=True),
        digest=run.whole.digest,
        arguments=given,
        target=target,
    )


def _room_beside(variant: Variant, given: Arguments) -> bool:
    """Whether this machine holds the validation of a variant and the making of the next one at once; of a model that
    nothing says the size of yet, it does not."""
    config = _config(variant.recipe, given.checkpoint)
    if config is None or usable_cores() < 2:
        return False
    plans = plan(api.with_targets(variant.recipe, given.targets), config)
    building = max(memory(kind, plans) for kind in ("quantize", "package"))
    return building + memory("validation", plans) <= available_bytes()


class _Impossible(ValueError):
    """A rule that the schema refuses."""


def _catch_all(recipe: Recipe) -> Rule:
    found = next((rule for rule in recipe.quantize.rules if rule.match == CATCH_ALL), None)
    if found is None:
        raise EdgewrightError(
            'quantize.rules: a sweep changes the rule that matches "*", and there is none; add a last rule '
            '{match: "*", bits: 4}'
        )
    return found


def changed_rule(recipe: Recipe, choice: Choice) -> dict[str, Any]:
    """The recipe's catch-all rule as a choice has it, with the keys that it gave."""
    given = _catch_all(recipe).model_dump(mode="json", exclude_unset=True)
    return {**given, "bits": choice.bits, "group": choice.group, "method": choice.method}


def _with(recipe: Recipe, choice: Choice) -> Recipe:
    """Raises _Impossible."""
    content = recipe.model_dump(mode="json", by_alias=True, include={"quantize"}, exclude_unset=True)["quantize"]
    content["rules"] = [
        changed_rule(recipe, choice) if rule["match"] == CATCH_ALL else rule for rule in content["rules"]
    ]
    schema: Any = api.recipe_type().model_fields["quantize"].annotation
    try:
        quantize = schema.model_validate(content)
    except ValidationError as error:
        raise _Impossible("; ".join(_words(item) for item in error.errors())) from None
    return recipe.model_copy(update={"name": f"{recipe.name}-{choice.name}", "quantize": quantize})


def _words(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return f"the rule's {error['loc'][-1]!r} is no option of this method"
    said = error.get("ctx", {}).get("error") or error["msg"]
    return f"{error['loc'][-1]}: {said}"


def _identity(recipe: Recipe, model: Model | None) -> str:
    """Equal for recipes that quantize every tensor alike. Raises EdgewrightError where a rule fits no tensor."""
    if model is None:
        return json.dumps([rule.model_dump(mode="json") for rule in recipe.quantize.rules])
    found = assign(recipe.quantize.rules, model.slots)
    schemes = {name: asdict(scheme) for name, scheme in found.schemes.items()}
    how = {name: [rule.method, options_of(rule), rule.activations] for name, rule in found.rules.items()}
    return json.dumps([schemes, how], sort_keys=True)


def _config(recipe: Recipe, checkpoint: str | None) -> Mapping[str, Any] | None:
    folder = local_checkpoint(recipe, checkpoint)
    if folder is not None:
        return read_config(folder)
    wanted = recipe.checkpoint.config
    return None if wanted is None else api.read_config_file(recipe.resolve(wanted))
