"""Weights that a Core ML program refers to without having them: constants of zeros that take no memory.

Converting with real weights takes about five times their size. A placeholder is a constant over one broadcast zero
whose value coremltools never reads again: passes may not infer from it, may not merge it with another of the same
shape, and instead of writing it the exporter notes an offset beyond any file, which says which weight belongs there.
`bind.py` replaces these offsets. What a placeholder stands for is a `Part`: which slots, and what of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

# no weight file reaches here: offsets from here on are placeholders
FIRST_MARKER = 1 << 56
WEIGHT_FILE = "@model_path/weights/weight.bin"

Kind = Literal["int4", "int8", "scale", "zero4", "zero8", "float"]


@dataclass(frozen=True)
class Part:
    """What one weight-file entry holds: codes, scales or zero points of slots stacked by rows, or their float values.

    half: scales and floats in 16 bits (else 32).
    """

    slots: tuple[str, ...]
    kind: Kind
    half: bool = True


class Placeholders:
    """The parts met while one program was lowered; a part's marker is the offset written for it."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def marker(self, part: Part) -> int:
        if part not in self.parts:
            self.parts.append(part)
        return FIRST_MARKER + self.parts.index(part)

    def part(self, offset: int) -> Part | None:
        """The part behind an offset of a program, None for an offset into the real file."""
        return self.parts[offset - FIRST_MARKER] if offset >= FIRST_MARKER else None


_active: ContextVar[Placeholders] = ContextVar("placeholders")


def constant(part: Part, shape: tuple[int, ...]) -> Any:
    """Emit the placeholder of a part as a MIL constant (inside `recording`)."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    dtype = {"int4": types.np_int4_dtype, "zero4": types.np_int4_dtype, "int8": np.int8, "zero8": np.int8}.get(
        part.kind, np.float16 if part.half else np.float32
    )
    marker = _active.get().marker(part)
    var = mb.const(val=np.broadcast_to(np.zeros((), dtype), shape), name=f"weight_{marker - FIRST_MARKER}")
    # without a key of its own, const_deduplication takes all zeros of one shape for the same weight
    var.op.weight_key = str(marker)
    var.op.marker = marker
    freeze(var.op)
    return var


def freeze(op: Any) -> None:
    """Keep passes from inferring an operation's type and value anew: doing so would materialize placeholders."""
    op.type_value_inference = lambda overwrite_output=False: None


def cast_without_value(var: Any, dtype: str) -> Any:
    """A cast of a placeholder whose value is not computed; one pass or another folds it away."""
    from coremltools.converters.mil import Builder as mb

    value = var._sym_val
    var._sym_val = None
    out = mb.cast(x=var, dtype=dtype)
    var._sym_val = value
    freeze(out.op)
    return out


@contextmanager
def recording(placeholders: Placeholders) -> Iterator[None]:
    """Collect placeholders, and have coremltools' exporter write their markers instead of their values."""
    from coremltools.converters.mil.backend.mil import load

    original = load.MILProtoExporter.get_milproto_value

    def exported(self: Any, var: Any) -> Any:
        marker = getattr(var.op, "marker", None)
        if marker is None:
            return original(self, var)
        return load.create_file_value_tensor(
            file_name=WEIGHT_FILE,
            offset=marker,
            dim=var.shape,
            data_type=load.types_to_proto_primitive(var.dtype),
        )

    token = _active.set(placeholders)
    load.MILProtoExporter.get_milproto_value = exported
    try:
        yield
    finally:
        load.MILProtoExporter.get_milproto_value = original
        _active.reset(token)
