"""Figures, and checks of figures against limits: each says how it was obtained, from where it is made to the report.

What lives here: their shape, and the rule by which a number meets a limit. What must not: any number, any limit, and
how either is shown to people beyond the words of a label.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

Obtained = Literal["measured", "emulated", "modelled", "declared"]
Direction = Literal["at most", "at least"]
Verdict = Literal[
    "passed", "failed", "fits", "tight", "throttled", "does not fit", "not assessed", "not for this platform"
]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Frozen):
    """A number (or a word) that says how it was obtained.

    measured: the real runtime, on this machine. emulated: with something in place of the phone or its runtime, and
    `stand_in` names it. modelled: calculated, with the band (low, high) in the number's own unit. declared: stated by
    a file. `at` says under which load (`2,048 tokens`). `interval` is the 95 % confidence interval (low, high) of a
    number that a sample of text gave.
    """

    name: str
    value: bool | int | float | str
    unit: str
    obtained: Obtained
    stand_in: str | None = None
    at: str | None = None
    band: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _explained(self) -> Self:
        _explain(self.name, self.obtained, self.stand_in, self.band)
        return self


class Check(_Frozen):
    """One number against one limit, both in `unit`; how it was obtained is said as a `Figure` says it.

    `group` is parity, quality or a phone; `label` is for people. A number that could not be obtained is None, and then
    nothing obtained it. Without a limit there is no verdict: the number is only reported. `reason` says what the
    verdict rests on, where the number alone does not.
    """

    group: str
    name: str
    label: str
    value: float | None
    limit: float | None
    direction: Direction
    unit: str
    obtained: Obtained | None
    stand_in: str | None = None
    at: str | None = None
    band: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    verdict: Verdict | None
    reason: str = ""

    @model_validator(mode="after")
    def _explained(self) -> Self:
        _explain(self.name, self.obtained, self.stand_in, self.band)
        if (self.value is None) != (self.obtained is None):
            raise ValueError(f"{self.name}: a value, and only that, says how it was obtained")
        return self


def _explain(name: str, obtained: Obtained | None, stand_in: str | None, band: tuple[float, float] | None) -> None:
    if (obtained == "modelled") != (band is not None):
        raise ValueError(f"{name}: a modelled figure, and only that, carries its band")
    if (obtained == "emulated") != (stand_in is not None):
        raise ValueError(f"{name}: an emulated figure, and only that, names its stand-in")


def ran_here(
    name: str,
    value: bool | int | float,
    unit: str,
    stand_in: str | None = None,
    *,
    at: str | None = None,
    interval: tuple[float, float] | None = None,
) -> Figure:
    """A figure of what ran on this machine: measured, or emulated where something stood in."""
    obtained: Obtained = "measured" if stand_in is None else "emulated"
    return Figure(name=name, value=value, unit=unit, obtained=obtained, stand_in=stand_in, at=at, interval=interval)


def checked(
    figure: Figure, group: str, label: str, limit: float | None, direction: Direction, *, reason: str = ""
) -> Check:
    """A figure against a limit: passed or failed; reported only where the limit is None.

    Where the limit lies inside of the figure's interval the reason says so: the figure decides all the same.
    """
    value = float(figure.value)
    verdict: Verdict | None = None
    if limit is not None:
        verdict = "passed" if (value <= limit if direction == "at most" else value >= limit) else "failed"
        if figure.interval is not None and figure.interval[0] < limit < figure.interval[1]:
            reason = (
                f"{reason} The limit of {label} lies inside of the 95 % interval: another sample could turn this "
                "verdict.".strip()
            )
    known = figure.model_dump(exclude={"value"})
    return Check(
        group=group, label=label, value=value, limit=limit, direction=direction, verdict=verdict, reason=reason, **known
    )


def passes(
    checks: Iterable[Check], *, strict: bool = False, allow_unassessed: bool = False, allow_throttled: bool = False
) -> bool:
    """Whether nothing failed: tight passes unless `strict`, not assessed and throttled only if they are allowed.

    What is only reported, or is not for a phone's platform, fails nothing and proves nothing.
    """
    accepted = {None, "passed", "fits", "not for this platform"}
    accepted |= (set() if strict else {"tight"}) | ({"not assessed"} if allow_unassessed else set())
    accepted |= {"throttled"} if allow_throttled else set()
    return all(check.verdict in accepted for check in checks)
