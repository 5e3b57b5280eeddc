"""State dicts of LivePortrait: four bare ones, and three in stitching_retargeting_module.pth, named "module.*" each.

Source: github.com/KwaiVGI/LivePortrait, src/utils/helper.py, `load_model`. Knows names and shapes only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.adopt.shapes import Shapes
from compiler.models.liveportrait_networks import APPEARANCE, GENERATOR, MOTION, STITCHING, WARPING
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# norm1 stands before a convolution, behind a sum: no weight can take it
BATCH_NORMS = (
    (r"(.*3dr\d+)\.norm1", r"\1.norm1"),
    (r"(.*3dr\d+)\.norm2", r"\1.conv1"),
    (r"(dense_motion_network)\.norm", r"\1.compress"),
    (r"(.*)\.norm", r"\1.conv"),
)
UNUSED = ("detector.head.*",)
PARTS = {
    APPEARANCE: "the appearance feature extractor",
    MOTION: "the motion extractor",
    WARPING: "the warping module",
    GENERATOR: "the SPADE generator",
    STITCHING: "the stitching and retargeting modules",
}
REQUIRED = tuple(PARTS)
CONFIG: dict[str, Any] = {}
_MLPS = {"stitching": "retarget_shoulder", "eye": "retarget_eye", "lip": "retarget_mouth"}


def transformed(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """See `Published`: the factors and biases of a response [1, 1, 1, channels] become vectors."""
    return {
        name: tensor.reshape(-1) if name.endswith((".grn.gamma", ".grn.beta")) else tensor
        for name, tensor in state.items()
    }


def recognized(shapes: Shapes) -> tuple[str, dict[str, Any]] | None:
    """See `Published`. Each file gives a section of the project's models.yaml."""
    if "second.weight" in shapes:
        return APPEARANCE, _section("appearance_feature_extractor", _appearance(shapes))
    if "detector.fc_kp.weight" in shapes:
        return MOTION, _section("motion_extractor", _motion(shapes))
    if any(name.startswith("dense_motion_network.") for name in shapes):
        return WARPING, _section("warping_module", _warping(shapes))
    if any(name.startswith("G_middle_0.") for name in shapes):
        return GENERATOR, _section("spade_generator", _generator(shapes))
    if any(name.startswith("retarget_") for name in shapes):
        found = {name: {"hidden_sizes": _hidden(shapes, f"{dict_}.mlp")} for name, dict_ in _MLPS.items()}
        return STITCHING, _section("stitching_retargeting_module", found)
    return None


def _section(name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_params": found}


def _appearance(shapes: Shapes) -> dict[str, Any]:
    blocks = {name.split(".")[1] for name in shapes if name.startswith("resblocks_3d.")}
    features, channels = shapes.size("second.weight"), shapes.size("resblocks_3d.3dr0.conv1.weight")
    return {
        "block_expansion": shapes.size("first.conv.weight"),
        "num_down_blocks": shapes.count("down_blocks"),
        "max_features": features,
        "reshape_channel": channels,
        "reshape_depth": features // channels,
        "num_resblocks": len(blocks),
    }


def _motion(shapes: Shapes) -> dict[str, Any]:
    down = "detector.downsample_layers"
    return {
        "num_kp": shapes.size("detector.fc_kp.weight") // 3,
        "num_bins": shapes.size("detector.fc_pitch.weight"),
        "dims": [shapes.size(f"{down}.{i}.{min(i, 1)}.weight") for i in range(shapes.count(down))],
        "depths": [shapes.count(f"detector.stages.{i}") for i in range(shapes.count("detector.stages"))],
    }


def _warping(shapes: Shapes) -> dict[str, Any]:
    dense = "dense_motion_network"
    blocks = shapes.count(f"{dense}.hourglass.encoder.down_blocks")
    last = blocks - 1
    features, channels = shapes.size("third.conv.weight", 1), shapes.size(f"{dense}.compress.weight", 1)
    if f"{dense}.occlusion.weight" not in shapes:
        raise CheckpointError(
            f"{shapes.path}: has no {dense}.occlusion; without a map of occlusion it is not supported"
        )
    return {
        "num_kp": shapes.size(f"{dense}.mask.weight") - 1,
        **_expanded(shapes.size("third.conv.weight")),
        "max_features": features,
        "reshape_channel": channels,
        "dense_motion_params": {
            "block_expansion": shapes.size(f"{dense}.hourglass.decoder.up_blocks.{last}.conv.weight"),
            "max_features": shapes.size(f"{dense}.hourglass.encoder.down_blocks.{last}.conv.weight"),
            "num_blocks": blocks,
            "reshape_depth": features // channels,
            "compress": shapes.size(f"{dense}.compress.weight"),
        },
    }


def _generator(shapes: Shapes) -> dict[str, Any]:
    shuffled = "conv_img.0.weight" in shapes
    warped = shapes.size("fc.weight", 1)
    return {
        **_expanded(warped),
        "max_features": warped,
        "out_channels": shapes.size("up_1.conv_1.weight"),
        "nhidden": shapes.size("G_middle_0.norm_0.mlp_shared.0.weight"),
        "upscale": math.isqrt(shapes.size("conv_img.0.weight") // 3) if shuffled else 1,
    }


def _expanded(channels: int) -> dict[str, int]:
    """As models.yaml has it: doubled by each block that goes down, of which it has two."""
    return {"block_expansion": max(1, channels // 4), "num_down_blocks": 2}


def _hidden(shapes: Shapes, module: str) -> list[int]:
    names = [f"{module}.{at}.weight" for at in range(len(shapes))]
    return [shapes.size(name) for name in names if name in shapes][:-1]
