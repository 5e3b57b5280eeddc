"""Parity finds a wrong package: one nibble of one weight is enough. Gates let nothing doubtful pass."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from artifacts import GateFailed, read_manifest, silent
from runtime_tests.golden import Golden, read_golden
from runtime_tests.parity import Observed, decode_span, gate, observe, observe_decode, parity_figures, parity_gates
from runtime_tests.quality import QualityLimits, quality_figures, quality_gates
from runtime_tests.runners import Logits
from runtime_tests.runners.onnx import OnnxRunner
from tests.runtime_tests.conftest import ORIGINAL, VOCAB


class Recorded:
    """A runner that gives recorded logits: [N, L, V], one sequence after the other, and the first one for decoding."""

    def __init__(self, logits: Logits) -> None:
        self.all = logits
        self._next = iter(logits)
        self._position = 0

    def load(self, *, exact: bool = False, threads: int = 2) -> None: ...

    def logits(self, ids: object) -> Logits:
        return next(self._next)

    def prefill(self, ids: np.ndarray) -> Logits:
        self._position = len(ids)
        return self.all[0, self._position - 1]

    def decode(self, token: int) -> Logits:
        self._position += 1
        return self.all[0, self._position - 1]


@pytest.fixture(scope="module")
def golden(package: Path) -> Golden:
    return read_golden(package / "golden.safetensors")


@pytest.fixture(scope="module")
def recorded(package: Path, golden: Golden) -> Logits:
    runner = OnnxRunner(package, read_manifest(package).runtime)
    runner.load(exact=True)
    return np.stack([runner.logits(tokens) for tokens in golden.tokens.astype(np.int64)])


def figures_of(golden: Golden, logits: Logits) -> dict[str, float]:
    observed = observe(Recorded(logits), golden, silent, "comparing")
    decoded = observe_decode(Recorded(logits), golden, silent, "decoding")
    found = parity_figures(golden, observed, observed, decoded, decoded) + quality_figures(golden, observed)
    return {figure.name: float(figure.value) for figure in found}


def failed(values: dict[str, float], golden: Golden) -> set[str]:
    return {gate.name for gate in parity_gates(values, golden.tolerances) if not gate.passed}


def test_the_real_runtime_matches_the_reference(golden: Golden, recorded: Logits) -> None:
    values = figures_of(golden, recorded)
    assert failed(values, golden) == set()
    assert values["exact_max_abs_logit"] < 1e-4 and values["perplexity"] == pytest.approx(
        values["perplexity_reference"]
    )
    assert values["golden_positions_past_original"] == golden.sequences * (golden.length - ORIGINAL)


def test_figures_against_the_recorded_logits_worked_out_in_full(golden: Golden, recorded: Logits) -> None:
    values = figures_of(golden, recorded)
    logprob = recorded - np.log(np.exp(recorded.astype(np.float64)).sum(-1, keepdims=True))
    following = golden.tokens[:, 1:, None]
    surprise = -np.take_along_axis(logprob[:, :-1], following, -1)
    assert values["perplexity"] == pytest.approx(math.exp(surprise.mean()), rel=1e-6)
    original = np.exp(-golden.original.target_logprob.mean(dtype=np.float64))
    assert values["perplexity_increase"] == pytest.approx(math.exp(surprise.mean()) / original - 1, rel=1e-6)
    assert values["top1_agreement"] == (recorded.argmax(-1) == golden.original.top_ids[..., 0]).mean()


def test_the_decode_test_crosses_the_original_context(golden: Golden, recorded: Logits) -> None:
    assert decode_span(golden) == (ORIGINAL - 8, ORIGINAL + 64)
    values = figures_of(golden, recorded)
    assert values["decode_positions"] == 72 and values["decode_positions_past_original"] == 64


@pytest.mark.parametrize(("where", "found"), [((0, ORIGINAL + 10), True), ((0, 5), False), ((2, ORIGINAL + 10), False)])
def test_an_error_at_one_position_is_seen(
    golden: Golden, recorded: Logits, where: tuple[int, int], found: bool
) -> None:
    """In prefill wherever it is; in the decode test where that looks: the first sequence around the border."""
    wrong = recorded.copy()
    wrong[where][golden.reference.top_ids[where][0]] += 1e-3
    missed = failed(figures_of(golden, wrong), golden)
    assert missed == {"exact_max_abs_logit"} | ({"decode_exact_max_abs_logit"} if found else set())


def test_an_unlikely_token_is_watched_at_the_full_positions(golden: Golden, recorded: Logits) -> None:
    sequence, position = golden.full_index[1]
    unlikely = int(np.setdiff1d(np.arange(VOCAB), golden.reference.top_ids[sequence, position])[0])
    wrong = recorded.copy()
    wrong[sequence, position, unlikely] -= 1e-3
    assert failed(figures_of(golden, wrong), golden) == {"exact_max_abs_logit"}


def test_a_constant_added_to_all_logits_changes_no_probability_but_is_no_parity(
    golden: Golden, recorded: Logits
) -> None:
    values = figures_of(golden, recorded + np.float32(0.01))
    assert values["exact_mean_kl"] < 1e-7
    assert failed(values, golden) == {"exact_max_abs_logit", "decode_exact_max_abs_logit"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_reported_with_its_position(golden: Golden, recorded: Logits, bad: float) -> None:
    wrong = recorded.copy()
    wrong[0, 70, 3] = bad
    with pytest.raises(GateFailed, match="NaN or infinity, first at position 70"):
        figures_of(golden, wrong)


def test_logits_of_another_shape_are_reported(golden: Golden, recorded: Logits) -> None:
    with pytest.raises(GateFailed, match=r"shape \(256, 500\), the golden vectors need \(256, 512\)"):
        figures_of(golden, recorded[..., :500])


def test_one_flipped_nibble_of_any_weight_fails_parity(own_package: Path, golden: Golden) -> None:
    graph = onnx.load(str(own_package / "model.onnx"), load_external_data=False).graph
    packed = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.UINT8]
    assert len(packed) == 10  # the embedding in both layouts, and 4 fused weights in each layer
    data = own_package / "model.onnx.data"
    content, generator = data.read_bytes(), np.random.default_rng(7)
    runner = OnnxRunner(own_package, read_manifest(own_package).runtime)
    for tensor in packed:
        place = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        flipped = bytearray(content)
        flipped[place["offset"] + int(generator.integers(place["length"]))] ^= 0x10  # the lowest bit of the high nibble
        data.write_bytes(flipped)
        runner.load(exact=True)
        logits = np.stack([runner.logits(tokens) for tokens in golden.tokens.astype(np.int64)])
        assert "exact_max_abs_logit" in failed(figures_of(golden, logits), golden), tensor.name


def test_nothing_doubtful_passes_a_gate() -> None:
    assert gate("kl", 0.1, 0.1, "at most").passed and not gate("kl", 0.1001, 0.1, "at most").passed
    assert gate("top1", 0.95, 0.95, "at least").passed and not gate("top1", 0.94, 0.95, "at least").passed
    for value in (math.nan, None):
        assert not gate("kl", value, 0.1, "at most").passed and not gate("top1", value, 0.1, "at least").passed


def test_quality_gates_are_those_that_the_recipe_asks_for(golden: Golden, recorded: Logits) -> None:
    values = figures_of(golden, recorded)
    assert quality_gates(values, QualityLimits()) == []
    strict = quality_gates(values, QualityLimits(max_perplexity_increase=0.0, min_top1_agreement=1.0, max_mean_kl=1e-9))
    assert [(item.name, item.passed) for item in strict] == [
        ("perplexity_increase", False),
        ("top1_agreement", False),
        ("mean_kl", False),
    ]
    assert all(item.passed for item in quality_gates(values, QualityLimits(1.0, 0.5, 1.0)))


def test_observing_a_batch_of_sequences_reports_progress(golden: Golden, recorded: Logits) -> None:
    seen: list[tuple[str, int, int]] = []
    observed = observe(Recorded(recorded), golden, lambda *event: seen.append(event), "comparing exact logits")
    assert isinstance(observed, Observed)
    assert seen[0] == ("comparing exact logits", 0, golden.sequences) and seen[-1][1:] == (golden.sequences,) * 2
