"""A tile as Core ML takes it: an image of the app's, normalized inside of the program."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts import silent
from artifacts.media.tiles import normalise
from compiler.processor import IMAGES, PROCESSOR, from_processor
from compiler.slots import Scheme
from compiler.targets.base import bare
from compiler.targets.coreml import convert
from compiler.targets.coreml.packaging import image_text
from runtime_tests.mil.package import Package, PackageError
from runtime_tests.mil.program import Function
from tests.compiler.conftest import Reference
from tests.compiler.smolvlm import TINY, tiny_job

CHANNELS = {"image_mean": [0.4815, 0.4578, 0.4082], "image_std": [0.2686, 0.2613, 0.2758]}


def test_a_tile_is_an_image_that_the_program_normalizes(tmp_path: Path) -> None:
    """With a mean and a spread of each channel, as shipped and exactly; another size is no tile."""
    source = tmp_path / "source"
    source.mkdir()
    for path in TINY.iterdir():
        (source / path.name).symlink_to(path)
    for name in (PROCESSOR, IMAGES):
        (source / name).unlink()
    processor = json.loads((TINY / PROCESSOR).read_text())
    for part in ("image_processor", "video_processor"):
        processor[part] |= CHANNELS
    (source / PROCESSOR).write_text(json.dumps(processor))

    job = dataclasses.replace(tiny_job(tmp_path / "quantized", "coreml", Scheme(4, 32)), source=source)
    vision = {"vision.mlpackage": image_text.packages(job)["vision.mlpackage"]}
    convert.make_packages(bare(job), job.weights.path, tmp_path, vision, image_text.FEATURES, {}, {}, silent)
    package = Package(tmp_path / "vision.mlpackage")
    (feature,) = package.description("main").input
    assert feature.type.imageType.colorSpace == feature.type.imageType.RGB
    assert (feature.type.imageType.width, feature.type.imageType.height) == (64, 64)

    tile = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    pixels = normalise(tile, from_processor(source).images.normalisation)
    expected = Reference(job).call("vision", "tile", pixels=pixels)["features"]
    values = torch.from_numpy(tile).permute(0, 3, 1, 2).float()
    for exact, error in ((True, 1e-4), (False, 1e-2)):
        found = Function(package, "main", exact=exact)({"image": values})["features"].float().numpy()
        np.testing.assert_allclose(found, expected, atol=error * np.abs(expected).max(), rtol=0)
        swapped = Function(package, "main", exact=exact)({"image": values.flip(1)})["features"].float().numpy()
        assert np.abs(swapped - expected).max() > 5e-2 * np.abs(expected).max()
    with pytest.raises(PackageError, match=r"input 'image' of shape \[1, 3, 64, 60\] is not described"):
        Function(package, "main")({"image": values[..., :60]})
