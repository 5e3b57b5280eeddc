"""Ministral 3 with its Pixtral tower on every target through the generic path, at mixed bits.

Parity is that of the artifact's own runtime in exact arithmetic, on inputs that nothing was traced with: images of
several sizes, alone and beside what is none of theirs, ids, and a prompt of embeddings with cached steps behind it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.slots import HALF
from compiler.targets import target_options
from compiler.targets.base import BuildJob
from recipes.schema import Vision
from runtime_tests.sessions import make_session
from tests.compiler.conftest import Reference, packed, quantized_job
from tests.compiler.pixtral import GEOMETRIES, SMALL, Geometry, cells_of, image, write_pixtral
from tests.compiler.targets.test_smolvlm2 import CONTEXT, OPTIONS, language, mixed

ALL = {"one layer": dataclasses.replace(SMALL, layers=1), **GEOMETRIES}
NAMES = [name if name == "one layer" else pytest.param(name, marks=pytest.mark.nightly) for name in ALL]
EXACT = 2e-5  # of the largest value; a table of angles in half precision is five times as far off
SIDE = 5  # cells along the longest edge; of 25 the context holds 24


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(  # TVM and Core ML lower what ONNX captured, which SmolVLM2 shows in every run
    "target", ["onnx", "mlx", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("tvm", "coreml"))]
)
@pytest.mark.usefixtures("here")
def test_every_entry_is_what_pytorch_computes(target: str, name: str, tmp_path: Path) -> None:
    geometry = ALL[name]
    source = write_pixtral(tmp_path / "source", geometry, 1)
    options = target_options()[target](**OPTIONS[target])
    given: dict[str, Any] = {
        "max_tokens": CONTEXT,
        "vision": Vision(max_image=SIDE * geometry.patch * geometry.merge),
    }
    plain = quantized_job(tmp_path / "plain", source, options, HALF, **given)
    schemes = mixed(plain.model.slots, len(name))
    assert {scheme.bits for scheme in schemes.values()} == {4, 8, 16}
    check(quantized_job(tmp_path / "quantized", source, options, HALF, schemes, **given), geometry, target, tmp_path)


def check(job: BuildJob, geometry: Geometry, target: str, folder: Path) -> None:
    manifest = packed(job, target, folder / target)
    session, reference = make_session(folder / target, manifest), Reference(job)
    session.load(exact=True)

    bound = next(c for c in manifest.components if c.name == "vision").entries[0].dimensions["cells"]
    assert (bound.low, bound.high) == (1, CONTEXT)
    for rows, columns in ((1, 1), (3, 5), (5, 4), (2, 3)):
        cells = cells_of(image(geometry, rows, columns), geometry.patch, geometry.merge)
        expected = reference.call("vision", "image", **cells)["features"]
        assert expected.shape == (rows * columns, geometry.hidden)
        assert expected.std() > 100 * EXACT * np.abs(expected).max()
        for size in bound.sizes or {rows * columns, rows * columns + 3}:
            if size >= rows * columns:
                found = session.call("vision", "image", **filled(cells, size, geometry))["features"]
                atol = EXACT * np.abs(expected).max()
                np.testing.assert_allclose(found[: rows * columns], expected, atol=atol, rtol=0)
    language(session, reference, manifest, EXACT, 160)


def filled(cells: dict[str, NDArray[Any]], size: int, geometry: Geometry) -> dict[str, NDArray[Any]]:
    """The cells of one image, and others behind them that say so, up to this many."""
    more = size - len(cells["images"])
    random = np.random.default_rng(more)
    places = (more, geometry.merge**2)
    others = {
        "pixels": random.uniform(-1, 1, (more, *cells["pixels"].shape[1:])).astype(np.float32),
        "rows": random.integers(0, SIDE * geometry.merge, places),
        "columns": random.integers(0, SIDE * geometry.merge, places),
        "images": np.ones(more, np.int64),
    }
    return {port: np.concatenate([values, others[port]]) for port, values in cells.items()}
