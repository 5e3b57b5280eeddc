"""A network written once and read twice: over shapes, which gives its slots and what is alive, and over tensors.

`Shapes` and `Tensors` have the same layers. A family writes its network as a function of either; a layer's name is its
slot's, and its tensor is `<name>.weight`, with `<name>.bias` beside it. Knows no family and no config; `Shapes` loads
no framework.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from compiler.models.base import Entry, scheme_arguments
from compiler.models.layers import linears
from compiler.slots import Schemes, Slot

if TYPE_CHECKING:
    import torch

V = TypeVar("V")
Pointwise = Literal["relu", "gelu", "sigmoid"]
# of `StreamWork`; norms count tenfold, gelu four times, softmax twice: what they take beside one pass over elements
_PRODUCTS = ("conv", "conv3d", "grouped", "depthwise", "matmul")
_CLASSES = (*_PRODUCTS, "normed", "activated", "moved", "read", "written", "kernels", "layers")
_EPS = 1e-5  # PyTorch's


class Layers(Protocol[V]):
    """Layers over values, which are [1, channels, …] for convolutions and [1, length, columns] for linear layers."""

    def channels(self, x: V) -> int: ...

    def convolution(
        self,
        x: V,
        name: str,
        outputs: int,
        kernel: tuple[int, ...],
        *,
        stride: tuple[int, ...] = (),
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        onto: V | None = None,
    ) -> V:
        """stride: for each dimension, 1 by default. onto: what it is added to; nothing else reads that any more."""

    def linear(self, x: V, name: str, outputs: int) -> V:
        """Over the last dimension, with a bias."""

    def group_norm(self, x: V, name: str, groups: int) -> V:
        """Statistics of a group of channels over all places, then a factor and a bias for each channel."""

    def layer_norm(self, x: V, name: str, eps: float = _EPS) -> V:
        """Over the last dimension."""

    def affine(self, x: V, name: str, axis: int, gain: str = "weight", bias: str = "bias") -> V:
        """A factor and a bias for each place along an axis; gain, bias: what their tensors are called."""

    def applied(
        self, function: Callable[..., torch.Tensor], shape: Sequence[int], *values: V, apart: bool = False
    ) -> V:
        """What reads no weights: a function of tensors that gives one of this shape. apart: each channel comes of the
        same channel of the values; the last one has this shape, and nothing else reads it any more."""

    def pointwise(self, x: V, kind: Pointwise, *, over: bool = False) -> V:
        """over: nothing else reads x any more."""

    def add(self, x: V, y: V) -> V: ...

    def concatenate(self, x: V, y: V) -> V:
        """Along the channels."""

    def resized(self, x: V, sizes: Sequence[int]) -> V:
        """[1, channels, …] at other sizes, linear between the places, corners on corners."""

    def first(self, x: V, length: int) -> V:
        """The first places of [1, channels, places]."""

    def repeated(self, x: V, length: int) -> V:
        """[1, channels, 1] at each of `length` places."""

    def swapped(self, x: V) -> V:
        """The last two dimensions exchanged."""

    def attention(self, x: V, names: tuple[str, str, str], heads: int) -> V:
        """Every place looks at every place; names: of the projections to queries, keys and values."""


@dataclass(frozen=True, eq=False)
class Value:
    """What stands for a tensor: its shape. Two of one shape are two values."""

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Shapes:
    """Layers over shapes. slots: of all layers so far, in order; fused: those that one matmul may serve."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.fused: list[tuple[str, ...]] = []
        self._work: Counter[str] = Counter(dict.fromkeys(_CLASSES, 0.0))
        self._steps: list[tuple[tuple[Value, ...], Value, int]] = []

    def live(self, entry: Entry, sizes: Mapping[str, int]) -> int:
        """How many values are alive at once in the widest place: a step's inputs, outputs and scratch, and all that a
        later step reads. The network is one entry, of one size."""
        last = {value: at for at, (inputs, _, _) in enumerate(self._steps) for value in inputs}
        alive = last.keys() - {made for _, made, _ in self._steps}
        widest = 0
        for at, (_, made, scratch) in enumerate(self._steps):
            alive.add(made)
            widest = max(widest, sum(value.size for value in alive) + scratch)
            alive = {value for value in alive if last.get(value, -1) > at}
        return widest

    @property
    def macs(self) -> int:
        """Multiply-adds of all products so far."""
        return int(sum(self._work[kind] for kind in _PRODUCTS))

    def work(self) -> dict[str, float]:
        """Multiply-adds, elements and operators by class, as `artifacts.formats.work.StreamWork` has them."""
        return dict(self._work)

    def _counted(self, made: Value, **classes: float) -> Value:
        """`made`, by one operator that computes so much."""
        self._work.update(classes | {"kernels": 1, "layers": 1})
        return made

    def _product(self, x: Value, made: Value, kind: str, macs: float) -> Value:
        return self._counted(made, **{kind: macs, "read": x.size, "written": made.size})

    def _made(self, shape: tuple[int, ...], *inputs: Value, scratch: int = 0) -> Value:
        made = Value(shape)
        self._steps.append((inputs, made, scratch))
        return made

    def _vector(self, name: str, size: int, kind: Literal["norm", "bias"]) -> Slot:
        return Slot(name, f"{name}.weight" if kind == "norm" else name, 1, size, kind)

    def channels(self, x: Value) -> int:
        return x.shape[1]

    def convolution(
        self,
        x: Value,
        name: str,
        outputs: int,
        kernel: tuple[int, ...],
        *,
        stride: tuple[int, ...] = (),
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        onto: Value | None = None,
    ) -> Value:
        columns = x.shape[1] // groups * math.prod(kernel)
        self.slots.append(Slot(name, f"{name}.weight", outputs, columns, "convolution", kernel))
        if bias:
            self.slots.append(self._vector(f"{name}.bias", outputs, "bias"))
        steps = stride or (1,) * len(kernel)
        sizes = (
            (size + 2 * padding - dilation * (edge - 1) - 1) // step + 1
            for size, edge, step in zip(x.shape[2:], kernel, steps, strict=True)
        )
        made = self._made((x.shape[0], outputs, *sizes), x)
        dense = "conv3d" if len(kernel) == 3 else "conv"
        kind = dense if groups == 1 else "depthwise" if groups == x.shape[1] == outputs else "grouped"
        self._product(x, made, kind, made.size * columns)
        return made if onto is None else self.add(onto, made)

    def linear(self, x: Value, name: str, outputs: int) -> Value:
        self.slots.append(Slot(name, f"{name}.weight", outputs, x.shape[-1], "linear"))
        self.slots.append(self._vector(f"{name}.bias", outputs, "bias"))
        made = self._made((*x.shape[:-1], outputs), x)
        return self._product(x, made, "matmul", made.size * x.shape[-1])

    def group_norm(self, x: Value, name: str, groups: int) -> Value:
        return self._normed(x, name, x.shape[1])

    def layer_norm(self, x: Value, name: str, eps: float = _EPS) -> Value:
        return self._normed(x, name, x.shape[-1])

    def affine(self, x: Value, name: str, axis: int, gain: str = "weight", bias: str = "bias") -> Value:
        size = x.shape[axis]
        self.slots.append(Slot(name, f"{name}.{gain}", 1, size, "norm"))
        self.slots.append(Slot(f"{name}.bias", f"{name}.{bias}", 1, size, "bias"))
        return self._counted(self._made(x.shape, x), activated=x.size)

    def applied(
        self, function: Callable[..., torch.Tensor], shape: Sequence[int], *values: Value, apart: bool = False
    ) -> Value:
        made = self._made(tuple(shape), *values)
        return self._counted(made, moved=made.size)

    def _normed(self, x: Value, name: str, size: int) -> Value:
        self.slots += [self._vector(name, size, "norm"), self._vector(f"{name}.bias", size, "bias")]
        return self._counted(self._made(x.shape, x), normed=10 * x.size, activated=x.size)

    def pointwise(self, x: Value, kind: Pointwise, *, over: bool = False) -> Value:
        made = self._made(x.shape, x)
        if kind == "relu":  # every runtime fuses it into what comes before
            return made
        return self._counted(made, normed=4 * x.size if kind == "gelu" else 0, activated=x.size)

    def add(self, x: Value, y: Value) -> Value:
        return self._counted(self._made(x.shape, x, y), moved=x.size)

    def concatenate(self, x: Value, y: Value) -> Value:
        made = self._made((x.shape[0], x.shape[1] + y.shape[1], *x.shape[2:]), x, y)
        return self._counted(made, moved=made.size)

    def resized(self, x: Value, sizes: Sequence[int]) -> Value:
        made = self._made((*x.shape[:2], *sizes), x)
        return self._counted(made, moved=made.size)

    def first(self, x: Value, length: int) -> Value:
        return self._made((*x.shape[:2], length), x)

    def repeated(self, x: Value, length: int) -> Value:
        return self._made((*x.shape[:2], length), x)

    def swapped(self, x: Value) -> Value:
        return self._made((*x.shape[:-2], x.shape[-1], x.shape[-2]), x)

    def attention(self, x: Value, names: tuple[str, str, str], heads: int) -> Value:
        self.fused.append(names)
        queries, keys, values = (self.linear(x, name, x.shape[-1]) for name in names)
        places = x.shape[1]
        scores = heads * places**2
        made = self._made(x.shape, queries, keys, values, scratch=2 * scores)
        self._product(x, made, "matmul", 2 * places * x.size)
        return self._counted(made, normed=2 * scores, activated=scores)


class Tensors:
    """Layers over tensors, as a graph of edge ops under the schemes of its slots.

    Called to compute and not to be captured, they write over what nothing else reads any more, to the same bits: the
    references of a renderer would take twice the memory otherwise.
    """

    def __init__(self, slots: Iterable[Slot], schemes: Schemes) -> None:
        self._schemes = schemes
        self._linear = linears(slots, schemes)

    def channels(self, x: torch.Tensor) -> int:
        return x.shape[1]

    def convolution(
        self,
        x: torch.Tensor,
        name: str,
        outputs: int,
        kernel: tuple[int, ...],
        *,
        stride: tuple[int, ...] = (),
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        onto: torch.Tensor | None = None,
    ) -> torch.Tensor:
        from compiler.dialect import edge
        from compiler.over import OVER, add_convolution

        dims = len(kernel)
        shape = [outputs, x.shape[1] // groups, *kernel]
        steps = list(stride) or [1] * dims
        places = steps, [padding] * dims, [dilation] * dims
        if onto is not None and _computes():
            return add_convolution(onto, f"{name}.bias" if bias else None, x, name, shape, *places, groups)
        out: torch.Tensor = edge.convolution(x, name, shape, *scheme_arguments(self._schemes, name), *places, groups)
        if bias:
            out = (OVER["edge::bias"] if _computes() else edge.bias)(out, [f"{name}.bias"], [outputs], 1)
        return out if onto is None else onto + out

    def linear(self, x: torch.Tensor, name: str, outputs: int) -> torch.Tensor:
        return self._linear(x, name)

    def group_norm(self, x: torch.Tensor, name: str, groups: int) -> torch.Tensor:
        import torch

        return self.affine(torch.nn.functional.group_norm(x, groups, eps=_EPS), name, 1)

    def layer_norm(self, x: torch.Tensor, name: str, eps: float = _EPS) -> torch.Tensor:
        from compiler.dialect import edge

        columns = x.shape[-1]
        out: torch.Tensor = edge.bias(edge.layer_norm(x, name, columns, eps), [f"{name}.bias"], [columns], -1)
        return out

    def affine(self, x: torch.Tensor, name: str, axis: int, gain: str = "weight", bias: str = "bias") -> torch.Tensor:
        from compiler.dialect import edge

        size = x.shape[axis]
        out: torch.Tensor = edge.bias(edge.scale(x, name, size, axis), [f"{name}.bias"], [size], axis)
        return out

    def applied(
        self,
        function: Callable[..., torch.Tensor],
        shape: Sequence[int],
        *values: torch.Tensor,
        apart: bool = False,
    ) -> torch.Tensor:
        from compiler.over import by_channels

        return by_channels(function, *values) if apart and _computes() else function(*values)

    def pointwise(self, x: torch.Tensor, kind: Pointwise, *, over: bool = False) -> torch.Tensor:
        import torch

        from compiler.over import OVER

        if over and _computes():
            return OVER[f"aten::{kind}"](x)
        function = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "sigmoid": torch.sigmoid}[kind]
        return function(x)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def concatenate(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.cat([x, y], 1)

    def resized(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        import torch

        mode = "linear" if x.ndim == 3 else "bilinear"
        return torch.nn.functional.interpolate(x, list(sizes), mode=mode, align_corners=True)

    def first(self, x: torch.Tensor, length: int) -> torch.Tensor:
        return x[..., :length]

    def repeated(self, x: torch.Tensor, length: int) -> torch.Tensor:
        return x.expand(-1, -1, length)

    def swapped(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-1, -2)

    def attention(self, x: torch.Tensor, names: tuple[str, str, str], heads: int) -> torch.Tensor:
        import torch

        batch, length, columns = x.shape
        qkv = self._linear(x, *names).split(columns, -1)
        q, k, v = (part.reshape(batch, length, heads, columns // heads).transpose(1, 2) for part in qkv)
        # the default scale: keyword arguments are what importers lose
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(batch, length, columns)


def _computes() -> bool:
    """Whether tensors have values: nothing is captured."""
    import torch

    return not torch.compiler.is_exporting()
