"""The formulas, against the same quantities worked out another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime_tests.metrics import agreement, disagreement_cost, logsumexp, mean_interval, perplexity, top_kl

F = NDArray[np.float32]


def top(logits: F, k: int) -> NDArray[np.int64]:
    return np.argsort(-logits, axis=-1, kind="stable")[..., :k]


def top_kl_of(p: F, q: F, k: int) -> float:
    ids = top(p, k)
    return float(top_kl(p[ids], logsumexp(p), q[ids], logsumexp(q)))


def full_kl(p: F, q: F) -> float:
    """From probabilities, by the definition."""
    total = 0.0
    p_weights, q_weights = [math.exp(x) for x in p], [math.exp(x) for x in q]
    for a, b in zip(p_weights, q_weights, strict=True):
        total += a / sum(p_weights) * math.log((a / sum(p_weights)) / (b / sum(q_weights)))
    return total


def test_logsumexp_does_not_overflow() -> None:
    assert logsumexp(np.array([1000.0, 1000.0], np.float32)) == pytest.approx(1000 + math.log(2))
    assert logsumexp(np.array([[0.0, 0.0], [math.log(3), 0.0]])) == pytest.approx([math.log(2), math.log(4)])


def test_kl_by_hand() -> None:
    # p = (1/2, 1/4, 1/8, 1/8), q uniform. With the two largest and a bin: 1/2 ln 2 + 1/4 ln 1 + 1/4 ln(1/2)
    p = np.log(np.array([4, 2, 1, 1], np.float32))
    q = np.zeros(4, np.float32)
    assert top_kl_of(p, q, 2) == pytest.approx(0.25 * math.log(2), abs=1e-6)
    assert top_kl_of(p, q, 4) == pytest.approx(full_kl(p, q), abs=1e-6)
    assert full_kl(p, q) == pytest.approx(
        0.25 * math.log(2), abs=1e-6
    )  # the last two are equal in both: nothing is lost


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0.0, 6.0))
def test_the_binned_kl_is_a_lower_bound_of_the_full_one(seed: int, k: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    p = (scale * generator.standard_normal(12)).astype(np.float32)
    q = (p + generator.standard_normal(12)).astype(np.float32)
    binned, full = top_kl_of(p, q, k), full_kl(p, q)
    assert -1e-6 <= binned <= full + 1e-5
    assert top_kl_of(p, q, 12) == pytest.approx(full, abs=1e-5, rel=1e-4)
    assert top_kl_of(p, p, k) == pytest.approx(0.0, abs=1e-6)


def test_kl_grows_as_the_bin_gets_finer() -> None:
    generator = np.random.default_rng(1)
    p, q = generator.standard_normal((2, 1000)).astype(np.float32) * 3
    values = [top_kl_of(p, q, k) for k in (1, 8, 64, 512, 1000)]
    assert values == sorted(values) and values[-1] == pytest.approx(full_kl(p, q), rel=1e-5)


def test_kl_works_on_stacks_of_positions() -> None:
    generator = np.random.default_rng(2)
    p, q = generator.standard_normal((2, 3, 5, 100)).astype(np.float32)
    ids = top(p, 64)
    pick = [np.take_along_axis(x, ids, -1) for x in (p, q)]
    stacked = top_kl(pick[0], logsumexp(p), pick[1], logsumexp(q))
    assert stacked.shape == (3, 5)
    assert stacked[2, 4] == pytest.approx(top_kl_of(p[2, 4], q[2, 4], 64))


def test_a_distribution_that_misses_everything_gives_a_finite_large_kl() -> None:
    p, q = np.zeros(100, np.float32), np.zeros(100, np.float32)
    p[:64], q[64:] = 80.0, 80.0
    assert 50 < top_kl_of(p, q, 64) < 200


def test_perplexity_of_a_uniform_guess_is_the_vocabulary() -> None:
    assert perplexity(np.full((2, 7), -math.log(4096), np.float32)) == pytest.approx(4096, rel=1e-4)


def test_agreement_is_a_share() -> None:
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.floats(0.01, 8.0), st.floats(0.01, 8.0))
def test_no_disagreement_costs_less_than_said(seed: int, vocabulary: int, scale: float, noise: float) -> None:
    """Whatever a runtime says, if its first token is another one, its divergence is at least that."""
    generator = np.random.default_rng(seed)
    p = -np.sort(-(scale * generator.standard_normal(vocabulary)))
    q = p + noise * generator.standard_normal(vocabulary)
    at_least = float(disagreement_cost(p[:2], logsumexp(p)))
    if q.argmax() != 0:
        assert float(top_kl(p, logsumexp(p), q, logsumexp(q))) >= at_least - 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.floats(0.01, 8.0))
def test_the_nearest_disagreement_costs_just_that(seed: int, vocabulary: int, scale: float) -> None:
    """Its first two tokens made equal: by the formula, and by the divergence of that very distribution."""
    p = -np.sort(-(scale * np.random.default_rng(seed).standard_normal(vocabulary)))
    q = p.copy()
    q[:2] = np.log(np.exp(p[:2]).mean())
    found = float(disagreement_cost(p[:2], logsumexp(p)))
    assert found == pytest.approx(full_kl(p.astype(np.float32), q.astype(np.float32)), abs=1e-5, rel=1e-3)


def test_the_margin_that_a_limit_of_the_divergence_leaves_open() -> None:
    """About √(8 K / (p₁ + p₂)) logits, as the formula says for small limits."""
    for limit, mass in ((2e-3, 1.0), (2e-4, 0.5), (2e-3, 0.1)):
        margin = math.sqrt(8 * limit / mass)
        for factor, over in ((0.98, False), (1.02, True)):
            pair = np.array([margin * factor, 0.0])
            total = logsumexp(pair) - math.log(mass)
            assert bool(disagreement_cost(pair, total) > limit) is over
    assert disagreement_cost(np.array([800.0, 0.0]), np.float64(800.0)) == pytest.approx(math.log(2))
    assert disagreement_cost(np.zeros(2), logsumexp(np.zeros(2))) == 0.0


@pytest.mark.parametrize(("memory", "shape"), [(0.0, (4, 1023)), (0.9, (4, 1023)), (0.5, (1, 400)), (0.0, (1, 100))])
def test_the_interval_holds_the_true_mean_95_times_of_100(memory: float, shape: tuple[int, int]) -> None:
    """Also where neighbours are alike: an error that stays with a passage is no evidence from every token of it."""
    generator, inside, tries = np.random.default_rng(5), 0, 600
    for _ in range(tries):
        values = generator.standard_normal(shape)
        for at in range(1, shape[1]):
            values[:, at] += memory * values[:, at - 1]
        interval = mean_interval(values)
        assert interval is not None and interval[0] < values.mean() < interval[1]
        inside += interval[0] < 0 < interval[1]
    assert 0.90 < inside / tries < 0.98


def test_the_interval_is_the_same_every_time_and_shrinks_with_the_text() -> None:
    values = np.random.default_rng(6).standard_normal((8, 512))
    assert mean_interval(values) == mean_interval(values.copy())
    long, short = mean_interval(values), mean_interval(values[:2])
    assert long is not None and short is not None and long[1] - long[0] < 0.7 * (short[1] - short[0])
    assert mean_interval(np.zeros((1, 1))) is None
    assert mean_interval(np.full((2, 64), 0.25)) == pytest.approx((0.25, 0.25))
