"""The driver that calls entries one after another: what it hands from one to the next."""

from __future__ import annotations

from typing import Any

import numpy as np

from artifacts.formats.interface import Component, Dimension, Entry, Port
from runtime_tests.drivers import plain


def test_an_output_is_offered_only_where_its_shape_fits() -> None:
    port = Port(name="x", dtype="float32", shape=("rows", 2))
    entries = tuple(
        Entry(name=name, inputs=(port,), outputs=(port,), dimensions={"rows": Dimension(low=1, high=rows)})
        for name, rows in (("first", 3), ("second", 3), ("last", 1))
    )
    given: dict[str, np.ndarray[Any, Any]] = {}

    class Session:
        def call(self, component: str, entry: str, **arrays: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
            given[entry] = arrays["x"]
            return {"x": np.full_like(arrays["x"], 7)}

    session: Any = Session()
    plain.step(session, (Component(name="part", entries=entries, states=()),), 0)
    assert {name: value.shape for name, value in given.items()} == {"first": (3, 2), "second": (3, 2), "last": (1, 2)}
    assert (given["second"] == 7).all() and not (given["last"] == 7).any()
