"""Forty random decoders on every target: each is built and computes what PyTorch computes, or is refused by name.

Parity is that of the artifact's own runtime, at the target's own tolerance for exact arithmetic, on tokens that nothing
was traced with: one prefill of a whole context, then a shorter one and cached steps to the context's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from compiler.models.base import read_model
from compiler.slots import HALF, Scheme
from compiler.targets import load_target, target_options
from compiler.targets.base import Job
from runtime_tests.drivers.text import Decoder
from runtime_tests.sessions import make_session
from tests.compiler.conftest import MINISTRAL3, job_logits, packed, quantized_job, random_tensors, save
from tests.compiler.geometries import Geometry, draw, geometries

COUNT, ALWAYS = 40, 1
OPTIONS: dict[str, dict[str, Any]] = {
    "onnx": {},
    "mlx": {},
    "tvm": {"triples": ()},
    "coreml": {"prompt_lengths": (16,)},
}
SEEDS = [seed if seed < ALWAYS else pytest.param(seed, marks=pytest.mark.nightly) for seed in range(COUNT)]


def planned(target: str, geometry: Geometry) -> Job:
    """The job of a geometry, before there are weights."""
    model = read_model(geometry.config, None, geometry.max_tokens)
    return Job("geometry", model, geometry.schemes, target_options()[target](**OPTIONS[target]))


def refusals(target: str, geometry: Geometry) -> list[str]:
    """What the target refuses, each sentence checked to begin with the target and to name a tensor."""
    job = planned(target, geometry)
    found = load_target(target).refusals(job)
    for sentence in found:
        assert sentence.startswith(f"{target}: ") and any(s.name in sentence for s in job.model.slots), sentence
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", OPTIONS)
@pytest.mark.usefixtures("here")
def test_a_decoder_is_built_and_agrees_or_is_refused_by_name(target: str, seed: int, tmp_path: Path) -> None:
    geometry = draw(seed)
    if not refusals(target, geometry):
        source = save(tmp_path / "source", geometry.config, random_tensors(geometry.config, seed))
        agrees(target, source, geometry.schemes, geometry.max_tokens, tmp_path)


BIASED = {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "head_dim": 16},
    "qwen3": {"model_type": "qwen3"},
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2},
    "llama with biases": BIASED,
}
# What two targets make of one captured graph, of which every run looks at a part.
OFTEN = {(target, family) for target in ("tvm", "coreml") for family in FAMILIES if family != "qwen3"}


@pytest.mark.parametrize(
    ("target", "family"),
    [
        pytest.param(target, family, marks=[pytest.mark.nightly] if (target, family) in OFTEN else [])
        for target in OPTIONS
        for family in FAMILIES
    ],
)
@pytest.mark.usefixtures("here")
def test_biases_head_norms_and_layers_without_rotation(target: str, family: str, tmp_path: Path) -> None:
    """Every decoder that is asked for most, over the dialect alone: mixed bits, biases that matter."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    config = {**MINISTRAL3, "rope_parameters": plain, **FAMILIES[family], "architectures": None}
    slots = read_model(config, None, 48).slots
    schemes = {s.name: Scheme(8 if ".k_proj" in s.name else 4, 32) for s in slots if not s.is_vector}
    source = save(tmp_path / "source", config, random_tensors(config, 3))
    agrees(target, source, schemes, 48, tmp_path)


def agrees(target: str, source: Path, schemes: Mapping[str, Scheme], max_tokens: int, folder: Path) -> None:
    """Build the package and compare it with the reference: whole prompts, shorter ones, cached steps."""
    options = target_options()[target](**OPTIONS[target])
    job = quantized_job(folder / "quantized", source, options, HALF, schemes, max_tokens=max_tokens)
    manifest = packed(job, target, folder / target)
    ids = np.random.default_rng(0).integers(0, job.model.slots[0].rows, max_tokens)
    expected = job_logits(job, ids[None])[0]
    limit = load_target(target).tolerances["exact_max_abs_logit"]
    session = make_session(folder / target, manifest)
    session.load(exact=True)
    decoder = Decoder(session, manifest.components[0], max_tokens)
    np.testing.assert_allclose(decoder.logits(ids), expected, atol=limit, rtol=0)
    prompt = len(ids) // 2
    steps = [decoder.prefill(ids[:prompt]), *(decoder.decode(int(token)) for token in ids[prompt:])]
    np.testing.assert_allclose(np.stack(steps), expected[prompt - 1 :], atol=limit, rtol=0)
    assert expected.std() > 100 * limit
    assert all(figure.value > 0 for figure in session.footprint())


@pytest.mark.parametrize("target", OPTIONS)
def test_most_of_the_forty_are_built(target: str) -> None:
    built = sum(not refusals(target, draw(seed)) for seed in range(COUNT))
    assert built >= 32


@given(geometries)
def test_no_geometry_is_too_odd_for_a_plan(geometry: Geometry) -> None:
    for target in OPTIONS:
        refusals(target, geometry)
        for estimate in load_target(target).estimate(planned(target, geometry)):
            assert 0 < estimate.weight_bytes <= estimate.file_bytes
