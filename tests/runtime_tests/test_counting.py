"""Calls between marks: what the child marks, and what the marks say. The emulator's own tests are of the ARM64 tier."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import EdgewrightError
from runtime_tests.counting import Count, counted, counts
from runtime_tests.jobs import Job
from runtime_tests.process import run_child

PROMPT, STEP = {"batch": 1, "tokens": 64}, {"batch": 1, "tokens": 1}


def test_a_decoder_is_called_with_a_prompt_and_a_token_after_it(package: Path) -> None:
    ended = run_child(counted(Job(kind="memory", artifact=package)), lambda event: None)
    assert ended.exit_code == 0, ended.stderr_tail
    assert ended.result == [["decoder", "prefill", PROMPT], ["decoder", "decode", STEP]]


def test_calls_at_the_same_sizes_are_one_figure() -> None:
    called = [("d", "prefill", PROMPT), ("d", "decode", STEP), ("d", "prefill", STEP), ("d", "decode", STEP)]
    found = counts(called, [100, 1100, 1150, 1160, 2000, 2500, 3000, 3030])
    assert found == [
        Count("d", "prefill", PROMPT, 1, 1000),
        Count("d", "decode", STEP, 2, 20),
        Count("d", "prefill", STEP, 1, 500),
    ]


@pytest.mark.parametrize("marks", [[], [1, 2, 3], [1, 2, 3, 4, 5], [5, 2, 3, 4]])
def test_marks_of_other_calls_are_refused(marks: list[int]) -> None:
    with pytest.raises(EdgewrightError, match="2 calls left"):
        counts([("d", "prefill", PROMPT), ("d", "decode", STEP)], marks)
