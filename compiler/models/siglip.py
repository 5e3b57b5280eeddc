"""The SigLIP vision tower as SmolVLM has it: patches with learned positions, pre-norm layers, a last norm.

What another tower has otherwise is a function of its own inside `encoder`: how patches become states, the norm, what a
layer does. What follows a tower, such as a projection to the width of a decoder, is the
family's. The graph is written in the edge dialect and holds no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.config import Keys
from compiler.models.base import scheme_arguments
from compiler.models.layers import linears
from compiler.slots import Schemes, Slot
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

CHANNELS = 3
_MAX_PATCHES = 1 << 16


@dataclass(frozen=True)
class TowerSpec:
    """The geometry of a tower; sizes in elements, of images and patches in pixels.

    prefix: of the names of its slots, and of its tensors.
    """

    prefix: str
    hidden: int
    layers: int
    heads: int
    intermediate: int
    eps: float
    image: int
    patch: int

    @property
    def side(self) -> int:
        """Patches along an edge; pixels behind the last whole patch are not looked at."""
        return self.image // self.patch

    @property
    def patches(self) -> int:
        return self.side**2

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def read_tower(keys: Keys, prefix: str) -> TowerSpec:
    """Geometry from a vision_config. What it leaves out is what transformers takes: configs that version 4 saved leave
    out whatever equals the defaults.

    Raises CheckpointError naming the key.
    """
    keys.word("hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    keys.integer("num_channels", CHANNELS, CHANNELS, CHANNELS)
    hidden = keys.integer("hidden_size", 1, 1 << 16, 1152)
    heads = keys.integer("num_attention_heads", 1, 1 << 12, 16)
    if hidden % heads:
        raise CheckpointError(f"{keys.where}hidden_size {hidden} does not divide over num_attention_heads, {heads}")
    image, patch = keys.integer("image_size", 1, 1 << 14, 224), keys.integer("patch_size", 1, 1 << 12, 32)
    if patch > image:
        raise CheckpointError(f"{keys.where}patch_size {patch} is more than image_size, {image}")
    if (image // patch) ** 2 > _MAX_PATCHES:
        raise CheckpointError(
            f"{keys.where}image_size {image} has {(image // patch) ** 2} patches of patch_size {patch}; "
            f"at most {_MAX_PATCHES} are supported"
        )
    return TowerSpec(
        prefix=prefix,
        hidden=hidden,
        layers=keys.integer("num_hidden_layers", 1, 1 << 12, 12),
        heads=heads,
        intermediate=keys.integer("intermediate_size", 1, 1 << 20, 3072),
        eps=keys.number("layer_norm_eps", 0, 1, 1e-6),
        image=image,
        patch=patch,
    )


def slots(spec: TowerSpec) -> list[Slot]:
    """All slots in the order in which the graph reads them; their names are the tensors' without ".weight"."""

    def matrix(name: str, rows: int, columns: int) -> Iterator[Slot]:
        yield Slot(spec.prefix + name, f"{spec.prefix}{name}.weight", rows, columns, "linear")
        yield bias(name, rows)

    def bias(name: str, size: int) -> Slot:
        return Slot(f"{spec.prefix}{name}.bias", f"{spec.prefix}{name}.bias", 1, size, "bias")

    def norm(name: str) -> Iterator[Slot]:
        yield Slot(spec.prefix + name, f"{spec.prefix}{name}.weight", 1, spec.hidden, "norm")
        yield bias(name, spec.hidden)

    patch, places = "embeddings.patch_embedding", "embeddings.position_embedding"
    inputs, kernel = CHANNELS * spec.patch**2, (spec.patch, spec.patch)
    found = [
        Slot(spec.prefix + patch, f"{spec.prefix}{patch}.weight", spec.hidden, inputs, "convolution", kernel),
        bias(patch, spec.hidden),
        Slot(spec.prefix + places, f"{spec.prefix}{places}.weight", spec.patches, spec.hidden, "embedding"),
    ]
    for i in range(spec.layers):
        layer = f"encoder.layers.{i}."
        found += norm(layer + "layer_norm1")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found += matrix(f"{layer}self_attn.{name}", spec.hidden, spec.hidden)
        found += norm(layer + "layer_norm2")
        found += matrix(layer + "mlp.fc1", spec.intermediate, spec.hidden)
        found += matrix(layer + "mlp.fc2", spec.hidden, spec.intermediate)
    return [*found, *norm("post_layernorm")]


def fused(spec: TowerSpec) -> list[tuple[str, ...]]:
    """Slots that one matmul may serve: q, k, v of every layer."""
    layers = [f"{spec.prefix}encoder.layers.{i}.self_attn." for i in range(spec.layers)]
    return [tuple(f"{layer}{name}_proj" for name in "qkv") for layer in layers]


def cuts(spec: TowerSpec) -> tuple[str, ...]:
    """Prefixes of slot names at which calibration may split the graph."""
    return (*(f"{spec.prefix}encoder.layers.{i}." for i in range(spec.layers)), f"{spec.prefix}post_layernorm")


def live(spec: TowerSpec) -> int:
    """Values alive at once in the widest place, for each image: scores and weights of attention, or the MLP."""
    attention = 2 * spec.heads * spec.patches**2 + 5 * spec.patches * spec.hidden
    return max(attention, spec.patches * (2 * spec.hidden + 2 * spec.intermediate))


def encoder(spec: TowerSpec, schemes: Schemes) -> Callable[[torch.Tensor], torch.Tensor]:
    """encode(pixels float32 [images, 3, image, image]) -> float32 [images, patches, hidden], behind the last norm.

    Of images that fill their tile, as a processor that splits images makes them: no patch is masked. Raises
    CheckpointError for a number of patches at which transformers takes another position than the patch's own.
    """
    import torch

    from compiler.dialect import edge

    _check_positions(spec)
    linear = linears(slots(spec), schemes)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        found = edge.layer_norm(x, spec.prefix + name, spec.hidden, spec.eps)
        out: torch.Tensor = edge.bias(found, [f"{spec.prefix}{name}.bias"], [spec.hidden], -1)
        return out

    def patches(pixels: torch.Tensor) -> torch.Tensor:
        name, edges = f"{spec.prefix}embeddings.patch_embedding", [spec.patch, spec.patch]
        shape, scheme = [spec.hidden, CHANNELS, *edges], scheme_arguments(schemes, name)
        x = edge.convolution(pixels, name, shape, *scheme, edges, [0, 0], [1, 1], 1)
        x = edge.bias(x, [f"{name}.bias"], [spec.hidden], 1).reshape(-1, spec.hidden, spec.patches).transpose(1, 2)
        table = f"{spec.prefix}embeddings.position_embedding"
        at = torch.arange(spec.patches)[None]
        out: torch.Tensor = x + edge.embedding(at, table, spec.patches, spec.hidden, *scheme_arguments(schemes, table))
        return out

    def attended(h: torch.Tensor, p: str) -> torch.Tensor:
        qkv = linear(h, *(f"{p}{name}_proj" for name in "qkv")).split(spec.hidden, -1)
        q, k, v = (x.reshape(-1, spec.patches, spec.heads, spec.head_dim).transpose(1, 2) for x in qkv)
        # the default scale: keyword arguments are what importers lose
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return linear(out.transpose(1, 2).reshape(-1, spec.patches, spec.hidden), f"{p}out_proj")

    def mlp(h: torch.Tensor, p: str) -> torch.Tensor:
        return linear(torch.nn.functional.gelu(linear(h, f"{p}fc1"), approximate="tanh"), f"{p}fc2")

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        x = patches(pixels)
        for i in range(spec.layers):
            layer = f"encoder.layers.{i}."
            x = x + attended(norm(x, layer + "layer_norm1"), f"{spec.prefix}{layer}self_attn.")
            x = x + mlp(norm(x, layer + "layer_norm2"), f"{spec.prefix}{layer}mlp.")
        return norm(x, "post_layernorm")

    return encode


def _check_positions(spec: TowerSpec) -> None:
    """transformers looks positions up by fractions of the image, rounded in float32. At 32 and 27 patches along an
    edge, which SmolVLM2 has, each patch gets its own; at 19, 25, 29 and many more some get their neighbour's."""
    import torch

    n = spec.side
    edges = torch.arange(1 / n, 1.0, 1 / n)
    at = (torch.arange(n, dtype=torch.float32) * (1.0 / torch.tensor([n]))).clamp(max=1.0 - 1e-6)
    if torch.bucketize(at, edges, right=True).tolist() != list(range(n)):
        raise CheckpointError(
            f"config.json: vision_config.image_size {spec.image} has {n} patches of patch_size {spec.patch} along an "
            "edge; at that number transformers rounds some patches to their neighbour's position, which is not "
            "supported"
        )
