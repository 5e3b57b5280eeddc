"""Components one after another, each entry's outputs offered to what comes after it under their names.

For models that need no more than that: no tokens, no samples of sound. Inputs that nothing gave come from the
generator of `artifacts/formats/vectors.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.formats import vectors
from artifacts.formats.interface import Component
from runtime_tests.sessions import Session


def step(session: Session, components: tuple[Component, ...], turn: int) -> dict[str, NDArray[Any]]:
    """Call every entry once at its largest dimensions; all values by port name, the last call's winning."""
    values: dict[str, NDArray[Any]] = {}
    for component in components:
        for entry in component.entries:
            sizes = {name: bound.high for name, bound in entry.dimensions.items()}
            call = vectors.Call(component=component.name, entry=entry.name, sizes=sizes)
            plan = vectors.Calls(seed=turn, calls=(call,), tolerance=1.0)
            _, generated = next(iter(vectors.inputs(plan, components)))
            given = {port.name: values.get(port.name, generated[port.name]) for port in entry.inputs}
            values |= session.call(component.name, entry.name, **given)
    return {name: np.asarray(value) for name, value in values.items()}
