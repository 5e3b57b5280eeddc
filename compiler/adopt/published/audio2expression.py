"""State dicts of LAM_Audio2Expression: {"state_dict": {"module.backbone.*"}}, the streaming variant.

Source: github.com/aigc3d/LAM_Audio2Expression, engines/infer.py. Knows names and shapes only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.adopt.shapes import Shapes
from compiler.models.audio2expression import PREFIX
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

BATCH_NORMS: tuple[tuple[str, str], ...] = ()
UNUSED = (
    f"{PREFIX}audio_encoder.lm_head.*",
    f"{PREFIX}audio_encoder.masked_spec_embed",
    f"{PREFIX}identity_encoder.grus.*",
)
PARTS = {"": "Audio2Expression"}
REQUIRED = ("",)
CONFIG: dict[str, Any] = {}
_HEAD_DIM = 64  # of every wav2vec2 that is published; a state dict does not say


def transformed(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """See `Published`: nothing."""
    return state


def recognized(shapes: Shapes) -> tuple[str, dict[str, Any]] | None:
    """See `Published`."""
    if f"{PREFIX}output_proj.weight" not in shapes:
        return None
    if any(name.startswith(f"{PREFIX}identity_encoder.transformer_encoder.") for name in shapes):
        raise CheckpointError(
            f"{shapes.path}: is the offline variant, with {PREFIX}identity_encoder.transformer_encoder; only the "
            "streaming one is supported, lam_audio2exp_streaming"
        )
    encoder = f"{PREFIX}audio_encoder."
    features, layers, places = (
        f"{encoder}feature_extractor.conv_layers",
        f"{encoder}encoder.layers",
        "pos_conv_embed.conv",
    )
    hidden = shapes.size(f"{encoder}feature_projection.projection.weight")
    count = shapes.count(features)
    width = shapes.size(f"{PREFIX}output_proj.weight", 1)
    return "", {
        "wav2vec2": {
            "conv_dim": [shapes.size(f"{features}.{i}.conv.weight") for i in range(count)],
            "conv_kernel": [shapes.size(f"{features}.{i}.conv.weight", 2) for i in range(count)],
            "conv_stride": [5, *[2] * (count - 1)],
            "hidden_size": hidden,
            "num_hidden_layers": shapes.count(layers),
            "num_attention_heads": max(1, hidden // _HEAD_DIM),
            "intermediate_size": shapes.size(f"{layers}.0.feed_forward.intermediate_dense.weight"),
            "num_conv_pos_embeddings": shapes.size(f"{encoder}encoder.{places}.weight", 2),
            "num_conv_pos_embedding_groups": hidden // shapes.size(f"{encoder}encoder.{places}.weight", 1),
        },
        "num_identity_classes": shapes.size(f"{PREFIX}identity_encoder.id_mlp.weight", 1),
        "identity_feat_dim": shapes.size(f"{PREFIX}identity_encoder.id_mlp.weight"),
        "hidden_dim": width,
        "decoder_depth": shapes.count(f"{PREFIX}decoder.0"),
    }
