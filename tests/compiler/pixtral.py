"""Small Ministral 3 checkpoints with a Pixtral tower as transformers saves them: random weights, odd sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.compiler.conftest import YARN

IMAGE_TOKEN = 7


@dataclass(frozen=True)
class Geometry:
    """Sizes of a checkpoint. image: the longest edge that it knows, in pixels."""

    image: int = 224
    patch: int = 14
    merge: int = 2
    tied: bool = True
    vision_heads: int = 4
    vision_hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 96
    layers: int = 2
    activation: str = "silu"
    bias: bool = False
    vocab: int = 160
    image_token: int = IMAGE_TOKEN

    def config(self) -> Any:
        from transformers import Mistral3Config

        text = {
            "model_type": "ministral3",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": 96,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": 32,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-6,
            "rope_parameters": YARN,
            "sliding_window": None,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        vision = {
            "model_type": "pixtral",
            "hidden_size": self.vision_hidden,
            "intermediate_size": 96,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image,
            "patch_size": self.patch,
            "hidden_act": self.activation,
        }
        return Mistral3Config(
            text_config=text,
            vision_config=vision,
            image_token_index=self.image_token,
            spatial_merge_size=self.merge,
            multimodal_projector_bias=self.bias,
            tie_word_embeddings=self.tied,
        )


SMALL = Geometry()
GEOMETRIES = {
    "tied": SMALL,
    "untied, biases, gelu": Geometry(
        patch=16, tied=False, vision_heads=2, vision_hidden=96, heads=3, kv_heads=1, activation="gelu", bias=True
    ),
    "nine patches a token": Geometry(image=210, patch=10, merge=3, vision_heads=8, hidden=32),
    "every patch a token": Geometry(image=128, patch=16, merge=1, vision_heads=1, vision_hidden=32),
}


def reference(geometry: Geometry, seed: int = 0) -> Any:
    """transformers' model in float32, with weights of bfloat16 that make every part of it matter."""
    from transformers import Mistral3ForConditionalGeneration

    torch.manual_seed(seed)
    model = Mistral3ForConditionalGeneration(geometry.config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape)
            if parameter.ndim == 1:
                values = values / 8 + name.endswith(("norm.weight", "ln_pre.weight"))
            else:
                values *= (4 if "embed_tokens" in name else 1) / parameter[0].numel() ** 0.5
            parameter.copy_(values.bfloat16())
    return model


def write_pixtral(folder: Path, geometry: Geometry = SMALL, seed: int = 0) -> Path:
    """A checkpoint folder."""
    reference(geometry, seed).save_pretrained(folder)
    return folder


def image(geometry: Geometry, rows: int, columns: int) -> NDArray[np.float32]:
    """An image [3, height, width] of so many cells, as normalized pixels, each size with its own."""
    cell = geometry.patch * geometry.merge
    random = np.random.default_rng([rows, columns])
    return random.uniform(-1, 1, (3, rows * cell, columns * cell)).astype(np.float32)


def cells_of(picture: NDArray[np.float32], patch: int, merge: int) -> dict[str, NDArray[Any]]:
    """What the vision entry takes for one image, written down patch by patch."""
    cell = patch * merge
    height, width = picture.shape[1] // cell, picture.shape[2] // cell
    pixels, rows, columns = [], [], []
    for row in range(height):
        for column in range(width):
            pixels.append(picture[:, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell])
            rows.append([row * merge + down for down in range(merge) for _ in range(merge)])
            columns.append([column * merge + right for _ in range(merge) for right in range(merge)])
    return {
        "pixels": np.stack(pixels),
        "rows": np.array(rows, np.int64),
        "columns": np.array(columns, np.int64),
        "images": np.zeros(height * width, np.int64),
    }
