"""The Pixtral vision tower: patches turned by their row and column, pre-norm layers, no norm at the end.

An image has any size. It comes as cells, squares of `merge` by `merge` patches that become one token each, and every
patch brings its place: the graph knows no rows of an image, so one dimension, the number of cells, is all that varies.
What follows the tower is the family's. The graph is written in the edge dialect and holds no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from compiler.config import Keys
from compiler.models.base import scheme_arguments
from compiler.models.layers import linears
from compiler.slots import Kind, Schemes, Slot
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

CHANNELS = 3
_EPS = 1e-5  # of every norm, and no key that says so


@dataclass(frozen=True)
class TowerSpec:
    """The geometry of a tower; sizes in elements, of images and patches in pixels.

    prefix: of the names of its slots; tensors: of its tensors' names. image: the longest edge that its checkpoint
    knows. merge: patches along the edge of a cell.
    """

    prefix: str
    tensors: str
    hidden: int
    layers: int
    heads: int
    intermediate: int
    activation: Literal["silu", "gelu"]
    theta: float
    image: int
    patch: int
    merge: int

    @property
    def cell(self) -> int:
        """Pixels along the edge of a cell."""
        return self.patch * self.merge

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def read_tower(keys: Keys, merge: int, prefix: str, tensors: str) -> TowerSpec:
    """Geometry from a vision_config. What it leaves out is what transformers takes.

    Raises CheckpointError naming the key.
    """
    keys.word("model_type", ("pixtral",), "pixtral")
    activation = keys.word("hidden_act", ("silu", "gelu"), "gelu")
    keys.integer("num_channels", CHANNELS, CHANNELS, CHANNELS)
    hidden = keys.integer("hidden_size", 1, 1 << 16, 1024)
    heads = keys.integer("num_attention_heads", 1, 1 << 12, 16)
    if hidden % (4 * heads):
        raise CheckpointError(
            f"{keys.where}hidden_size {hidden} does not make num_attention_heads, {heads}, of a multiple of 4: rows "
            "and columns turn a half of each, in pairs"
        )
    head_dim = hidden // heads
    keys.integer("head_dim", head_dim, head_dim, head_dim)
    rope = keys.section("rope_parameters")
    rope.word("rope_type", ("axial", "default"), "axial")
    theta = rope if "rope_theta" in rope else keys
    return TowerSpec(
        prefix=prefix,
        tensors=tensors,
        hidden=hidden,
        layers=keys.integer("num_hidden_layers", 1, 1 << 12, 24),
        heads=heads,
        intermediate=keys.integer("intermediate_size", 1, 1 << 20, 4096),
        activation="silu" if activation == "silu" else "gelu",
        theta=theta.number("rope_theta", 1.001, 1e12, 10000.0),
        image=keys.integer("image_size", 1, 1 << 14, 1024),
        patch=keys.integer("patch_size", 1, 1 << 10, 16),
        merge=merge,
    )


def slots(spec: TowerSpec) -> list[Slot]:
    """All slots in the order in which the graph reads them."""

    def slot(name: str, rows: int, columns: int, kind: Kind = "linear", kernel: tuple[int, ...] = ()) -> Slot:
        return Slot(spec.prefix + name, f"{spec.tensors}{name}.weight", rows, columns, kind, kernel)

    kernel = (spec.patch, spec.patch)
    found = [
        slot("patch_conv", spec.hidden, CHANNELS * spec.patch**2, "convolution", kernel),
        slot("ln_pre", 1, spec.hidden, "norm"),
    ]
    for i in range(spec.layers):
        layer = f"transformer.layers.{i}."
        found.append(slot(layer + "attention_norm", 1, spec.hidden, "norm"))
        found += [slot(f"{layer}attention.{name}_proj", spec.hidden, spec.hidden) for name in "qkvo"]
        found.append(slot(layer + "ffn_norm", 1, spec.hidden, "norm"))
        found += [slot(f"{layer}feed_forward.{name}_proj", spec.intermediate, spec.hidden) for name in ("gate", "up")]
        found.append(slot(layer + "feed_forward.down_proj", spec.hidden, spec.intermediate))
    return found


def fused(spec: TowerSpec) -> list[tuple[str, ...]]:
    """Slots that one matmul may serve: q, k, v and gate, up of every layer."""
    layers = [f"{spec.prefix}transformer.layers.{i}." for i in range(spec.layers)]
    return [
        names
        for p in layers
        for names in (
            tuple(f"{p}attention.{name}_proj" for name in "qkv"),
            tuple(f"{p}feed_forward.{name}_proj" for name in ("gate", "up")),
        )
    ]


def cuts(spec: TowerSpec) -> tuple[str, ...]:
    """Prefixes of slot names at which calibration may split the graph."""
    return tuple(f"{spec.prefix}transformer.layers.{i}." for i in range(spec.layers))


def live(spec: TowerSpec, cells: int) -> int:
    """Values alive at once in the widest place: scores and weights of attention and who sees whom, or the MLP."""
    patches = cells * spec.merge**2
    attention = (2 * spec.heads + 1) * patches**2 + 5 * patches * spec.hidden
    return max(attention, patches * (2 * spec.hidden + 3 * spec.intermediate))


def encoder(spec: TowerSpec, schemes: Schemes, places: int) -> Callable[..., torch.Tensor]:
    """encode(pixels float32 [cells, 3, cell, cell], rows int64 [cells, merge²], columns int64 [cells, merge²],
    images int64 [cells]) -> float32 [cells, merge², hidden].

    rows, columns: of every patch in its image, below `places`; the patches of a cell in rows. images: which image a
    cell is of; patches see those of their own.
    """
    import torch

    from compiler.dialect import edge

    linear = linears(slots(spec), schemes)
    by_row, by_column = _turns(spec, places)
    half = spec.head_dim // 2

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        out: torch.Tensor = edge.rms_norm(x, spec.prefix + name, spec.hidden, _EPS)
        return out

    def patches(pixels: torch.Tensor) -> torch.Tensor:
        name, edges = f"{spec.prefix}patch_conv", [spec.patch, spec.patch]
        shape, scheme = [spec.hidden, CHANNELS, *edges], scheme_arguments(schemes, name)
        x = edge.convolution(pixels, name, shape, *scheme, edges, [0, 0], [1, 1], 1)
        return norm(x.reshape(-1, spec.hidden, spec.merge**2).transpose(1, 2), "ln_pre")

    def turns(rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [patches, head_dim / 2]: the first half of them by the row, the second by the column."""
        row = torch.nn.functional.embedding(rows, by_row).reshape(-1, half).split(half // 2, -1)
        column = torch.nn.functional.embedding(columns, by_column).reshape(-1, half).split(half // 2, -1)
        return torch.cat([row[0], column[0]], -1), torch.cat([row[1], column[1]], -1)

    def together(images: torch.Tensor) -> torch.Tensor:
        """[patches, patches]: whether two patches are of one image."""
        of = images[:, None].expand(-1, spec.merge**2).reshape(-1)
        return of[:, None] == of[None]

    def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.split(half, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def attended(
        h: torch.Tensor, p: str, turned: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        qkv = linear(h, *(f"{p}{name}_proj" for name in "qkv")).split(spec.hidden, -1)
        q, k, v = (x.reshape(1, -1, spec.heads, spec.head_dim).transpose(1, 2) for x in qkv)
        # the default scale: keyword arguments are what importers lose
        out = torch.nn.functional.scaled_dot_product_attention(rotated(q, *turned), rotated(k, *turned), v, mask)
        return linear(out.transpose(1, 2).reshape(-1, spec.merge**2, spec.hidden), f"{p}o_proj")

    def mlp(h: torch.Tensor, p: str) -> torch.Tensor:
        gate, up = linear(h, f"{p}gate_proj", f"{p}up_proj").split(spec.intermediate, -1)
        acted = getattr(torch.nn.functional, spec.activation)(gate)
        return linear(acted * up, f"{p}down_proj")

    def encode(pixels: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        x, turned, mask = patches(pixels), turns(rows, columns), together(images)
        for i in range(spec.layers):
            layer = f"transformer.layers.{i}."
            h = norm(x, layer + "attention_norm")
            x = x + attended(h, f"{spec.prefix}{layer}attention.", turned, mask)
            x = x + mlp(norm(x, layer + "ffn_norm"), f"{spec.prefix}{layer}feed_forward.")
        return x

    return encode


def _turns(spec: TowerSpec, places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables [places, head_dim / 2], of cosines and then sines, for rows and for columns, which take the even and the
    odd frequencies. The arithmetic is transformers' own, in its order."""
    import torch

    exponent = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    frequencies = 1.0 / spec.theta**exponent
    angles = torch.arange(places, dtype=torch.float32)[:, None] * frequencies
    row, column = (torch.cat([part.cos(), part.sin()], -1) for part in (angles[:, 0::2], angles[:, 1::2]))
    return row, column
