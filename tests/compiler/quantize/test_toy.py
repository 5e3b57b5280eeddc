"""A model of two components that reads no text, from a recipe's rules to calibrated weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EdgewrightError, silent, verify
from artifacts.formats import vectors
from compiler import pipeline
from compiler.checkpoint import Checkpoint
from compiler.models.base import Model
from compiler.models.interface import described
from compiler.quantize import evidence
from compiler.quantize.methods import method_options
from compiler.quantized import Quantized
from compiler.slots import Scheme, Weights
from compiler.targets import target_options
from compiler.vectors import entry_outputs
from recipes.schema import Recipe, recipe_model
from tests.compiler.conftest import original

CONVOLUTIONS = ("head.middle", "head.last")


def recipe(*rules: dict[str, Any], **more: Any) -> Recipe:
    content = {
        "name": "toy",
        "checkpoint": {"path": "."},
        "quantize": {"rules": rules, **more.pop("quantize", {})},
        "context": {"max_tokens": 2},
        "targets": {"mlx": {}},  # the check of which is the quickest
    }
    return recipe_model(target_options(), method_options()).model_validate(content | more)


def rule(method: str, **more: Any) -> dict[str, Any]:
    return {"match": "*", "bits": 4, "group": 32, "method": method, **more}


def quantize(toy: Path, out: Path, used: Recipe) -> Quantized:
    return pipeline.quantize(used, Checkpoint(toy), "toy", None, out / "quantized", silent)


def errors(model: Model, unquantized: Weights, weights: Weights, *components: str) -> dict[str, float]:
    """The relative error of each component's output over inputs that no calibration saw: generated ones, and what
    earlier components make of them. components: those that take part, all by default."""
    parts = tuple(part for part in described(model, {}) if not components or part.name in components)
    plan = vectors.planned(parts, 1000, 0.1, 0.1, rounds=8)
    sides = [entry_outputs(model, {}, table, plan, parts) for table in (unquantized, weights)]
    lost: dict[str, tuple[float, float]] = {}
    for call, expected, found in zip(plan.calls, *sides, strict=True):
        for name, values in expected.items():
            noise, signal = lost.get(call.component, (0.0, 0.0))
            error, spread = np.square(found[name] - values).sum(), np.square(values - values.mean()).sum()
            lost[call.component] = noise + float(error), signal + float(spread)
    return {name: (noise / signal) ** 0.5 for name, (noise, signal) in lost.items()}


class Alone:
    """The unquantized weights with one slot of others."""

    def __init__(self, unquantized: Weights, other: Weights, slot: str) -> None:
        self._unquantized, self._other, self._slot = unquantized, other, slot

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        return (self._other if name == self._slot else self._unquantized).rows(name, start, stop)


def test_gptq_loses_less_than_nearest_and_so_does_each_convolution(toy: Path, tmp_path: Path) -> None:
    model, unquantized = original(toy)
    nearest, found = (quantize(toy, tmp_path / m, recipe(rule(m))).weights for m in ("rtn", "gptq"))
    whole = [errors(model, unquantized, weights)["head"] for weights in (nearest, found)]
    assert 0 < whole[1] < 0.75 * whole[0], whole
    for slot in CONVOLUTIONS:
        alone = [errors(model, unquantized, Alone(unquantized, weights, slot))["head"] for weights in (nearest, found)]
        assert 0 < alone[1] < alone[0], (slot, alone)


def test_every_matrix_is_quantized_and_vectors_stay(toy: Path, tmp_path: Path) -> None:
    rules = [{"match": "head.last", "bits": 8, "group": "channel"}, {"match": "cell.recurrent", "bits": 16}]
    quantized = quantize(toy, tmp_path, recipe(*rules, rule("gptq", symmetric=False)))
    model, unquantized = original(toy)
    for slot in model.slots:
        ours, theirs = quantized.weights.rows(slot.name), unquantized.rows(slot.name)
        assert ours.shape == theirs.shape
        if slot.is_vector or slot.name == "cell.recurrent":
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert 0 < np.abs(ours - theirs).max() < 0.3, slot.name
    assert quantized.weights.scheme("head.last") == Scheme(8, 0)
    assert quantized.weights.scheme("head.middle") == Scheme(4, 32, False)
    found = evidence.report(tmp_path / "quantized")
    assert {t.slot: t.method for t in found.tensors} == {
        "head.last": "rtn",
        "head.middle": "gptq",
        "head.spread": "gptq",
        "cell.input": "gptq",
    }
    assert all(0 < (t.output_error or 0) < 0.2 for t in found.tensors)
    assert verify(tmp_path / "quantized") == [] and quantized.held_out is None


def test_a_run_is_repeated_to_the_byte_and_another_seed_is_another_calibration(toy: Path, tmp_path: Path) -> None:
    def digest(out: str, **calibration: Any) -> str:
        return quantize(toy, tmp_path / out, recipe(rule("gptq"), quantize={"calibration": calibration})).digest

    assert digest("a") == digest("b") != digest("c", seed=1)


@pytest.mark.parametrize("method", ["mse", "hqq", "awq"])
def test_other_methods_take_it_too(toy: Path, tmp_path: Path, method: str) -> None:
    model, unquantized = original(toy)
    weights = quantize(toy, tmp_path, recipe(rule(method))).weights
    for component, most in (("cell", 0.15), ("head", 0.4)):
        assert 0 < errors(model, unquantized, weights, component)[component] < most


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantize": {"budget": {"size": "90kB"}}}, r"quantize\.budget: is measured on text"),
        ({"validate": {"quality": {"text": "stdlib-python"}}}, r"validate\.quality: measures text"),
    ],
)
def test_what_asks_for_text_is_refused(toy: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgewrightError, match=message):
        quantize(toy, tmp_path, recipe(rule("gptq"), **change))
    assert not (tmp_path / "quantized").exists()


def test_a_text_to_calibrate_on_is_refused(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("text")
    calibration = {"text": str(tmp_path / "own.txt")}
    with pytest.raises(EdgewrightError, match=r"quantize\.calibration: .*own\.txt: this model does not read text"):
        quantize(toy, tmp_path, recipe(rule("gptq"), quantize={"calibration": calibration}))
    assert not (tmp_path / "quantized").exists()
