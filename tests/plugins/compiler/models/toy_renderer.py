"""A family of two components with a state, as one file: a recurrent cell that feeds a convolutional head.

Image in, image out: cell(image, hidden) -> features, hidden; head(features) -> picture. It is no model that anybody
needs; it shows that nothing past a family's file has to know the family.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from compiler.models.base import Component, Entry, Model, Port, scheme_arguments
from compiler.slots import Schemes, Slot

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("toy_renderer",)


def read(config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int) -> Model:
    size, hidden, channels = config["image_size"], config["hidden_size"], config["channels"]
    pixels = 3 * size * size
    image = Port("image", "float32", (1, 3, size, size))
    features = Port("features", "float32", (1, hidden))
    picture = Port("picture", "float32", (1, 3, size, size))
    cell = Component(
        name="cell",
        slots=(
            Slot("cell.input", "cell.input.weight", hidden, pixels, "linear"),
            Slot("cell.recurrent", "cell.recurrent.weight", hidden, hidden, "linear"),
            Slot("cell.bias", "cell.bias", 1, hidden, "bias"),
        ),
        entries=(Entry("step", (image,), (features,)),),
        module=partial(_cell, hidden, pixels),
        live=partial(_live, pixels + 2 * hidden),
        states=(Port("hidden", "float32", (1, hidden)),),
    )
    head = Component(
        name="head",
        slots=(
            Slot("head.spread", "head.spread.weight", channels * size * size, hidden, "linear"),
            Slot("head.middle", "head.middle.weight", channels, channels * 9, "convolution", (3, 3)),
            Slot("head.middle_bias", "head.middle.bias", 1, channels, "bias"),
            Slot("head.last", "head.last.weight", 3, channels * 9, "convolution", (3, 3)),
            Slot("head.last_bias", "head.last.bias", 1, 3, "bias"),
        ),
        entries=(Entry("render", (features,), (picture,)),),
        module=partial(_head, hidden, channels, size),
        live=partial(_live, 2 * channels * size * size),
        cuts=("head.middle",),
    )
    return Model("toy_renderer", (cell, head), "plain", {"image_size": size}, config, config)


def _live(values: int, entry: Entry, sizes: Mapping[str, int]) -> int:
    return values


def _cell(hidden: int, pixels: int, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    import torch

    from compiler.dialect import edge

    class Cell(torch.nn.Module):
        def forward(self, image: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            flat = image.reshape(1, pixels)
            x = edge.linear(flat, ["cell.input"], [hidden], pixels, *scheme_arguments(schemes, "cell.input"))
            h = edge.linear(state, ["cell.recurrent"], [hidden], hidden, *scheme_arguments(schemes, "cell.recurrent"))
            state = torch.tanh(edge.bias(x + h, ["cell.bias"], [hidden], -1))
            return state * 0.5, state

    return Cell()


def _head(hidden: int, channels: int, size: int, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    import torch

    from compiler.dialect import edge

    def conv(x: torch.Tensor, name: str, outputs: int) -> torch.Tensor:
        shape = [outputs, channels, 3, 3]
        y = edge.convolution(x, name, shape, *scheme_arguments(schemes, name), [1, 1], [1, 1], [1, 1], 1)
        out: torch.Tensor = edge.bias(y, [f"{name}_bias"], [outputs], 1)
        return out

    class Head(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor]:
            rows = channels * size * size
            x = edge.linear(features, ["head.spread"], [rows], hidden, *scheme_arguments(schemes, "head.spread"))
            x = torch.nn.functional.silu(x.reshape(1, channels, size, size))
            x = torch.nn.functional.gelu(conv(x, "head.middle", channels), approximate="tanh")
            return (torch.sigmoid(conv(x, "head.last", 3)),)

    return Head()
