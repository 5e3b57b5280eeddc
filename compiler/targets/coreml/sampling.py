"""Samples of a volume at any places, which Core ML has for pictures alone: gathers of eight neighbours, with weights.

Coordinates and places are float32, whatever the compute precision: 16 bits would be off by a sixtieth of a place. What
must not live here: the dialect's ops (`lower.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

from artifacts import EdgewrightError
from compiler.targets.coreml.capture import FLOAT32

_OP = "grid_sampler"
_AXES = "xyz"


@contextmanager
def volumes() -> Iterator[None]:
    """Lower the samplers of volumes here, and those of pictures as coremltools does."""
    table = _TORCH_OPS_REGISTRY.name_to_func_mapping
    pictures = table[_OP]

    def sampler(context: Any, node: Any) -> None:
        if len(context[node.inputs[0]].shape) == 4:
            pictures(context, node)
        else:
            _sampled(context, node)

    table[_OP] = sampler
    try:
        yield
    finally:
        table[_OP] = pictures


def _sampled(context: Any, node: Any) -> None:
    """x [1, channels, depth, height, width] at grid [1, …out, 3], x y z from -1 to 1: linear, zeros outside."""
    x, grid = (context[name] for name in node.inputs[:2])
    mode, padding, corners = (context[i].val if isinstance(i, str) else i for i in node.inputs[2:5])
    if x.shape[0] != 1 or mode != 0 or padding != 0:
        raise EdgewrightError(
            f"coreml: {node.name}: samples of volumes are lowered one by one, linear and with zeros outside"
        )
    name, (_, channels, *sizes), out = node.name, x.shape, grid.shape[1:-1]
    count = int(np.prod(out))
    # a place outside is one of the zeros around: one before, and two behind, for the neighbour of the last
    around = mb.pad(x=x, pad=[0, 0, 0, 0, 1, 2, 1, 2, 1, 2], constant_val=0.0, name=f"{name}_around")
    wide = [size + 3 for size in sizes]
    flat = mb.reshape(x=around, shape=[channels, int(np.prod(wide))], name=f"{name}_flat")
    base, shares = None, []
    columns = mb.split(x=grid, num_splits=3, axis=-1, name=f"{FLOAT32}{name}_axes")
    for at, size in enumerate(sizes):  # from the slowest axis, z, which comes last in the grid
        axis = f"{FLOAT32}{name}_{_AXES[2 - at]}"
        place = mb.reshape(x=columns[2 - at], shape=[count], name=f"{axis}_column")
        scale, shift = ((size - 1) / 2, (size - 1) / 2) if corners else (size / 2, (size - 1) / 2)
        place = mb.mul(x=place, y=np.float32(scale), name=f"{axis}_scaled")
        place = mb.add(x=place, y=np.float32(shift + 1), name=f"{axis}_place")
        place = mb.clip(x=place, alpha=np.float32(0), beta=np.float32(size + 1), name=f"{axis}_clipped")
        low = mb.floor(x=place, name=f"{axis}_low")
        share = mb.sub(x=place, y=low, name=f"{axis}_share")
        shares.append((mb.sub(x=np.float32(1), y=share, name=f"{axis}_rest"), share))
        whole = mb.cast(x=low, dtype="int32", name=f"{axis}_index")
        if base is not None:
            base = mb.mul(x=base, y=np.int32(wide[at]), name=f"{axis}_row")
            whole = mb.add(x=base, y=whole, name=f"{axis}_base")
        base = whole
    total = None
    for corner in itertools.product((0, 1), repeat=3):
        which = f"{name}_{''.join(map(str, corner))}"
        z, y, x_share = (shares[at][step] for at, step in enumerate(corner))
        weight = mb.mul(x=z, y=y, name=f"{FLOAT32}{which}_plane")
        weight = mb.mul(x=weight, y=x_share, name=f"{FLOAT32}{which}_weight")
        offset = (corner[0] * wide[1] + corner[1]) * wide[2] + corner[2]
        index = mb.add(x=base, y=np.int32(offset), name=f"{which}_index")
        picked = mb.gather(x=flat, indices=index, axis=1, name=f"{which}_values")
        part = mb.mul(x=picked, y=weight, name=f"{which}_part")
        total = part if total is None else mb.add(x=total, y=part, name=f"{which}_sum")
    context.add(mb.reshape(x=total, shape=[1, channels, *out], name=name), node.name)
