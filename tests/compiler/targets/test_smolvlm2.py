"""SmolVLM on every target: each entry computes what PyTorch computes, at mixed bits.

Parity is that of the artifact's own runtime, at the target's own tolerance for exact arithmetic, on inputs that nothing
was traced with: one tile and several, ids, a prompt of embeddings and cached steps behind it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts import Manifest
from compiler.slots import HALF, Scheme, Slot
from compiler.targets import load_target, target_options
from compiler.targets.base import BuildJob
from runtime_tests.sessions import Session, make_session
from tests.compiler.conftest import Reference, packed, quantized_job
from tests.compiler.smolvlm import GEOMETRIES, SMALL, write_smolvlm

OPTIONS: dict[str, dict[str, Any]] = {"onnx": {}, "mlx": {}, "tvm": {"triples": ()}, "coreml": {}}
ALL = {"one layer": dataclasses.replace(SMALL, layers=1), **GEOMETRIES}
NAMES = [name if name == "one layer" else pytest.param(name, marks=pytest.mark.nightly) for name in ALL]
CONTEXT = 24


def mixed(slots: list[Slot], seed: int) -> dict[str, Scheme]:
    """4, 8 and 16 bits at random, in groups that divide; q, k and v of some layers differ."""
    random = np.random.default_rng(seed)
    found = {}
    for slot in slots:
        if not slot.is_vector:
            bits = int(random.choice([4, 8, 16]))
            fits = slot.columns % 32 == 0
            found[slot.name] = Scheme(bits, 32) if bits != 16 and fits else HALF
    return found


def sizes(manifest: Manifest, component: str, entry: str, name: str) -> list[int]:
    """Sizes of a dimension to try: what the artifact lists, or the bounds and one between."""
    part = next(c for c in manifest.components if c.name == component)
    bound = next(e for e in part.entries if e.name == entry).dimensions[name]
    return list(bound.sizes) or sorted({bound.low, min(3, bound.high), bound.high})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", OPTIONS)
@pytest.mark.usefixtures("here")
def test_every_entry_is_what_pytorch_computes(target: str, name: str, tmp_path: Path) -> None:
    source = write_smolvlm(tmp_path / "source", ALL[name], 1)
    options = target_options()[target](**OPTIONS[target])
    plain = quantized_job(tmp_path / "plain", source, options, HALF, max_tokens=CONTEXT)
    schemes = mixed(plain.model.slots, len(name))
    assert {scheme.bits for scheme in schemes.values()} == {4, 8, 16}
    if target == "mlx":  # whose loaders hold convolutions in half precision
        schemes |= {slot.name: HALF for slot in plain.model.slots if slot.kind == "convolution"}
    job = quantized_job(tmp_path / "quantized", source, options, HALF, schemes, max_tokens=CONTEXT)
    check(job, target, tmp_path / target)


@pytest.mark.nightly
@pytest.mark.usefixtures("here")
def test_a_function_of_mlx_takes_the_tensors_of_a_deep_model(tmp_path: Path) -> None:
    """SmolVLM2 has more than 1,024: what MLX takes by keyword."""
    source = write_smolvlm(tmp_path / "source", dataclasses.replace(SMALL, layers=24), 1)
    schemes = {"model.vision_model.embeddings.patch_embedding": HALF}
    job = quantized_job(
        tmp_path / "quantized", source, target_options()["mlx"](), Scheme(8, 32), schemes, max_tokens=CONTEXT
    )
    check(job, "mlx", tmp_path / "mlx")
    index = json.loads((tmp_path / "mlx" / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) > 1024


def check(job: BuildJob, target: str, folder: Path) -> None:
    manifest = packed(job, target, folder)
    exact, _ = load_target(target).entry_tolerances
    session, reference = make_session(folder, manifest), Reference(job)
    session.load(exact=True)
    random = np.random.default_rng(0)
    constants: dict[str, Any] = dict(job.model.constants)
    edge = constants["tile_size"]
    for tiles in sizes(manifest, "vision", "tile", "tiles"):
        pixels = random.uniform(-1, 1, (tiles, 3, edge, edge)).astype(np.float32)
        features = same(session, reference, exact, "vision", "tile", pixels=pixels)
        assert features.shape[:2] == (tiles, constants["tokens_per_tile"])
    language(session, reference, manifest, exact, constants["vocab_size"])


def same(
    session: Session, reference: Reference, exact: float, component: str, entry: str, **arrays: NDArray[Any]
) -> NDArray[Any]:
    """The reference's only output, which the session gives too."""
    found, expected = (side.call(component, entry, **arrays) for side in (session, reference))
    assert found.keys() == expected.keys()
    (value,) = expected.values()
    np.testing.assert_allclose(next(iter(found.values())), value, atol=exact * np.abs(value).max(), rtol=0)
    assert value.std() > 100 * exact * np.abs(value).max()
    return value


def language(session: Session, reference: Reference, manifest: Manifest, exact: float, vocabulary: int) -> None:
    """The components embed and decoder: ids, prompts of embeddings and cached steps behind them."""
    random = np.random.default_rng(1)
    for count in sizes(manifest, "embed", "embed", "tokens"):
        ids = random.integers(0, vocabulary, (1, count))
        width = same(session, reference, exact, "embed", "embed", input_ids=ids).shape[-1]
    for count in sizes(manifest, "decoder", "prefill", "tokens"):
        session.reset()
        reference.reset()
        places = np.arange(min(count + 2, CONTEXT))[None]
        given = random.standard_normal((1, places.shape[1], width)).astype(np.float32)
        same(session, reference, exact, "decoder", "prefill", embeddings=given[:, :count], positions=places[:, :count])
        for at in range(count, places.shape[1]):
            one = slice(at, at + 1)
            same(session, reference, exact, "decoder", "decode", embeddings=given[:, one], positions=places[:, one])
