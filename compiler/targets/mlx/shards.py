"""The weights of an MLX package: safetensors shards, streamed from the packed checkpoint.

MLX's affine form of a weight [rows, columns] is `weight` (uint32 words of codes, lowest bits first), `scales` and
`biases` [rows, groups]; a value is scale * code + bias with an unsigned code. The words are those of the packed
checkpoint, copied; a scale is its scale; the bias is -scale * zero point, -8 or -128 times the scale where symmetric.
Everything else is float16 as well, a convolution with its channels last: MLX promotes a mixture of float16 and
bfloat16 to float32 without a word.

Format: https://huggingface.co/docs/safetensors; `mx.quantize` in the reference of MLX. Knows no configuration file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from compiler.codes import Float32, Int8
from compiler.quantize.packed import PackedWeights
from compiler.slots import Scheme, Slot
from compiler.targets.mlx.geometry import in_bytes, stored
from compiler.targets.tensors import Blocks, SlotReader, Tensor
from compiler.tensors import from_float32, row_blocks, to_float32

MAX_SHARD_BYTES = 5 << 30
_DTYPES = {"uint8": "U8", "uint32": "U32", "float16": "F16"}
_ALIGN = 64

Half = NDArray[np.float16]


def package_tensors(slots: Sequence[Slot], weights: PackedWeights, named: Callable[[str], str] = str) -> list[Tensor]:
    """The tensors of a package in the order of the slots. named: what a package calls a slot, or a tensor of it."""
    reader = SlotReader(weights)
    return [tensor for slot in slots for tensor in _slot_tensors(slot, reader, named)]


def _slot_tensors(slot: Slot, reader: SlotReader, named: Callable[[str], str]) -> list[Tensor]:
    weights, scheme = reader.weights, reader.weights.scheme(slot.name)

    def half(blocks: Blocks) -> Blocks:
        return lambda: (to_half(block, slot.name) for block in blocks())

    if scheme.bits == 16:
        shape, values = slot.shape, half(reader.values([slot]))
        if slot.kernel:  # MLX's convolutions take [out, *kernel, in]
            shape = (slot.rows, *slot.kernel, slot.shape[1])
            return [Tensor(named(slot.key), "float16", shape, _channels_last(values, slot.shape[1:]))]
        return [Tensor(named(slot.key), "float16", shape, values)]
    count = stored(scheme, slot.columns).groups(slot.columns)
    groups, repeated = (slot.rows, count), count // scheme.groups(slot.columns)
    plain = in_bytes(scheme, slot.columns)
    words = (slot.rows, slot.columns if plain else slot.columns * scheme.bits // 32)

    def scales() -> Iterator[NDArray[Any]]:
        return (np.repeat(block, repeated, 1) for block in half(reader.scales([slot]))())

    def biases() -> Iterator[NDArray[Any]]:
        for start, stop in row_blocks(slot.rows, slot.columns):
            zeros = weights.zeros(slot.name, start, stop)
            exact = weights.scales(slot.name, start, stop) * -unsigned_zeros(zeros, scheme.bits)
            yield np.repeat(to_half(bfloat16(exact) if edges else exact, slot.name), repeated, 1)

    edges = not scheme.symmetric and is_edge_anchored(slot, weights)
    name = named(slot.name)
    return [
        Tensor(f"{name}.weight", "uint8" if plain else "uint32", words, reader.codes([slot])),
        Tensor(f"{name}.scales", "float16", groups, scales),
        Tensor(f"{name}.biases", "float16", groups, biases),
    ]


def _channels_last(blocks: Blocks, inner: tuple[int, ...]) -> Blocks:
    return lambda: (np.moveaxis(block.reshape(-1, *inner), 1, -1) for block in blocks())


def unsigned_zeros(zeros: Int8 | None, bits: int) -> Float32:
    """Zero points counted from the lowest code, as MLX counts codes; 2**(bits - 1) where symmetric."""
    half = np.float32(1 << (bits - 1))
    return np.asarray(half if zeros is None else zeros + half, np.float32)


def is_edge_anchored(slot: Slot, weights: PackedWeights) -> bool:
    """Whether every scale of an asymmetric slot is a bfloat16 number over its whole zero point.

    So are weights that MLX's own rule quantized (method mlx_affine) from a bfloat16 checkpoint: there each group's
    bias is its largest weight to the bit, which the product of zero point and rounded scale misses by up to 2**-11
    of it, and the nearest bfloat16 restores it. By chance one group in a few looks so, a whole slot never does.
    """
    bits = weights.scheme(slot.name).bits
    for start, stop in row_blocks(slot.rows, slot.columns):
        scales = weights.scales(slot.name, start, stop)
        zeros = unsigned_zeros(weights.zeros(slot.name, start, stop), bits)
        edges = bfloat16(scales * -zeros)
        found = np.divide(edges, -zeros, out=scales.copy(), where=zeros != 0)
        if not np.array_equal(found.astype(np.float16), scales.astype(np.float16)):
            return False
    return True


def bfloat16(values: Float32) -> Float32:
    """Values rounded to bfloat16."""
    raw = np.ascontiguousarray(from_float32(values, "BF16")).view(np.uint8)
    return to_float32(raw.reshape(-1), "BF16").reshape(values.shape)


def to_half(values: Float32, name: str) -> Half:
    """Values in float16. Raises EdgewrightError naming the slot where they overflow."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        worst = float(np.abs(values).max())
        raise EdgewrightError(
            f"mlx: {name} needs {worst:.6g}, float16 ends at 65504; an MLX package is float16 throughout, "
            "leave this target out"
        )
    return half


def write_shards(
    tensors: Sequence[Tensor],
    folder: Path,
    parameters: int,
    advance: Callable[[int], None],
    limit: int = MAX_SHARD_BYTES,
) -> None:
    """Write model.safetensors, or numbered shards of at most `limit` bytes, and model.safetensors.index.json.

    parameters: of the model, for the index. advance: called with the bytes just written. One row block is in memory
    at a time.
    """
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.size for t in shards[-1]) + tensor.size > limit:
            shards.append([])
        shards[-1].append(tensor)
    where: dict[str, str] = {}
    for at, shard in enumerate(shards, 1):
        name = f"model-{at:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        _write_shard(sorted(shard, key=lambda t: -np.dtype(t.dtype).itemsize), folder / name, advance)
        where |= {tensor.name: name for tensor in shard}
    total = sum(tensor.size for tensor in tensors)
    index = {
        "metadata": {"total_size": total, "total_parameters": parameters},
        "weight_map": dict(sorted(where.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=4) + "\n", encoding="utf-8")


def _write_shard(tensors: Sequence[Tensor], path: Path, advance: Callable[[int], None]) -> None:
    """One file; widest items first, so that every tensor is aligned to its own items."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for tensor in tensors:
        entry = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + tensor.size]}
        header[tensor.name] = entry
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            begin = file.tell()
            for block in tensor.blocks():
                file.write(np.ascontiguousarray(block).data.cast("B"))
                advance(block.nbytes)
            if file.tell() - begin != tensor.size:
                raise ValueError(f"{tensor.name}: {file.tell() - begin} bytes for shape {tensor.shape} {tensor.dtype}")


def stored_bytes(slot: Slot, scheme: Scheme) -> int:
    """Bytes of a slot in a package."""
    if scheme.bits == 16:
        return slot.rows * slot.columns * 2
    groups = stored(scheme, slot.columns).groups(slot.columns)
    return slot.rows * (slot.columns * scheme.bits // 8 + groups * 4)
