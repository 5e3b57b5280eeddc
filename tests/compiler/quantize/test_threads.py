"""Calibrated stages use the same number of threads everywhere."""

from __future__ import annotations

import torch

from compiler.quantize import runner


def test_the_number_of_threads_is_fixed_while_calibrating_and_given_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with runner.fixed_threads():
            assert torch.get_num_threads() == runner._THREADS == 2
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
