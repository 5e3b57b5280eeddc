"""What a lowered graph wants of the weights, and how it is given to it once the graph stands: late binding.

A lowering names parts of slots; binding streams them, row block by row block, into the external-data file and points
the graph's initializers there. Knows the layouts of ONNX Runtime's kernels and no op.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.codes import Int8
from compiler.slots import Slot
from compiler.targets.onnx.external import ExternalData
from compiler.targets.tensors import Blocks, SlotReader

Part = Literal["codes", "columns", "signed", "scales", "values", "row_zeros", "zeros"]
"""Of slots, one's rows after another's: packed codes; signed codes of 8 bits, column by column; the same, row by row;
scales; float values; zero points packed row by row, as MatMulNBits and GatherBlockQuantized have them; zero points
packed through, as a tensor of 4-bit integers is."""

# a tensor of at most this is part of the graph: shape inference reads constants, and a mapping costs a page
_INLINE_BYTES = 65536


@dataclass(frozen=True)
class Weight:
    """An initializer to come: a part of slots that share a scheme of this many bits.

    repeated: how many blocks of a kernel a group is; each has the group's scale and zero point.
    """

    part: Part
    slots: tuple[Slot, ...]
    bits: int
    repeated: int = 1

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """What bytes it is: two tensors of one key may differ in shape."""
        return self.part, tuple(slot.name for slot in self.slots)


def bind(
    graph: ir.Graph, weights: Mapping[ir.Value, Weight], data: ExternalData, reader: SlotReader, inline: bool
) -> None:
    """Give every initializer of a graph its value, in their order: from slots, those in `weights`; large constants
    move to the data file.

    inline: small vectors of slots become part of the graph; for a component of several graphs they are stored once.
    """
    for name, value in graph.initializers.items():
        assert value.dtype is not None and value.shape is not None
        shape = value.shape.numpy()
        weight = weights.get(value)
        if weight is None:
            assert value.const_value is not None
            if value.const_value.nbytes > _INLINE_BYTES:
                content = value.const_value.numpy()
                key = "constant", hashlib.sha256(content.tobytes()).hexdigest()
                value.const_value = data.add(key, name, value.dtype, shape, partial(iter, (content,)))
            continue
        vector = all(slot.is_vector for slot in weight.slots)
        if inline and vector and 4 * sum(slot.columns for slot in weight.slots) <= _INLINE_BYTES:
            values = np.concatenate(list(reader.values(weight.slots)()))
            value.const_value = ir.tensor(values.reshape(shape), name=name)
        else:
            blocks = _blocks(weight, math.prod(shape), reader)
            value.const_value = data.add(weight.key, name, value.dtype, shape, blocks)


def _blocks(weight: Weight, count: int, reader: SlotReader) -> Blocks:
    if weight.part == "codes":
        return reader.codes(weight.slots)
    if weight.part == "columns":
        codes = reader.codes(weight.slots)
        return lambda: iter((np.concatenate([block ^ np.uint8(128) for block in codes()]).T,))
    if weight.part == "signed":
        offset = reader.codes(weight.slots)
        return lambda: (block ^ np.uint8(128) for block in offset())
    if weight.part == "scales":
        scales = reader.scales(weight.slots)
        return lambda: (np.repeat(block, weight.repeated, 1) for block in scales())
    if weight.part == "values":
        return reader.values(weight.slots)
    found = reader.zeros(weight.slots)
    zeros = np.zeros(count, np.int8) if found is None else found  # DequantizeLinear has no default for offset codes
    rows = np.repeat(zeros, weight.repeated, 1) if weight.part == "row_zeros" else zeros.reshape(1, -1)
    packed = pack_zero_points(rows, weight.bits)
    return partial(iter, (packed,))


def pack_zero_points(zeros: Int8, bits: int) -> NDArray[np.uint8]:
    """Zero points [rows, groups] as offset codes packed along the groups, rows padded to whole bytes."""
    offset = zeros.view(np.uint8) + np.uint8(1 << (bits - 1))
    if bits == 8:
        return offset
    if offset.shape[1] % 2:
        offset = np.pad(offset, ((0, 0), (0, 1)))
    return (offset[:, 0::2] & np.uint8(15)) | (offset[:, 1::2] << np.uint8(4))


def write_model(model: ir.Model, path: Path) -> None:
    """Write a graph, the same bytes for the same graph; its external data must already lie beside it."""
    proto = ir.to_proto(model)
    known = {tensor.name for tensor in proto.graph.initializer}  # these say it themselves
    told = [value for value in proto.graph.value_info if value.name not in known]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(told)
    path.write_bytes(proto.SerializeToString(deterministic=True))
