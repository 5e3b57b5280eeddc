"""quantization.json: worst first, with held-out figures from golden vectors, through the pipeline and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from artifacts import EdgewrightError, silent
from compiler import pipeline
from compiler.checkpoint import Checkpoint
from compiler.quantize import evidence, metrics
from compiler.quantize.evidence import TensorEvidence
from compiler.slots import Scheme, Slot
from edgewright import cli

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
    pipeline.build(made, "onnx", quantized, checkpoint, package, silent)
    pipeline.write_golden(made, "onnx", quantized, checkpoint, package, silent)
    found = evidence.report(package)
    ratios = [t.snr_db for t in found.tensors]
    assert len(ratios) == 13 and ratios == sorted(ratios)
    assert found.held_out is not None and 0 < found.held_out.mean_kl < 1 and found.held_out.tokens > 100
    assert evidence.report(tmp_path / "quantized").tensors == found.tensors

    for arguments in (["quantize-report", str(package)], ["quantize-report", "--json", str(package)]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert not ended.value.code
        printed = capsys.readouterr().out
        assert found.tensors[0].slot in printed
    assert json.loads(printed)["held_out"]["mean_kl"] == found.held_out.mean_kl


def test_no_evidence_and_damaged_evidence(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match=r"no quantization\.json"):
        evidence.report(tmp_path)
    (tmp_path / "quantization.json").write_text("{}")
    with pytest.raises(EdgewrightError, match=r"quantization\.json"):
        evidence.report(tmp_path)
