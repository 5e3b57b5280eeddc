"""Entry vectors: does every entry of an artifact answer what the PyTorch reference answered?

Works for any model: the calls and the generator of their inputs are those of `artifacts/formats/vectors.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import Check, GateFailed, Manifest, Progress, checked, ran_here
from artifacts.formats import interface, vectors
from artifacts.manifest import payload_file
from runtime_tests.sessions import Arrays, Session

PARITY = "parity"


def judge(session: Session, artifact: Path, manifest: Manifest, threads: int, progress: Progress) -> list[Check]:
    """Every entry that has vectors, in the most precise mode and as shipped; nothing where a package has no such file.

    Loads the session. Raises EdgewrightError for a file that does not belong to the manifest's components.
    """
    if all(entry.path != vectors.VECTORS for entry in manifest.files):
        return []
    expected = vectors.read(payload_file(artifact, vectors.VECTORS), manifest.components)
    plan = expected.plan
    found: list[Check] = []
    for exact, words in ((True, "exact"), (False, "as shipped")):
        session.load(exact=exact, threads=threads)
        errors = measured(session, expected, manifest.components, progress, exact=exact)
        found += _checks(errors, plan, exact, words, session.stand_in)
    found += _formed(session, expected, manifest.components)
    return found


def _formed(
    session: Session, expected: vectors.Vectors, components: tuple[interface.Component, ...]
) -> Iterator[Check]:
    """That the second form of a graph, where there is one, answers what the first does."""
    forms: Callable[..., tuple[Arrays, Arrays] | None] | None = getattr(session, "forms", None)
    if forms is None:
        return
    differing: dict[tuple[str, str], int] = {}
    answers: dict[str, NDArray[Any]] = {}
    for call, arrays in vectors.inputs(expected.plan, components, answers):
        found = forms(call.component, call.entry, **arrays)
        if found is None:
            continue
        first, second = found
        answers |= first
        key = call.component, call.entry
        differing[key] = differing.get(key, 0) + sum(int((first[n] != second[n]).sum()) for n in first)
    for (component, entry), count in differing.items():
        figure = ran_here(f"{component}_{entry}_ort_differences", count, "values", session.stand_in)
        yield checked(figure, PARITY, f"{component}.{entry}, ORT format: other values than .onnx", 0, "at most")


def repeated(session: Session) -> list[Check]:
    """That packed weights, where a session has run them, answer what the plain graphs do. Loads those."""
    again: Callable[[], int | None] = getattr(session, "repeated", lambda: None)
    if (differing := again()) is None:
        return []
    figure = ran_here("prepacked_differences", differing, "calls", session.stand_in)
    return [checked(figure, PARITY, "packed weights: calls with other bits than plain", 0, "at most")]


def _checks(
    errors: Mapping[tuple[str, str], Error], plan: vectors.Calls, exact: bool, words: str, stand_in: str | None
) -> Iterator[Check]:
    for (component, entry), error in errors.items():
        rounded = plan.rounded if plan.rounded is not None and component in plan.rounded.values else None
        kind, label, value = ("max", "max |Δ|", error.largest) if exact else ("rms", "RMS Δ", error.rms)
        limit = plan.exact if exact else plan.shipped if rounded is None else rounded.shipped[component]
        name, words_ = f"{component}_{entry}", f"{component}.{entry}, {words}"
        figure = ran_here(f"{name}_{words.split()[-1]}_{kind}_relative_error", value, "relative", stand_in)
        yield checked(figure, PARITY, f"{words_}: {label}", limit, "at most")
        if rounded is not None and not exact:
            figure = ran_here(f"{name}_steps_max_relative_error", error.steps, "relative", stand_in)
            yield checked(figure, PARITY, f"{words_}, last step: max |Δ|", rounded.steps[component], "at most")
            worst = max(error.codes, key=lambda value: error.codes[value])
            at = f"{worst}, the worst of {len(error.codes)} values"
            figure = ran_here(f"{name}_codes_rms_error", error.codes[worst], "codes", stand_in, at=at)
            yield checked(figure, PARITY, f"{words_}, each step: RMS Δ of codes", rounded.codes, "at most")


@dataclass
class Error:
    """How far an entry's outputs are off, over all of its calls. largest: error of an output relative to its largest
    expected value. Sums of squares: of errors, and of expected values. codes: of each step to a rounded activation by
    name, the root of the mean square by which its codes are off, in the worst call. steps: `largest` of those to
    outputs."""

    largest: float = 0.0
    squares: float = 0.0
    expected: float = 0.0
    codes: dict[str, float] = field(default_factory=dict)
    steps: float = 0.0

    @property
    def rms(self) -> float:
        """Root of the mean square of the errors, relative to that of the expected values."""
        return math.sqrt(self.squares / max(self.expected, float(np.finfo(np.float32).tiny)))


def measured(
    session: Session,
    expected: vectors.Vectors,
    components: tuple[interface.Component, ...],
    progress: Progress,
    *,
    exact: bool = True,
) -> Mapping[tuple[str, str], Error]:
    """The errors of every component and entry. exact: how the session was loaded; as shipped, activations are rounded.

    The session is loaded; its states are reset first. Raises GateFailed when an output has another shape or holds NaN.
    """
    session.reset()
    found: dict[tuple[str, str], Error] = {}
    answers: dict[str, NDArray[Any]] = {}
    total = len(expected.plan.calls)
    for at, (call, arrays) in enumerate(vectors.inputs(expected.plan, components, answers)):
        progress("calling entries", at, total)
        answered = session.call(call.component, call.entry, **arrays)
        answers |= answered
        entry = next(c for c in components if c.name == call.component).entry(call.entry)
        error = found.setdefault((call.component, call.entry), Error())
        steps = expected.steps[at] if expected.steps and not exact and expected.steps[at].codes else None
        if steps is not None:
            _step(session, expected.plan, at, arrays, steps, error)
        for port in entry.outputs:
            values, shape = answered[port.name], port.sized(call.sizes)
            if values.shape != shape or not np.isfinite(values).all():
                what = f"shape {list(values.shape)}, not {list(shape)}" if values.shape != shape else "NaN or infinity"
                raise GateFailed(f"{call.component}.{call.entry}: {port.name} came back with {what}")
            wanted = (expected.outputs[at] if steps is None else steps.shipped)[port.name].astype(np.float64)
            off = vectors.sampled(values).astype(np.float64) - wanted
            error.largest = max(error.largest, _relative(off, wanted))
            error.squares += float((off**2).sum())
            error.expected += float((wanted**2).sum())
    progress("calling entries", total, total)
    return found


def _relative(off: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    return float(np.abs(off).max(initial=0.0) / max(np.abs(wanted).max(initial=0.0), np.finfo(np.float32).tiny))


def _step(
    session: Session,
    plan: vectors.Calls,
    at: int,
    arrays: Mapping[str, NDArray[Any]],
    expected: vectors.Steps,
    error: Error,
) -> None:
    """Add what each step of a call alone is off. Raises GateFailed where the session has no such steps."""
    call, ask = plan.calls[at], getattr(session, "steps", None)
    if ask is None:
        raise GateFailed(
            f"{call.component}.{call.entry}: its vectors have 8-bit activations, which its runtime has not"
        )
    outputs, codes = ask(call.component, call.entry, vectors.given_codes(plan, at, len(arrays)), **arrays)
    for name, values in expected.codes.items():
        off = vectors.sampled(codes[name], vectors.CODES).astype(np.float64) - values
        error.codes[name] = max(error.codes.get(name, 0.0), math.sqrt(float((off**2).mean())))
    for name, values in expected.outputs.items():
        wanted = values.astype(np.float64)
        error.steps = max(error.steps, _relative(vectors.sampled(outputs[name]).astype(np.float64) - wanted, wanted))
