"""Models that are none: what the dialect and PyTorch can say of shapes that decoders never have. Found by child
processes, so it imports no pytest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from compiler.models.base import Component, Entry, Model, Port, scheme_arguments
from compiler.slots import Schemes, Slot

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

FRAMES = 9


def model(refused: str = "") -> Model:
    """One component of many ops and ranks, with a free dimension and a state. refused: an op that it calls too."""
    slots = (
        Slot("p.mix", "p.mix", 48, 32, "linear"),
        Slot("p.first_bias", "p.first_bias", 1, 16, "bias"),
        Slot("p.second_bias", "p.second_bias", 1, 32, "bias"),
        Slot("p.norm", "p.norm", 1, 32, "norm"),
        Slot("p.words", "p.words", 20, 32, "embedding"),
        Slot("p.letters", "p.letters", 7, 64, "embedding"),
        Slot("p.line", "p.line", 16, 32 * 3, "convolution", (3,)),
        Slot("p.plane", "p.plane", 8, 8, "convolution", (2, 2)),
        Slot("p.space", "p.space", 4, 32, "convolution", (2, 4, 4)),
    )
    run = Entry(
        "run",
        (
            Port("x", "float32", (1, "frames", 32)),
            Port("image", "float32", (1, 4, 8, 8)),
            Port("ids", "int64", (5,), below=7),
        ),
        (
            Port("mixed", "float32", (1, "frames", 48)),
            Port("line", "float32", (1, 16, "frames")),
            Port("plane", "float32", (1, 8, 4, 4)),
            Port("space", "float32", (1, 4, 3, 5, 5)),
            Port("rows", "float32", (1, 4, 2, 48)),
            Port("words", "float32", (5, 96)),
        ),
        {"frames": (1, FRAMES)},
    )
    state = Port("window", "float32", (4, 32))
    component = Component("probe", slots, (run,), partial(_module, refused), _live, (state,))
    return Model("probe", (component,), "plain", {}, {}, {})


def _live(entry: Entry, sizes: Mapping[str, int]) -> int:
    return 1000


def _module(refused: str, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    import torch
    import torch.nn.functional as F

    from compiler.dialect import edge

    def of(name: str) -> tuple[int, int, bool]:
        return scheme_arguments(schemes, name)

    def conv(x: Tensor, name: str, shape: list[int], stride: int, padding: int, dilation: int, groups: int) -> Any:
        rank = len(shape) - 2
        return edge.convolution(x, name, shape, *of(name), [stride] * rank, [padding] * rank, [dilation] * rank, groups)

    def mix(x: Tensor) -> Any:
        return edge.bias(
            edge.linear(x, ["p.mix"], [48], 32, *of("p.mix")), ["p.first_bias", "p.second_bias"], [16, 32], -1
        )

    class Probe(torch.nn.Module):
        def forward(self, x: Tensor, image: Tensor, ids: Tensor, window: Tensor) -> tuple[Tensor, ...]:
            table = torch.tensor([0.5, 1.0, 2.0, 4.0])
            normed = F.layer_norm(x, (32,)) + window.mean(0)
            scores = torch.softmax(normed @ window.T * table, -1)
            mixed = mix(normed + scores @ window)
            line = conv(x.transpose(1, 2), "p.line", [16, 32, 3], 1, 1, 1, 1)
            plane = conv(image, "p.plane", [8, 2, 2, 2], 2, 0, 1, 2)
            space = conv(image.reshape(1, 1, 4, 8, 8), "p.space", [4, 1, 2, 4, 4], 1, 0, 1, 1)
            rows = mix(image.reshape(1, 4, 2, 32)[:, :, :, :]) * 2
            words = edge.embedding(ids, "p.words", 20, 32, *of("p.words"))
            letters = edge.embedding(ids, "p.letters", 7, 64, *of("p.letters"))
            after = edge.rms_norm(torch.cat([window[1:], words[:1, 0:32]]), "p.norm", 32, 1e-6)
            if refused:
                after = after + getattr(torch, refused)(after)
            return mixed, line, plane, space, rows, torch.cat([words, letters[:, 0:64]], 1), after

    return Probe()
