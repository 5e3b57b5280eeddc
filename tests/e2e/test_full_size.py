"""The real geometries compile in the memory of a cheap laptop. Nightly: minutes and up to 12 GB of disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts import read_manifest
from runtime_tests.golden import read_golden
from runtime_tests.sessions import make_session
from tests.bench import avatar
from tests.bench.measure import MB, python, size_of
from tests.bench.synthetic import make_checkpoint


@pytest.mark.nightly
def test_the_3b_geometry_compiles_small_and_answers_as_its_reference(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "3b", "ministral-3-3b")
    built = python("tests.bench.build", "edgewright", source, tmp_path / "out", 64)
    package = tmp_path / "out" / "onnx"
    print(f"built in {built.seconds:.0f} s, {built.peak_bytes / MB:.0f} MB, {size_of(package) / 1e9:.3f} GB")
    assert built.peak_bytes <= 600e6
    assert size_of(package) <= 1.95e9

    vectors = python("tests.bench.build", "golden", source, tmp_path / "out", 64)
    print(f"golden vectors in {vectors.seconds:.0f} s, {vectors.peak_bytes / MB:.0f} MB")
    assert vectors.peak_bytes <= 2e9
    assert vectors.result["bytes"] <= 5e6

    golden = read_golden(package / "golden.safetensors")
    session = make_session(package, read_manifest(package))
    session.load(exact=True)
    ids = golden.tokens[:1, :64].astype(np.int64)
    found = session.call("decoder", "score", input_ids=ids, positions=np.arange(64)[None])["logits"][0]
    top = np.take_along_axis(found, golden.reference.top_ids[0, :64].astype(np.int64), 1)
    np.testing.assert_allclose(top, golden.reference.top_logits[0, :64], atol=1e-3)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("size", "recipe", "target", "decoder"),
    [
        ("256m", "smolvlm2-256m-int4", "onnx", 86.9e6),
        ("256m", "smolvlm2-256m-int4", "mlx", None),
        ("2.2b", "smolvlm2-2.2b-int4", "onnx", 1.07e9),
        ("2.2b", "smolvlm2-2.2b-mlx-int4", "mlx", None),
    ],
)
def test_smolvlm2_compiles_small(size: str, recipe: str, target: str, decoder: float | None, tmp_path: Path) -> None:
    """decoder: bytes of the public ONNX export's, in q4."""
    source = make_checkpoint(tmp_path / size, f"smolvlm2-{size}")
    to_do = ("run", recipe, "--checkpoint", source, "--target", target, "--out", tmp_path, "--no-validate", "--quiet")
    built = python("edgewright.cli", *to_do)
    package = tmp_path / recipe / target
    print(f"{recipe}: {built.seconds:.0f} s, {built.peak_bytes / MB:.0f} MB, {size_of(package) / 1e9:.3f} GB")
    assert built.peak_bytes <= 600e6
    if decoder is not None:
        assert 0 < sum(path.stat().st_size for path in package.glob("onnx/decoder_model_merged_*")) <= decoder


@pytest.mark.nightly
@pytest.mark.parametrize("target", ["onnx", "coreml", "mlx"])
def test_a_portrait_compiles_small(target: str, tmp_path: Path) -> None:
    """Its renderer holds 260 MiB of values at once where a runtime computes it, and so did the reference."""
    source = avatar.checkpoint(tmp_path / "liveportrait", "liveportrait")
    recipe = "liveportrait-int8"
    to_do = ("run", recipe, "--checkpoint", source, "--target", target, "--out", tmp_path, "--no-validate", "--quiet")
    built = python("edgewright.cli", *to_do)
    print(f"{recipe}, {target}: {built.seconds:.0f} s, {built.peak_bytes / MB:.0f} MB")
    assert built.peak_bytes <= 600e6
