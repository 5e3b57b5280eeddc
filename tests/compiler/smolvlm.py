"""Small SmolVLM checkpoints as transformers saves them: random weights, geometries with every odd size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Geometry:
    """Sizes of a checkpoint; text: further keys of its text_config."""

    image: int
    patch: int
    scale: int
    tied: bool
    vision_heads: int
    heads: int
    kv_heads: int
    vision_hidden: int = 64
    hidden: int = 64
    head_dim: int = 16
    layers: int = 2

    @property
    def tokens(self) -> int:
        return (self.image // self.patch // self.scale) ** 2

    def config(self) -> Any:
        from transformers import SmolVLMConfig

        text = {
            "model_type": "llama",
            "vocab_size": 160,
            "hidden_size": self.hidden,
            "intermediate_size": 96,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "pad_token_id": 0,
        }
        vision = {
            "hidden_size": self.vision_hidden,
            "intermediate_size": 96,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image,
            "patch_size": self.patch,
        }
        return SmolVLMConfig(
            text_config=text,
            vision_config=vision,
            scale_factor=self.scale,
            image_token_id=7,
            tie_word_embeddings=self.tied,
        )


SMALL = Geometry(image=64, patch=16, scale=2, tied=True, vision_heads=4, heads=4, kv_heads=2)
GEOMETRIES = {
    "tied": SMALL,
    "untied": Geometry(
        image=56, patch=14, scale=4, tied=False, vision_heads=2, heads=3, kv_heads=1, hidden=96, head_dim=32
    ),
    # pixels behind the last whole patch, as the 2.2B has them, and a scale of 3
    "leftover pixels": Geometry(
        image=100, patch=16, scale=3, tied=True, vision_heads=8, heads=2, kv_heads=2, vision_hidden=96, hidden=32
    ),
    "every patch a token": Geometry(image=48, patch=16, scale=1, tied=False, vision_heads=1, heads=4, kv_heads=4),
}


def reference(geometry: Geometry, seed: int = 0) -> Any:
    """transformers' model in float32, with weights of bfloat16 that make every part of it matter."""
    from transformers import SmolVLMForConditionalGeneration

    torch.manual_seed(seed)
    model = SmolVLMForConditionalGeneration(geometry.config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape)
            if parameter.ndim == 1:
                values = values / 8 + ("norm" in name and name.endswith("weight"))
            else:
                values *= (4 if "embed_tokens" in name else 1) / parameter[0].numel() ** 0.5
            parameter.copy_(values.bfloat16())
    return model


def write_smolvlm(folder: Path, geometry: Geometry = SMALL, seed: int = 0) -> Path:
    """A checkpoint folder."""
    reference(geometry, seed).save_pretrained(folder)
    return folder
