"""Each operation of the executor alone, against coremltools' value inference or a plain definition."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from runtime_tests.mil import ops
from tests.runtime_tests.mil.cases import CASES, VALUE, Case


def to_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, tuple):
        return [to_torch(item) for item in value]
    return torch.as_tensor(value) if isinstance(value, (np.generic, bool, int, float)) else value


def inferred(case: Case) -> list[np.ndarray[Any, Any]]:
    """What coremltools' numpy makes of the operation on constants."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function

    with Function({}, opset_version=ct.target.iOS18):
        found = getattr(mb, case.operation)(**case.inputs)
    outputs = found if isinstance(found, (list, tuple)) else [found]
    assert all(var.val is not None for var in outputs), "coremltools inferred no value"
    return [np.asarray(var.val) for var in outputs]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_operation_gives_what_its_definition_says(case: Case) -> None:
    result = ops.table()[case.operation](**{k: to_torch(v) for k, v in case.inputs.items()})
    results = result if isinstance(result, list) else [result]
    if case.oracle == VALUE:
        expected = inferred(case)
    else:
        assert callable(case.oracle)
        expected = [np.asarray(case.oracle(**case.inputs))]
    assert len(results) == len(expected)
    for value, wanted in zip(results, expected, strict=True):
        assert list(value.shape) == list(wanted.shape)
        assert value.is_floating_point() == (wanted.dtype.kind == "f")
        if wanted.dtype == np.float16:
            value = value.half()
        np.testing.assert_allclose(value.numpy(), wanted, rtol=2e-5, atol=2e-6)


def test_a_mask_of_values_goes_with_queries_that_have_only_shapes() -> None:
    """As they are where memory is counted: numbers that say who sees whom are computed, floats are not."""
    query, mask = torch.empty((1, 2, 3, 4), device="meta"), torch.ones((3, 3), dtype=torch.bool)
    found = ops.table()["scaled_dot_product_attention"](query, query, query, mask)
    assert found.is_meta and found.shape == query.shape


def test_every_operation_is_tried() -> None:
    elsewhere = {name for name in ops.table() if name.startswith(("constexpr_", "list_", "make_list"))}
    assert {case.operation for case in CASES} | elsewhere == set(ops.table())


def test_value_inference_is_the_oracle_wherever_it_exists() -> None:
    from coremltools.converters.mil.mil.operation import Operation
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    oracles = defaultdict(set)
    for case in CASES:
        oracles[case.operation].add(case.oracle == VALUE)
    without = {name for name, used in oracles.items() if used == {False}}
    infers = {
        name
        for name, versions in SSAOpRegistry.core_ops.items()
        if list(versions.values())[-1].value_inference is not Operation.value_inference
    }
    assert without & infers == {"reverse_sequence"}  # its inference raises NotImplementedError
