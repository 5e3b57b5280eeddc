"""Talking avatars on every target: each entry equals the dialect's reference, which `adopt`'s tests hold to the modules
that were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler.slots import HALF, Scheme
from compiler.targets.base import BuildJob
from compiler.targets.coreml.options import CoreMLOptions
from compiler.targets.mlx.options import MlxOptions
from compiler.targets.onnx.options import OnnxOptions
from compiler.targets.tvm.options import TvmOptions
from runtime_tests.sessions import make_session
from tests.compiler.adopt.conftest import Adopt, save_encoder, save_expression, save_unet, take
from tests.compiler.avatars import flame, small_encoder, small_expression, small_unet
from tests.compiler.conftest import Jobs, Reference, packed

__all__ = ["take"]
pytestmark = pytest.mark.usefixtures("here")
OPTIONS: dict[str, Any] = {
    "onnx": OnnxOptions(),
    "coreml": CoreMLOptions(),
    "mlx": MlxOptions(),
    "tvm": TvmOptions(triples=()),
}
# of a mixed recipe, one of each kind
SMALLER = {
    "unet.down4.maxpool_conv.double_conv.1.pointwise.reparam_conv": Scheme(4, 32),
    "feather_hubert.proj": Scheme(8, 32),
    "feather_hubert.frontend.layers.0.conv": Scheme(8, 0),  # rows of ten, of five, of nine and of six
    "feather_hubert.encoder.0.dw_conv": Scheme(8, 0),
    "unet.inc.inconv.depthwise.reparam_conv": Scheme(8, 0),
    "unet.inc.inconv.pointwise.reparam_conv": Scheme(8, 0),
}


def assert_entries_equal_the_reference(job: BuildJob, target: str, folder: Path, limit: float = 1e-4) -> None:
    """Every entry of every component, in the target's exact mode, over inputs that no weight has seen."""
    session = make_session(folder, packed(job, target, folder))
    session.load(exact=True)
    reference, random = Reference(job), np.random.default_rng(0)
    for component in job.model.components:
        for entry in component.shipped:
            arrays = {
                port.name: np.arange(port.sized({})[-1])[None]
                if port.below
                else random.standard_normal(port.sized({}), np.float32)
                for port in entry.inputs
            }
            found, expected = (side.call(component.name, entry.name, **arrays) for side in (session, reference))
            for name, values in expected.items():
                assert found[name].shape == values.shape
                assert np.abs(found[name] - values).max() <= limit * np.abs(values).max(), (component.name, name)


@pytest.mark.parametrize(
    ("target", "mobileone", "others"),
    [
        *(pytest.param(target, True, SMALLER, id=f"{target}-mobileone") for target in ("onnx", "coreml", "mlx")),
        pytest.param("tvm", True, SMALLER, id="tvm-mobileone", marks=pytest.mark.nightly),
        *(pytest.param(target, False, {}, id=f"{target}-original") for target in ("onnx", "mlx")),
        *(
            pytest.param(target, False, {}, id=f"{target}-original", marks=pytest.mark.nightly)
            for target in ("coreml", "tvm")
        ),
    ],
)
def test_every_entry_equals_the_reference(
    take: Adopt, jobs: Jobs, tmp_path: Path, target: str, mobileone: bool, others: dict[str, Scheme]
) -> None:
    unet = save_unet(tmp_path / "last.pth", small_unet(mobileone))
    folder = take(unet, save_encoder(tmp_path / "hubert.pth", small_encoder())).folder
    assert_entries_equal_the_reference(jobs(folder, OPTIONS[target], HALF, others), target, tmp_path / target)


@pytest.mark.parametrize(
    "target", [name if name != "tvm" else pytest.param(name, marks=pytest.mark.nightly) for name in OPTIONS]
)
def test_audio2expression_equals_the_reference(take: Adopt, jobs: Jobs, tmp_path: Path, target: str) -> None:
    folder = take(save_expression(tmp_path / "streaming.tar", small_expression()), family="audio2expression").folder
    others = {f"backbone.audio_encoder.encoder.layers.0.attention.{w}_proj": Scheme(4, 32) for w in "qkv"}
    assert_entries_equal_the_reference(jobs(folder, OPTIONS[target], HALF, others), target, tmp_path / target)


@pytest.mark.parametrize("target", OPTIONS)
def test_gaussians_equal_the_reference(take: Adopt, jobs: Jobs, tmp_path: Path, target: str) -> None:
    torch.save(flame(70), tmp_path / "avatar.pth")
    folder = take(tmp_path / "avatar.pth", family="gaussian").folder
    others = {"positions": Scheme(8, 32), "attributes": Scheme(8, 32)}
    assert_entries_equal_the_reference(jobs(folder, OPTIONS[target], HALF, others), target, tmp_path / target)
