"""Lists of tensors of one shape. A list is a Python list here; `make_list` wraps it, as an operation's result may."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runtime_tests.mil.ops import Operation, integers


class TensorList(list[Tensor | None]):
    """A MIL list: one value, not several outputs."""

    def element(self, index: int) -> Tensor:
        value = self[index]
        if value is None:
            raise IndexError(f"list element {index} was never written")
        return value


def _make(
    init_length: Any = None, dynamic_length: Any = True, elem_shape: Any = None, dtype: str = "fp32"
) -> TensorList:
    return TensorList([None] * (1 if init_length is None else int(init_length)))


def _write(ls: TensorList, index: Any, value: Tensor) -> TensorList:
    out = TensorList(ls)
    out += [None] * (int(index) + 1 - len(out))
    out[int(index)] = value
    return out


def _scatter(ls: TensorList, indices: Tensor, value: Tensor) -> TensorList:
    for i, item in zip(integers(indices), value, strict=True):
        ls = _write(ls, i, item)
    return ls


OPS: dict[str, Operation] = {
    "make_list": _make,
    "list_write": _write,
    "list_read": lambda ls, index: ls.element(int(index)),
    "list_gather": lambda ls, indices: torch.stack([ls.element(i) for i in integers(indices)]),
    "list_scatter": _scatter,
    "list_length": lambda ls: torch.tensor(len(ls), dtype=torch.int32),
}
