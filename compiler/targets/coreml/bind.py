"""Late binding: from converted programs without weights to one set of weights in one file, shared by every function.

Takes each function's spec with its placeholders, streams the packed bytes of each part once into the weight file and
points every function at them; the converter's own small constants (norms, tables) are copied, equal ones once.
Codes change by one exclusive or: the packed form stores an offset, Core ML two's complement.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from compiler.quantize.packed import PackedWeights
from compiler.targets.coreml.blob import SENTINEL, BlobType, BlobWriter
from compiler.targets.coreml.placeholders import Part, Placeholders
from compiler.tensors import row_blocks

_RECORD = struct.Struct("<IIQQQ32x")
_FLIP = {"int4": 0x88, "int8": 0x80}


@dataclass(frozen=True)
class Converted:
    """One converted function: its spec (a single function named main), and where its small constants lie."""

    spec: Any
    placeholders: Placeholders
    weight_file: Path


def bind(
    functions: dict[str, Converted], weights: PackedWeights, weight_file: Path, progress: Callable[[int], None]
) -> None:
    """Write the weight file and replace every offset in the functions' specs, in place.

    progress: called with the number of weights of each block written.
    """
    writer = BlobWriter(weight_file)
    parts: dict[Part, int] = {}
    small: dict[bytes, int] = {}
    for converted in functions.values():
        program = converted.spec.mlProgram.functions["main"]
        for value in file_values(program):
            part = converted.placeholders.part(value.offset)
            if part is None:
                value.offset = _copy(converted.weight_file, value.offset, writer, small)
                continue
            if part not in parts:
                parts[part] = _stream(part, weights, writer, progress)
            value.offset = parts[part]
    writer.close()


def file_values(function: Any) -> Iterator[Any]:
    """Every value of a MIL function that lies in the weight file, in an order of our own: protobuf maps have none."""

    def in_value(value: Any) -> Iterator[Any]:
        if value.WhichOneof("value") == "blobFileValue":
            yield value.blobFileValue

    def in_block(block: Any) -> Iterator[Any]:
        for operation in block.operations:
            for _, value in sorted(operation.attributes.items()):
                yield from in_value(value)
            for _, argument in sorted(operation.inputs.items()):
                for binding in argument.arguments:
                    if binding.WhichOneof("binding") == "value":
                        yield from in_value(binding.value)
            for inner in operation.blocks:
                yield from in_block(inner)

    for _, block in sorted(function.block_specializations.items()):
        yield from in_block(block)


def _copy(source: Path, offset: int, writer: BlobWriter, small: dict[bytes, int]) -> int:
    with source.open("rb") as file:
        file.seek(offset)
        sentinel, kind, size, payload, padding = _RECORD.unpack(file.read(_RECORD.size))
        if sentinel != SENTINEL:
            raise ValueError(f"{source}: no record at offset {offset}")
        file.seek(payload)
        content = file.read(size)
    key = hashlib.sha256(struct.pack("<IQ", kind, padding) + content).digest()
    if key not in small:
        small[key] = writer.add(BlobType(kind), size, [content], padding)
    return small[key]


def _stream(part: Part, weights: PackedWeights, writer: BlobWriter, progress: Callable[[int], None]) -> int:
    shapes = [weights.shape(slot) for slot in part.slots]
    rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
    groups = weights.scheme(part.slots[0]).groups(columns)
    if part.kind in ("zero4", "zero8"):
        kind, size, content, padding = _zero_points(part, weights)
        return writer.add(kind, size, [content], padding)
    if part.kind in _FLIP:
        bits = 4 if part.kind == "int4" else 8
        kind = BlobType.INT4 if bits == 4 else BlobType.INT8
        return writer.add(kind, rows * columns * bits // 8, _blocks(part, weights, columns, progress))
    kind = BlobType.FLOAT16 if part.half else BlobType.FLOAT32
    width = groups if part.kind == "scale" else columns
    return writer.add(kind, rows * width * (2 if part.half else 4), _blocks(part, weights, columns, progress))


def _blocks(
    part: Part, weights: PackedWeights, columns: int, progress: Callable[[int], None]
) -> Iterator[NDArray[Any]]:
    """The bytes of codes, scales or floats, row block by row block."""
    for slot in part.slots:
        for start, stop in row_blocks(weights.shape(slot)[0], columns):
            if part.kind in _FLIP:
                yield np.bitwise_xor(weights.packed(slot, start, stop), np.uint8(_FLIP[part.kind]))
            elif part.kind == "scale":
                yield _floats(slot, weights.scales(slot, start, stop), part.half)
            else:
                yield _floats(slot, weights.rows(slot, start, stop), part.half)
            if part.kind != "scale":
                progress((stop - start) * columns)


def _floats(slot: str, values: NDArray[np.float32], half: bool) -> NDArray[Any]:
    if not half:
        return values
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise EdgewrightError(f"tensor {slot!r} has values beyond float16's range; build it with compute: fp32")
    return values.astype(np.float16)


def _zero_points(part: Part, weights: PackedWeights) -> tuple[BlobType, int, NDArray[np.uint8], int]:
    """Type, bytes, content and padding bits of the zero points [rows, groups] of slots, rows stacked."""
    zeros = [z for slot in part.slots if (z := weights.zeros(slot)) is not None]
    flat = np.concatenate([z.reshape(-1) for z in zeros]).view(np.uint8)
    if part.kind == "zero8":
        return BlobType.INT8, flat.size, flat, 0
    odd = flat.size % 2
    nibbles = np.append(flat, np.zeros(odd, np.uint8)) & np.uint8(15)
    return BlobType.INT4, nibbles.size // 2, nibbles[0::2] | (nibbles[1::2] << np.uint8(4)), 4 * odd
