"""What a stage of a run is: the order that a process gets, the memory it declares, and how it ended.

What must not live here: in which order stages come (`__init__.py`), and where they run (`local.py`, `cluster.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from compiler.plan import TargetPlan
from edgewright.report import Report, Reused, TargetReport

Kind = Literal["quantize", "package", "validation", "report"]

# Of a process before its first weight: an interpreter, PyTorch and a target's tools.
_PROCESS_BYTES = 1_500_000_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arguments(_Strict):
    """Those of `api.run`."""

    out: str
    targets: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    checkpoint: str | None = None
    validate_: bool = True
    fresh: bool = False


class Order(_Strict):
    """What one process does. version: of Edgewright; digest: of the recipe as it was read; content: the recipe itself
    where it is not what its file says; since: when the run began, in seconds since the epoch; took: seconds of it so
    far. What follows is for the report: what earlier stages found.
    """

    version: str
    kind: Kind
    recipe: str
    digest: str
    arguments: Arguments
    content: dict[str, Any] | None = None
    target: str = ""
    since: float = 0
    took: float = 0
    reused_weights: bool = False
    reused: dict[str, tuple[Reused, ...]] = {}
    judged: dict[str, TargetReport] = {}


class Done(_Strict):
    """What a stage that came to its end found."""

    reused_weights: bool = False
    reused: tuple[Reused, ...] = ()
    judged: TargetReport | None = None
    report: Report | None = None


@dataclass(frozen=True)
class Stage:
    """An order, what to call it, and what it may take: memory in bytes, and the machine for itself if `exclusive`."""

    name: str
    order: Order
    memory_bytes: int

    @property
    def exclusive(self) -> bool:
        """A validation measures, and finds out when something presses on its memory: it runs alone."""
        return self.order.kind == "validation"

    @property
    def builds(self) -> bool:
        """Whether its results are the same with any number of threads, which may then be limited."""
        return self.order.kind in ("quantize", "package")


@dataclass(frozen=True)
class Ended:
    """How a stage ended: what it found, or a message and an exit code."""

    done: Done | None
    error: str = ""
    exit_code: int = 0


class Executor(Protocol):
    """Where stages run: as many at once as cores and declared memory hold."""

    def submit(self, stage: Stage) -> None:
        """Have a stage run when there is room."""
        ...

    def wait(self) -> tuple[Stage, Ended]:
        """Until one of those that were submitted has ended."""
        ...

    def close(self) -> None:
        """End all that still run."""
        ...


def memory(kind: Kind, plans: list[TargetPlan]) -> int:
    """Bytes that a stage may hold, by the plans of the targets that it works on; files that it maps are counted whole.

    Weights are streamed as they are quantized and packaged, so that what is written is most of what is held.
    """
    needs = {
        "quantize": [item.weight_bytes for item in plans],
        "package": [item.file_bytes for item in plans],
        "validation": [item.weight_bytes + item.held_bytes for item in plans],
        "report": [0],
    }
    return _PROCESS_BYTES + max(needs[kind], default=0)
