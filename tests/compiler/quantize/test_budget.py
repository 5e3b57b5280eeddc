"""The knapsack against exhaustive search, and a budget from recipe to plain rules."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from artifacts import EdgewrightError, silent
from compiler import pipeline
from compiler.checkpoint import Checkpoint
from compiler.models.base import read_model
from compiler.quantize import budget
from compiler.quantize.knapsack import Item, solve, solve_for_cost
from compiler.quantize.methods import method_options
from compiler.slots import Scheme
from compiler.targets import target_options
from recipes.schema import Recipe, recipe_model

from .conftest import CONFIG

OPTION = st.tuples(st.integers(1, 400), st.floats(0, 10, allow_nan=False))
ITEMS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def made(options: list[list[tuple[int, float]]]) -> list[Item]:
    return [
        Item((f"slot{i}",), tuple(Scheme(4, 16 * (j + 1)) for j in range(len(o))), *map(tuple, zip(*o, strict=True)))
        for i, o in enumerate(options)
    ]


@given(ITEMS, st.integers(1, 2000))
def test_the_choice_is_optimal_and_the_bound_holds(options: list[list[tuple[int, float]]], limit: int) -> None:
    fitting = [c for c in itertools.product(*options) if sum(size for size, _ in c) <= limit]
    if not fitting:
        with pytest.raises(EdgewrightError, match="too few"):
            solve(made(options), limit)
        return
    best = min(sum(cost for _, cost in c) for c in fitting)
    choice = solve(made(options), limit)
    assert choice.bytes <= limit
    assert choice.cost == pytest.approx(best)  # these sizes are below the number of bins
    assert choice.bound <= best + 1e-9
    assert choice.gap >= 0


@given(ITEMS)
def test_the_smallest_choice_for_a_cost(options: list[list[tuple[int, float]]]) -> None:
    limit = sum(min(cost for _, cost in o) for o in options) + 1.0
    best = min(sum(size for size, _ in c) for c in itertools.product(*options) if sum(cost for _, cost in c) <= limit)
    choice = solve_for_cost(made(options), limit)
    assert choice.cost <= limit and choice.bytes <= best + 1
    with pytest.raises(EdgewrightError, match="out of reach"):
        solve_for_cost(made(options), sum(min(cost for _, cost in o) for o in options) - 0.1)


def test_large_problems_stay_within_the_limit_and_near_the_bound() -> None:
    sizes = [[(10**6 * (i + 1) * (j + 2), 5.0 * (i + 1) / 4**j) for j in range(6)] for i in range(100)]
    limit = 13 * 10**9
    choice = solve(made(sizes), limit)
    assert choice.bytes <= limit and choice.gap < 0.01


def test_fused_projections_are_one_item_and_a_tied_table_is_another() -> None:
    model = read_model(CONFIG, None, 64)
    names = [tuple(s.name for s in members) for members in budget.units(model, model.slots)]
    assert names[0] == ("model.embed_tokens",)
    assert ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj") in names
    assert (
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.k_proj",
        "model.layers.1.self_attn.v_proj",
    ) in names
    assert len(names) == 1 + 2 * 4 and len(set(itertools.chain(*names))) == 15


def recipe(source: Path, limit: dict[str, Any], **rule: Any) -> Recipe:
    return recipe_model(target_options(), method_options()).model_validate(
        {
            "name": "test",
            "checkpoint": {"path": str(source)},
            "quantize": {
                "rules": [{"match": "*.o_proj", "bits": 16}, {"match": "*", "bits": 4, **rule}],
                "calibration": {"tokens": 256},
                "budget": limit,
            },
            "context": {"max_tokens": 64},
            "targets": {"onnx": {}},
        }
    )


def test_a_budget_becomes_rules_that_repeat_it(small: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(small)
    limited = recipe(small, {"size": "250kB"})
    found = pipeline.quantize(limited, checkpoint, "small", None, tmp_path / "a" / "quantized", silent)
    size = sum(
        found.assignment.schemes[s.name].packed_bytes(s.rows, s.columns) if not s.is_vector else s.columns * 2
        for s in found.model.slots
    )
    assert 230_000 < size <= 250_000
    schemes = found.assignment.schemes
    for names in found.model.component("decoder").fused:
        assert len({schemes[n] for n in names}) == 1
    assert schemes["model.layers.0.self_attn.o_proj"].bits == 16
    written = yaml.safe_load((tmp_path / "a" / "quantized" / "rules.yaml").read_text())
    plain = limited.model_dump(by_alias=True, mode="json")
    plain["quantize"] = {"rules": written["rules"], "calibration": {"tokens": 256}}
    again = recipe_model(target_options(), method_options()).model_validate(plain)
    repeated = pipeline.quantize(again, checkpoint, "small", None, tmp_path / "b" / "quantized", silent)
    assert repeated.assignment.schemes == schemes and repeated.digest == found.digest

    stages: list[str] = []
    pipeline.quantize(
        limited, checkpoint, "small", None, tmp_path / "a" / "quantized", lambda stage, *_: stages.append(stage)
    )
    assert stages == []  # neither measured nor quantized again


def test_a_limit_on_perplexity(small: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(small)
    sizes = []
    for limit in ("2%", "0.1%"):
        found = pipeline.quantize(
            recipe(small, {"max_perplexity_increase": limit}), checkpoint, "s", None, tmp_path / limit[:-1], silent
        )
        sizes.append(sum(g.bytes for g in found.groups))
    assert sizes[0] < sizes[1]


def test_budgets_out_of_reach(small: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(small)
    with pytest.raises(EdgewrightError, match=r"too few; the smallest choice takes \d+ bytes"):
        pipeline.quantize(recipe(small, {"size": "1kB"}), checkpoint, "s", None, tmp_path / "q", silent)
    with pytest.raises(ValueError, match="exactly one of the keys size and max_perplexity_increase"):
        recipe(small, {})
