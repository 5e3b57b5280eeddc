"""quantization.json: worst first, with held-out figures from golden vectors, through the pipeline and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from artifacts import EdgewrightError, silent, write_manifest
from compiler import pipeline
from compiler.checkpoint import Checkpoint
from compiler.expectations import write_vectors
from compiler.quantize import evidence, metrics
from compiler.quantize.evidence import TensorEvidence
from compiler.slots import Scheme, Slot
from edgewright import cli
from tests.artifacts.conftest import DRAFT

from .test_budget import recipe


def test_divergence_is_zero_only_for_the_same_distribution() -> None:
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    assert metrics.divergence(logits, logits + 3).abs().max() < 1e-6
    p, q = torch.tensor([[0.7, 0.3]]).log(), torch.tensor([[0.4, 0.6]]).log()
    expected = 0.7 * np.log(0.7 / 0.4) + 0.3 * np.log(0.3 / 0.6)
    assert float(metrics.divergence(p, q)) == pytest.approx(expected, rel=1e-5)


def test_held_out_figures_from_golden_vectors(tmp_path: Path) -> None:
    """With all ids listed, the bound from the lists is the divergence itself."""
    generator = torch.Generator().manual_seed(1)
    original = torch.randn(2, 3, 40, generator=generator)
    reference = original + 0.3 * torch.randn(2, 3, 40, generator=generator)
    arrays = {"tokens": np.zeros((2, 3), np.int32)}
    for side, logits in (("original", original), ("reference", reference)):
        top = logits.topk(40)
        arrays |= {
            f"{side}.top_ids": top.indices.int().numpy(),
            f"{side}.top_logits": top.values.numpy(),
            f"{side}.logsumexp": logits.logsumexp(-1).numpy(),
            f"{side}.target_logprob": logits.log_softmax(-1)[:, :2, 0].numpy(),
        }
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp_path / "g", {"text": "made up"})
    found = metrics.held_out(tmp_path / "g")
    assert found.mean_kl == pytest.approx(float(metrics.divergence(original, reference).mean()), rel=1e-5)
    assert found.top1_agreement == pytest.approx(float((original.argmax(-1) == reference.argmax(-1)).float().mean()))
    assert found.perplexity_original == pytest.approx(float((-original.log_softmax(-1)[:, :2, 0].mean()).exp()))
    # fewer ids make the bound smaller, never larger
    for side in ("original", "reference"):
        for name in ("top_ids", "top_logits"):
            arrays[f"{side}.{name}"] = arrays[f"{side}.{name}"][..., :8]
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp_path / "g", {"text": "made up"})
    assert 0 < metrics.held_out(tmp_path / "g").mean_kl <= found.mean_kl + 1e-6


def test_signal_to_noise() -> None:
    slot = Slot("a", "a.weight", 8, 64, "linear")
    found = TensorEvidence.of(slot, Scheme(4, 0), "rtn", 100.0, 1.0)
    assert (found.snr_db, found.group, found.bytes) == (20.0, "channel", 8 * 32 + 8 * 4)
    assert TensorEvidence.of(slot, Scheme(4, 32), "rtn", 100.0, 0.0).snr_db == 200.0


def test_a_package_carries_its_evidence_and_the_command_prints_it(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(small, {"size": "250kB"}).model_copy(update={"name": "small"})
    checkpoint = Checkpoint(small)
    quantized = pipeline.quantize(made, checkpoint, "small", None, tmp_path / "quantized", silent)
    package = tmp_path / "onnx"
    package.mkdir()
    draft = pipeline.build(made, "onnx", quantized, checkpoint, package, silent)
    write_vectors(draft, quantized, checkpoint, package, silent)
    write_manifest(package, draft)
    found = evidence.report(package)
    ratios = [t.snr_db for t in found.tensors]
    assert len(ratios) == 13 and ratios == sorted(ratios)
    assert found.held_out is not None and 0 < found.held_out.mean_kl < 1 and found.held_out.tokens > 100
    assert evidence.report(tmp_path / "quantized").tensors == found.tensors
    assert evidence.report(tmp_path) == found  # the folder that holds both

    for arguments in (["quantize-report", str(package)], ["quantize-report", "--json", str(package)]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert not ended.value.code
        printed = capsys.readouterr().out
        assert found.tensors[0].slot in printed
    assert json.loads(printed)["held_out"]["mean_kl"] == found.held_out.mean_kl


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An artifact with evidence of one tensor and golden vectors of two sequences, and its quantized weights."""
    slot = Slot("a", "a.weight", 8, 64, "linear")
    found = evidence.QuantizationEvidence.of([TensorEvidence.of(slot, Scheme(4, 32), "rtn", 100.0, 1.0)], [])
    for name in ("onnx", "quantized"):
        (tmp_path / name).mkdir()
        evidence.write(tmp_path / name, found)
    write_manifest(tmp_path / "quantized", DRAFT.model_copy(update={"target": "checkpoint"}))
    golden(tmp_path / "onnx", {})
    return tmp_path / "onnx"


def golden(package: Path, changes: dict[str, Any]) -> None:
    """Write the package's golden vectors, some tensors replaced (None: left out), and its manifest."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {"tokens": np.zeros((2, 3), np.int32)}
    for side in ("original", "reference"):
        arrays |= {
            f"{side}.top_ids": np.tile(np.arange(8, dtype=np.int32), (2, 3, 1)),
            f"{side}.top_logits": generator.normal(size=(2, 3, 8)).astype(np.float32),
            f"{side}.logsumexp": np.full((2, 3), 3, np.float32),
            f"{side}.target_logprob": np.full((2, 2), -1, np.float32),
        }
    arrays |= changes
    save_file({k: v for k, v in arrays.items() if v is not None}, package / "golden.safetensors", {"text": "made up"})
    write_manifest(package, DRAFT)


def test_what_was_changed_is_not_reported_on(package: Path) -> None:
    assert evidence.report(package).held_out is not None
    path = package / "quantization.json"
    path.write_text(path.read_text().replace('"snr_db": 20.0', '"snr_db": 90.0'))
    with pytest.raises(EdgewrightError, match=r"(?s)differs from its manifest.*quantization\.json: sha256 differs"):
        evidence.report(package)


def test_a_recipes_folder_takes_its_figures_from_a_package_of_the_same_weights(package: Path, tmp_path: Path) -> None:
    assert evidence.report(tmp_path).held_out == evidence.report(package).held_out
    write_manifest(package, DRAFT.model_copy(update={"weights_digest": "3" * 64}))
    assert evidence.report(tmp_path).held_out is None  # a package that another checkpoint left
    golden(package, {})
    with (package / "golden.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(EdgewrightError, match=r"golden\.safetensors: sha256 differs"):
        evidence.report(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "'tokens' is missing"),
        ({"reference.top_ids": None}, "'reference.top_ids' is missing"),
        ({"reference.logsumexp": np.zeros((3, 2), np.float32)}, r"'reference.logsumexp' has shape \[3, 2\]"),
        ({"original.top_logits": np.full((2, 3, 8), np.nan, np.float32)}, "'original.top_logits' holds something else"),
        ({"tokens": np.zeros((2, 3), np.float32)}, "'tokens' holds something else than finite numbers"),
        ({"tokens": np.zeros((2, 3), np.int64)}, "'tokens' is missing, or of another type"),
        ({"tokens": np.zeros((0, 0), np.int32)}, r"has shape"),
        ({"original.top_ids": np.zeros((2, 3, 0), np.int32)}, r"'original.top_ids' has shape \[2, 3, 0\]"),
        ({"original.target_logprob": np.full((2, 2), -3e38, np.float32)}, "perplexity_original comes out as no number"),
    ],
)
def test_a_golden_file_that_is_none_names_its_tensor(package: Path, changes: dict[str, Any], message: str) -> None:
    golden(package, changes)
    with pytest.raises(EdgewrightError, match=rf"golden\.safetensors: .*{message}"):
        evidence.report(package)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_golden_file_of_any_bytes_is_one_message(package: Path, content: bytes) -> None:
    (package / "golden.safetensors").write_bytes(content)
    write_manifest(package, DRAFT)
    with pytest.raises(EdgewrightError, match=r"golden\.safetensors: "):
        evidence.report(package)


def test_no_evidence_and_damaged_evidence(package: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match="not an Edgewright artifact"):
        evidence.report(tmp_path / "..")
    for content, message in (("{}", "calibration: Field required"), ("[" * 100_000, "Invalid JSON")):
        (package / "quantization.json").write_text(content)
        write_manifest(package, DRAFT)
        with pytest.raises(EdgewrightError, match=rf"quantization\.json: {message}.*build the artifact again"):
            evidence.report(package)
    (package / "quantization.json").unlink()
    write_manifest(package, DRAFT)
    with pytest.raises(EdgewrightError, match=r"holds no quantization\.json: build it again"):
        evidence.report(package)
