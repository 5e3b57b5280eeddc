"""Parity finds a wrong package: one nibble of one weight is enough. Gates let nothing doubtful pass."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from artifacts import Check, Figure, GateFailed, read_manifest, silent
from runtime_tests.drivers.text import Decoder, Logits
from runtime_tests.golden import Golden, read_golden
from runtime_tests.metrics import disagreement_cost, logsumexp
from runtime_tests.parity import Observed, Ran, decode_span, observe, observe_decode, parity
from runtime_tests.quality import QualityLimits, quality
from runtime_tests.sessions import make_session
from tests.runtime_tests.conftest import MAX_TOKENS, ORIGINAL, VOCAB

NO_LIMITS, REAL = QualityLimits(), Ran()


class Recorded:
    """A decoder that gives recorded logits: [N, L, V], one sequence after the other, and the first one for decoding."""

    def __init__(self, logits: Logits) -> None:
        self.all = logits
        self._next = iter(logits)
        self._position = 0

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
    """Of a text, as far as figures can tell."""
    return dataclasses.replace(read_golden(package / "golden.safetensors"), text="made up")


@pytest.fixture(scope="module")
def recorded(package: Path, golden: Golden) -> Logits:
    manifest = read_manifest(package)
    session = make_session(package, manifest)
    session.load(exact=True)
    decoder = Decoder(session, manifest.components[0], MAX_TOKENS)
    return np.stack([decoder.logits(tokens) for tokens in golden.tokens.astype(np.int64)])


def found_in(
    golden: Golden, logits: Logits, limits: QualityLimits = NO_LIMITS, ran: Ran = REAL
) -> tuple[dict[str, Figure], dict[str, Check]]:
    observed = observe(Recorded(logits), golden, silent, "comparing")
    decoded = observe_decode(Recorded(logits), golden, silent, "decoding")
    figures, checks = parity(golden, observed, observed, decoded, decoded, ran)
    more_figures, more_checks = quality(golden, observed, limits, ran.shipped)
    return (
        {figure.name: figure for figure in (*figures, *more_figures)},
        {check.name: check for check in (*checks, *more_checks)},
    )


def figures_of(golden: Golden, logits: Logits) -> dict[str, float]:
    return {name: float(figure.value) for name, figure in found_in(golden, logits)[0].items()}


def failed(golden: Golden, logits: Logits) -> set[str]:
    return {name for name, check in found_in(golden, logits)[1].items() if check.verdict == "failed"}


def test_the_real_runtime_matches_the_reference(golden: Golden, recorded: Logits) -> None:
    values = figures_of(golden, recorded)
    assert failed(golden, recorded) == set()
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
    assert values["decode_positions"] == 73 and values["decode_positions_past_original"] == 64


@pytest.mark.parametrize(("where", "found"), [((0, ORIGINAL + 10), True), ((0, 5), False), ((2, ORIGINAL + 10), False)])
def test_an_error_at_one_position_is_seen(
    golden: Golden, recorded: Logits, where: tuple[int, int], found: bool
) -> None:
    """In prefill wherever it is; in the decode test where that looks: the first sequence around the border."""
    wrong = recorded.copy()
    wrong[where][golden.reference.top_ids[where][0]] += 1e-3
    missed = failed(golden, wrong)
    assert missed == {"exact_max_abs_logit"} | ({"decode_exact_max_abs_logit"} if found else set())


def test_an_unlikely_token_is_watched_at_the_full_positions(golden: Golden, recorded: Logits) -> None:
    sequence, position = golden.full_index[1]
    unlikely = int(np.setdiff1d(np.arange(VOCAB), golden.reference.top_ids[sequence, position])[0])
    wrong = recorded.copy()
    wrong[sequence, position, unlikely] -= 1e-3
    assert failed(golden, wrong) == {"exact_max_abs_logit"}


def test_a_constant_added_to_all_logits_changes_no_probability_but_is_no_parity(
    golden: Golden, recorded: Logits
) -> None:
    higher = recorded + np.float32(0.01)
    assert figures_of(golden, higher)["exact_mean_kl"] < 1e-7
    assert failed(golden, higher) == {"exact_max_abs_logit", "decode_exact_max_abs_logit"}


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
    manifest = read_manifest(own_package)
    session = make_session(own_package, manifest)
    decoder = Decoder(session, manifest.components[0], MAX_TOKENS)
    for tensor in packed:
        place = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        flipped = bytearray(content)
        flipped[place["offset"] + int(generator.integers(place["length"]))] ^= 0x10  # the lowest bit of the high nibble
        data.write_bytes(flipped)
        session.load(exact=True)
        logits = np.stack([decoder.logits(tokens) for tokens in golden.tokens.astype(np.int64)])
        assert "exact_max_abs_logit" in failed(golden, logits), tensor.name


def test_quality_is_checked_by_the_limits_that_the_recipe_gives(golden: Golden, recorded: Logits) -> None:
    def verdicts(limits: QualityLimits) -> dict[str, str | None]:
        return {
            name: check.verdict
            for name, check in found_in(golden, recorded, limits)[1].items()
            if check.group == "quality"
        }

    assert verdicts(QualityLimits()) == {"perplexity_increase": None, "top1_agreement": None}
    names = ("perplexity_increase", "top1_agreement", "mean_kl")
    assert verdicts(QualityLimits(-0.9, 1.0, 1e-9)) == dict.fromkeys(names, "failed")
    assert verdicts(QualityLimits(1.0, 0.5, 1.0)) == dict.fromkeys(names, "passed")


def test_the_change_of_perplexity_carries_its_interval_and_tells_of_a_limit_inside_of_it(
    golden: Golden, recorded: Logits
) -> None:
    change = found_in(golden, recorded)[0]["perplexity_increase"]
    low, high = change.interval
    assert low < change.value < high and change.unit == "change"
    for limit, said in (
        (low - 0.001, False),
        ((low + change.value) / 2, True),
        ((change.value + high) / 2, True),
        (high + 0.001, False),
    ):
        check = found_in(golden, recorded, QualityLimits(limit))[1]["perplexity_increase"]
        assert check.verdict == ("passed" if change.value <= limit else "failed"), "the figure decides"
        assert ("95 % interval" in check.reason) is said
        assert check.interval == change.interval


def test_what_stood_in_is_in_every_figure_that_it_gave(golden: Golden, recorded: Logits) -> None:
    figures, checks = found_in(golden, recorded, ran=Ran(exact=None, shipped="an executor"))
    for item in (*figures.values(), *checks.values()):
        if item.obtained != "declared":
            exact = "exact" in item.name
            assert (item.obtained, item.stand_in) == (("measured", None) if exact else ("emulated", "an executor"))
    assert {figures[f"perplexity_{side}"].obtained for side in ("reference", "original")} == {"declared"}


def flipped(golden: Golden, recorded: Logits, where: np.ndarray) -> Logits:
    """The first two tokens of the reference exchanged at some positions."""
    wrong = recorded.copy()
    first, second = (golden.reference.top_ids[..., i] for i in (0, 1))
    for sequence, position in np.argwhere(where):
        pair = [first[sequence, position], second[sequence, position]]
        wrong[sequence, position, pair] = wrong[sequence, position, pair[::-1]]
    return wrong


def test_another_token_counts_only_where_the_reference_is_clear(golden: Golden, recorded: Logits) -> None:
    """Exchanged wherever the limit of the divergence leaves it open: no token is lost. Elsewhere each one is."""
    side, limit = golden.reference, golden.tolerances.shipped_mean_kl
    clear = disagreement_cost(side.top_logits, side.logsumexp) > limit
    assert 0.05 < clear.mean() < 0.95
    open_ = found_in(golden, flipped(golden, recorded, ~clear))
    assert open_[0]["shipped_top1"].value == pytest.approx(clear.mean(), abs=0.01)
    assert (open_[1]["shipped_clear_top1"].value, open_[1]["shipped_clear_top1"].verdict) == (1.0, "passed")
    assert "the limit of the KL leaves room for no other" in open_[1]["shipped_clear_top1"].reason
    half = clear & (np.arange(clear.size).reshape(clear.shape) % 2 == 0)
    lost = found_in(golden, flipped(golden, recorded, half))[1]["shipped_clear_top1"]
    assert lost.value == pytest.approx(1 - half.mean(), abs=1e-9) and lost.verdict == "failed"


def test_counted_tokens_cost_at_least_their_share_of_the_limit(golden: Golden, recorded: Logits) -> None:
    """So the check fails no package whose divergence is far below its limit, as the formula promises."""
    limit = golden.tolerances.shipped_mean_kl
    for scale in (0.01, 0.1, 1.0):
        noise = scale * np.random.default_rng(3).standard_normal(recorded.shape).astype(np.float32)
        figures, _ = found_in(golden, recorded + noise)
        assert figures["shipped_mean_kl"].value >= (1 - figures["shipped_clear_top1"].value) * limit


def test_a_nearly_flat_reference_is_no_reason_to_fail(golden: Golden) -> None:
    """Synthetic weights at full size: no token stands out, and the divergence says that nothing is wrong."""
    generator = np.random.default_rng(4)
    n, length = golden.tokens.shape
    logits = (0.02 * generator.standard_normal((n, length, VOCAB))).astype(np.float32)
    order = np.argsort(-logits, axis=-1)[..., :64]
    flat = dataclasses.replace(
        golden,
        reference=dataclasses.replace(
            golden.reference,
            logsumexp=logsumexp(logits).astype(np.float32),
            top_ids=order.astype(np.int32),
            top_logits=np.take_along_axis(logits, order, -1),
        ),
        full_logits=np.stack([logits[i, j] for i, j in golden.full_index]),
    )
    figures, checks = found_in(flat, logits + (0.005 * generator.standard_normal(logits.shape)).astype(np.float32))
    assert figures["shipped_top1"].value < 0.9 and figures["shipped_mean_kl"].value < 1e-4
    assert checks["shipped_clear_top1"].verdict == "passed" and figures["golden_positions_clear"].value == 0


def test_observing_a_batch_of_sequences_reports_progress(golden: Golden, recorded: Logits) -> None:
    seen: list[tuple[str, int, int]] = []
    observed = observe(Recorded(recorded), golden, lambda *event: seen.append(event), "comparing exact logits")
    assert isinstance(observed, Observed)
    assert seen[0] == ("comparing exact logits", 0, golden.sequences) and seen[-1][1:] == (golden.sequences,) * 2
