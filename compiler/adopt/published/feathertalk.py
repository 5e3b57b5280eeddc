"""State dicts of FeatherTalk and of Ultralight-Digital-Human: a U-Net in either variant, and FeatherHuBERT.

Source: github.com/anliyuan/FeatherTalk: train.py, model_factory.py, feather_hubert.py. Knows names and shapes only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.adopt.shapes import Shapes
from compiler.models.feathertalk import ENCODER, UNET

if TYPE_CHECKING:
    from torch import Tensor

# within a block, behind a convolution of the audio branch, and in MobileOne's fifth convolution
BATCH_NORMS = (
    *((rf"(.*\.conv)\.{at + 1}", rf"\1.{at}") for at in (0, 3, 6)),
    (r"(.*)\.bn(\d)", r"\1.conv\2"),
    (r"(.*\.block)\.1", r"\1.0"),
)
UNUSED: tuple[str, ...] = ()
PARTS = {UNET: "the U-Net", ENCODER: "FeatherHuBERT"}
REQUIRED = (UNET,)
CONFIG: dict[str, Any] = {"feather_hubert": None}  # where no part says otherwise


def transformed(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """See `Published`: nothing."""
    return state


def recognized(shapes: Shapes) -> tuple[str, dict[str, Any]] | None:
    """The prefix of a folded state dict, and what it says for config.json; None where it is none of these."""
    if "frontend.layers.0.conv.weight" in shapes:
        return ENCODER, {"feather_hubert": _encoder(shapes)}
    if "outc.conv.weight" in shapes:
        return UNET, _renderer(shapes)
    return None


def _encoder(shapes: Shapes) -> dict[str, Any]:
    channels = shapes.size("final_norm.weight")
    return {
        "channels": channels,
        "expansion": shapes.size("encoder.0.pw_expand.weight") // channels,
        "num_blocks": shapes.count("encoder"),
        "output_dim": shapes.size("proj.weight"),
        "frontend": [shapes.size(f"frontend.layers.{i}.conv.weight") for i in range(4)],
    }


def _renderer(shapes: Shapes) -> dict[str, Any]:
    mobileone = any("reparam_conv" in name for name in shapes)
    last, first = ("pointwise.reparam_conv", "depthwise.reparam_conv") if mobileone else ("conv.6", "conv.0")
    levels = ["inc.inconv", *(f"down{i}.maxpool_conv.double_conv.1" for i in range(1, 5))]
    channels = [shapes.size(f"{level}.{last}.weight") for level in levels]
    heard = shapes.size(f"audio_model.conv1.{first}.weight", 0 if mobileone else 1)
    wenet = (heard, shapes.size(f"audio_model.conv1.{last}.weight")) == (channels[2], channels[3])
    return {
        "variant": "mobileone" if mobileone else "original",
        "audio": "wenet" if wenet else "hubert",
        "channels": channels,
    }
