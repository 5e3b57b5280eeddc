"""Entry vectors: what the reference answers, call by call with its states, computed here by other means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts.formats import tensor_file, vectors
from artifacts.formats.interface import Component
from compiler.models.base import Model
from compiler.models.interface import described
from compiler.slots import Scheme
from compiler.vectors import entry_outputs
from tests.compiler.conftest import Quantizer, original, reference_logits


def parts(model: Model) -> tuple[Component, ...]:
    return tuple(described(model, {}))


def test_states_go_from_call_to_call(toy: Path) -> None:
    """The toy's cell in NumPy: tanh of input, state and bias; half of it leaves."""
    model, table = original(toy)
    plan = vectors.planned(parts(model), 7, 1e-4, 1e-2, rounds=3)
    assert [(call.component, call.entry) for call in plan.calls] == [("cell", "step")] * 3 + [("head", "render")] * 3
    found = entry_outputs(model, {}, table, plan, parts(model))
    hidden = np.zeros((1, 64), np.float32)
    for at, (call, arrays) in enumerate(vectors.inputs(plan, parts(model))):
        if call.component != "cell":
            assert found[at]["picture"].shape == (1, 3, 16, 16) and found[at]["picture"].min() > 0
            continue
        driven = arrays["image"].reshape(1, -1) @ table.rows("cell.input").T
        hidden = np.tanh(driven + hidden @ table.rows("cell.recurrent").T + table.rows("cell.bias"))
        np.testing.assert_allclose(found[at]["features"], hidden / 2, atol=1e-5)
    assert np.abs(found[0]["features"] - found[1]["features"]).max() > 0.1


def test_a_decoder_answers_as_over_the_whole_sequence(ministral: Path, quantized: Quantizer) -> None:
    """Prefill, decode, prefill, decode: positions go on, and so does the cache."""
    model, schemes, weights = quantized(ministral, Scheme(4, 32))
    plan = vectors.planned(parts(model), 3, 1e-4, 1e-2)
    calls = list(vectors.inputs(plan, parts(model)))
    assert [(call.entry, call.sizes["tokens"]) for call, _ in calls] == [
        ("prefill", 6),
        ("decode", 1),
        ("prefill", 5),
        ("decode", 1),
    ]
    ids = np.concatenate([arrays["input_ids"] for _, arrays in calls], 1)
    positions = np.concatenate([arrays["positions"] for _, arrays in calls], 1)
    np.testing.assert_array_equal(positions, np.arange(13)[None])
    whole = reference_logits(model, weights, ids)
    for (_, arrays), outputs in zip(calls, entry_outputs(model, schemes, weights, plan, parts(model)), strict=True):
        np.testing.assert_allclose(outputs["logits"][0, 0], whole[0, arrays["positions"][0, -1]], atol=1e-5)


def test_caches_are_as_long_as_the_calls_count(ministral: Path) -> None:
    """Not as the context: at the real size of a model that alone would be most of the memory."""
    model, weights = original(ministral)
    plan = vectors.planned(parts(model), 3, 1e-4, 1e-2)
    lengths = []

    def again(max_tokens: int) -> Model:
        lengths.append(max_tokens)
        return model.at(max_tokens)

    found = entry_outputs(replace(model, again=again), {}, weights, plan, parts(model))
    assert lengths == [6 + 1 + 5 + 1] and lengths[0] < model.component("decoder").states[0].shape[2]
    assert len(found) == len(plan.calls)


def test_an_entry_that_keeps_nothing_leaves_the_states(toy: Path) -> None:
    model, table = original(toy)
    cell, head = model.components
    step = cell.entry("step")
    peeks = replace(cell, entries=(step, replace(step, name="peek", keeps=False)))
    peeking = replace(model, components=(peeks, head))
    plan = vectors.planned(parts(peeking)[:1], 0, 1e-4, 1e-2)
    assert [call.entry for call in plan.calls] == ["step", "peek", "step", "peek"]
    found = entry_outputs(peeking, {}, table, plan, parts(peeking))
    given = [arrays["image"] for _, arrays in vectors.inputs(plan, parts(peeking))]
    hidden = np.zeros((1, 64), np.float32)
    for at, image in enumerate(given):
        driven = image.reshape(1, -1) @ table.rows("cell.input").T + hidden @ table.rows("cell.recurrent").T
        after = np.tanh(driven + table.rows("cell.bias"))
        np.testing.assert_allclose(found[at]["features"], after / 2, atol=1e-5)
        hidden = hidden if at % 2 else after


@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(8, 0), Scheme(4, 32, False)], ids=str)
def test_a_file_comes_back_as_the_reference_answered(
    toy: Path, quantized: Quantizer, tmp_path: Path, scheme: Scheme
) -> None:
    model, schemes, weights = quantized(toy, scheme)
    plan = vectors.planned(parts(model), 0, 1e-4, 1e-2)
    outputs = entry_outputs(model, schemes, weights, plan, parts(model))
    file = tmp_path / vectors.VECTORS
    tensor_file.write_tensors(file, *vectors.content(plan, outputs), vectors.MAX_BYTES)
    found = vectors.read(file, parts(model))
    assert found.plan == plan
    for written, read in zip(outputs, found.outputs, strict=True):
        assert written.keys() == read.keys()
        for name, values in written.items():
            np.testing.assert_array_equal(read[name], vectors.sampled(values))
