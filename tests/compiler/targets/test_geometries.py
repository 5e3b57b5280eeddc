"""Forty random decoders on every target: each is built and computes what PyTorch computes, or is refused by name.

Parity is that of the artifact's own runtime, at the target's own tolerance for exact arithmetic, on tokens that nothing
was traced with: one prefill of a whole context, then a shorter one and cached steps to the context's end.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from artifacts import silent
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights
from compiler.quantize.stream import quantize_checkpoint
from compiler.targets import load_target, target_options
from compiler.targets.base import Job
from compiler.targets.tvm import triples
from tests.compiler.conftest import random_tensors, reference_logits, save
from tests.compiler.geometries import Geometry, draw, geometries

COUNT, ALWAYS = 40, 10
OPTIONS: dict[str, dict[str, Any]] = {
    "onnx": {},
    "mlx": {},
    "tvm": {"triples": ()},
    "coreml": {"prompt_lengths": (16,)},
}
SEEDS = [seed if seed < ALWAYS else pytest.param(seed, marks=pytest.mark.nightly) for seed in range(COUNT)]


def refusals(target: str, geometry: Geometry) -> list[str]:
    """What the target refuses, each sentence checked to begin with the target and to name a tensor."""
    spec = decoder.read_spec(geometry.config)
    slots = decoder.slots(spec)
    found = load_target(target).refusals(spec, slots, geometry.schemes, target_options()[target](**OPTIONS[target]))
    for sentence in found:
        assert sentence.startswith(f"{target}: ") and any(slot.name in sentence for slot in slots), sentence
    return found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes of their own for conversions, no library but the one that runs: forty starts of frameworks less."""

    def directly(function: Callable[..., Any], *arguments: Any, progress: Any) -> Any:
        return function(*arguments, progress)

    monkeypatch.setattr("compiler.targets.tvm.workers.apart", directly)
    monkeypatch.setattr("compiler.targets.coreml.target.apart", directly)
    machine = triples.host()
    monkeypatch.setattr(triples, "host", lambda: dataclasses.replace(machine, variants=machine.variants[-1:]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", OPTIONS)
@pytest.mark.usefixtures("here")
def test_a_decoder_is_built_and_agrees_or_is_refused_by_name(target: str, seed: int, tmp_path: Path) -> None:
    geometry = draw(seed)
    if refusals(target, geometry):
        return
    source = save(tmp_path / "source", geometry.config, random_tensors(geometry.config, seed))
    checkpoint, spec = Checkpoint(source), decoder.read_spec(geometry.config)
    slots = decoder.slots(spec)
    for name in ("quantized", target):
        (tmp_path / name).mkdir()
    rounders = {name: rtn.quantize for name, scheme in geometry.schemes.items() if scheme.bits != 16}
    folder, schemes = tmp_path / "quantized", geometry.schemes
    quantize_checkpoint(checkpoint, slots, schemes, rounders, folder, checkpoint.config, silent)
    weights, options = PackedWeights(folder), target_options()[target](**OPTIONS[target])
    job = Job(f"geometry-{seed}", spec, slots, schemes, geometry.max_tokens, weights, source, options)
    runtime = load_target(target).build(job, tmp_path / target, silent)

    ids = np.random.default_rng(seed).integers(0, spec.vocab, geometry.max_tokens)
    expected = reference_logits(spec, weights, ids[None])[0]
    limit = load_target(target).tolerances["exact_max_abs_logit"]
    runner = importlib.import_module(f"runtime_tests.runners.{target}").RUNNER(tmp_path / target, runtime)
    runner.load(exact=True)
    np.testing.assert_allclose(runner.logits(ids), expected, atol=limit, rtol=0)
    prompt = len(ids) // 2
    steps = [runner.prefill(ids[:prompt]), *(runner.decode(int(token)) for token in ids[prompt:])]
    np.testing.assert_allclose(np.stack(steps), expected[prompt - 1 :], atol=limit, rtol=0)
    assert expected.std() > 100 * limit
    if hasattr(runner, "model_memory"):
        assert all(figure.value > 0 for figure in runner.model_memory())


@pytest.mark.parametrize("target", OPTIONS)
def test_most_of_the_forty_are_built(target: str) -> None:
    built = sum(not refusals(target, draw(seed)) for seed in range(COUNT))
    assert built >= 32


@given(geometries)
def test_no_geometry_is_too_odd_for_a_plan(geometry: Geometry) -> None:
    spec = decoder.read_spec(geometry.config)
    for target in OPTIONS:
        refusals(target, geometry)
        options = target_options()[target](**OPTIONS[target])
        arguments = spec, decoder.slots(spec), geometry.schemes, geometry.max_tokens, options
        estimate = load_target(target).estimate(*arguments)
        assert 0 < estimate.weight_bytes <= estimate.file_bytes
