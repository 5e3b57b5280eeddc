"""A Core ML package where there is no Core ML: everything of it is emulated or modelled, and says by what."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_farm import load_profile
from runtime_tests.validate import Limits, Validation, validate
from tests.runtime_tests.conftest import MAX_TOKENS, compile_package

EXECUTOR = "Core ML reference executor"


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    package: Path = compile_package(tmp_path_factory.mktemp("coreml"), {}, "coreml")
    return validate(package, [(load_profile(name), Limits()) for name in ("android-4gb", "iphone-12")])


def test_nothing_that_the_executor_says_is_measured(validated: Validation) -> None:
    assert validated.passed and validated.checks
    assert {(check.obtained, check.stand_in) for check in validated.checks} == {("emulated", EXECUTOR)}
    found = {(figure.obtained, figure.stand_in) for figure in validated.figures}
    assert found == {("emulated", EXECUTOR), ("modelled", None), ("declared", None)}


def test_memory_is_modelled_for_the_whole_context(validated: Validation) -> None:
    check = validated.profiles[1].checks[0]
    assert (check.obtained, check.verdict, check.at) == ("modelled", "fits", f"{MAX_TOKENS} tokens")
    assert check.band is not None and check.band[0] < check.value < check.band[1]


def test_core_ml_is_not_for_android(validated: Validation) -> None:
    android, iphone = validated.profiles
    assert (android.verdict, iphone.verdict) == ("not for this platform", "passed")
    assert [check.verdict for check in android.checks] == ["not for this platform"]
