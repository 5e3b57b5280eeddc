"""The page about the executor says what is tested."""

from __future__ import annotations

from tests.runtime_tests.mil.readme import README, with_table


def test_the_table_of_operations_is_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text, "run python -m tests.runtime_tests.mil.readme"
