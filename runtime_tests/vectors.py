"""Entry vectors: does every entry of an artifact answer what the PyTorch reference answered?

Works for any model: the calls and the generator of their inputs are those of `artifacts/formats/vectors.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from artifacts import GateFailed, Progress
from artifacts.formats import interface, vectors
from runtime_tests.sessions import Session


def largest_errors(
    session: Session, expected: vectors.Vectors, components: tuple[interface.Component, ...], progress: Progress
) -> Mapping[tuple[str, str], float]:
    """Of every component and entry, the largest error of an output relative to its largest expected value.

    The session is loaded; its states are reset first. Raises GateFailed when an output has another shape or holds NaN.
    """
    session.reset()
    worst: dict[tuple[str, str], float] = {}
    total = len(expected.plan.calls)
    for at, (call, arrays) in enumerate(vectors.inputs(expected.plan, components)):
        progress("calling entries", at, total)
        answered = session.call(call.component, call.entry, **arrays)
        entry = next(c for c in components if c.name == call.component).entry(call.entry)
        for port in entry.outputs:
            values, shape = answered[port.name], port.sized(call.sizes)
            if values.shape != shape or not np.isfinite(values).all():
                what = f"shape {list(values.shape)}, not {list(shape)}" if values.shape != shape else "NaN or infinity"
                raise GateFailed(f"{call.component}.{call.entry}: {port.name} came back with {what}")
            wanted = expected.outputs[at][port.name].astype(np.float64)
            error = np.abs(vectors.sampled(values).astype(np.float64) - wanted).max(initial=0.0)
            relative = float(error / max(np.abs(wanted).max(initial=0.0), np.finfo(np.float32).tiny))
            key = (call.component, call.entry)
            worst[key] = max(worst.get(key, 0.0), relative)
    progress("calling entries", total, total)
    return worst
