"""What the TVM target refuses before any weight is read, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.models.base import read_model
from compiler.slots import Scheme
from compiler.targets.base import Job
from compiler.targets.tvm.options import TvmOptions
from compiler.targets.tvm.target import TvmTarget
from tests.compiler.conftest import MINISTRAL3

INT4 = Scheme(4, 32)


def refusals(scheme: Scheme = INT4, options: dict[str, Any] | None = None, **geometry: int) -> list[str]:
    model = read_model({**MINISTRAL3, **geometry}, None, 64)
    schemes = {s.name: scheme for s in model.slots if not s.is_vector}
    return TvmTarget().refusals(Job("small", model, schemes, TvmOptions(**(options or {}))))


@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(8, 16), Scheme(8, 512), Scheme(4, 0), Scheme(16, 0)])
@pytest.mark.parametrize("geometry", [{}, {"vocab_size": 161}, {"hidden_size": 72, "head_dim": 18}])
def test_what_the_kernels_take_is_admitted(scheme: Scheme, geometry: dict[str, int]) -> None:
    assert refusals(scheme, **geometry) == []


@pytest.mark.parametrize(
    ("triple", "words"),
    [
        ("riscv64-linux-gnu", "triple 'riscv64-linux-gnu' is not known"),
        ("aarch64-linux-android21", "API levels from 24 on"),
        ("arm64-apple-ios15.0", "iOS 16.0 and later"),
        ("aarch64-linux-android24\n", "is not known"),
    ],
)
def test_unknown_triples(triple: str, words: str) -> None:
    (found,) = refusals(options={"triples": (triple,)})
    assert words in found


@pytest.mark.parametrize("features", [("sve",), ("dotprod", "avx2"), ()])
def test_unknown_cpu_features(features: tuple[str, ...]) -> None:
    found = refusals(options={"features": features})
    assert found and all("neon, dotprod, i8mm are" in sentence for sentence in found)


def test_zero_points() -> None:
    assert (
        "model.embed_tokens has zero points; the kernels take symmetric codes only" in refusals(Scheme(4, 32, False))[0]
    )
