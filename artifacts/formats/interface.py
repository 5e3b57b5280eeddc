"""How an artifact is called: its components with entries, ports and states, as its manifest states them.

A session serves exactly these calls, whatever its runtime calls them by itself; a driver knows nothing else of it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Name = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_]{0,63}$")]
Count = Annotated[int, Field(gt=0, le=1 << 40)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Port(_Strict):
    """A tensor by name; a dimension is a number or the name of one that the entry bounds.

    below: of whole numbers, what every value is less than; counts: values go on counting from the last call's, along
    the last dimension, as positions do.
    """

    name: Name
    dtype: Literal["float32", "int64", "int32", "uint8"]
    shape: tuple[Count | Name, ...]
    below: Count | None = None
    counts: bool = False

    def sized(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape with every named dimension replaced by its size."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)


class Dimension(_Strict):
    """Sizes that a call may have: `sizes` where only these are taken, else any from `low` to `high`."""

    low: Count
    high: Count
    sizes: tuple[Count, ...] = ()


class Entry(_Strict):
    """A function that an app calls."""

    name: Name
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dimensions: dict[Name, Dimension] = {}


class Component(_Strict):
    """One part of a model. States are kept by the session between calls, zeros at first."""

    name: Name
    entries: tuple[Entry, ...]
    states: tuple[Port, ...] = ()

    def entry(self, name: str) -> Entry:
        """Raises KeyError naming it."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(f"{self.name} has no entry {name!r}")


class Driver(_Strict):
    """How an app uses the components: the name of a driver, and what it must know."""

    name: Name
    constants: dict[str, JsonValue] = {}
