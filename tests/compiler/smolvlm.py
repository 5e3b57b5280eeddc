"""Small SmolVLM checkpoints as transformers saves them: random weights, geometries with every odd size; and the trained
one that ships, quantized as its quickstart has it, with questions about scenes that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artifacts.media.images import Pixels
from artifacts.media.prepare import prepare
from artifacts.media.tiles import normalise
from compiler.processor import from_processor
from compiler.slots import HALF, Scheme
from compiler.targets import target_options
from compiler.targets.base import BuildJob
from recipes.checkpoints.scenes import SceneExample, held_out_scenes
from tests.compiler.conftest import original, quantized_job

TINY = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-smolvlm2"


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


def tiny_job(folder: Path, target: str, decoder: Scheme) -> BuildJob:
    """The checkpoint that ships: its tower in 8 bits, the tower's convolution in half precision. folder: a new one."""
    model, _ = original(TINY)
    schemes = {s.name: Scheme(8, 32) for s in model.component("vision").slots if not s.is_vector}
    schemes |= {s.name: HALF for s in model.slots if s.kind == "convolution"}
    return quantized_job(folder, TINY, target_options()[target](), decoder, schemes, max_tokens=256)


@dataclass(frozen=True)
class Question:
    """About a held-out scene, as the chat template writes it and our own reader prepares it.

    ids: the prompt's, with image tokens; tiles: float32 [tiles, 3, size, size].
    """

    example: SceneExample
    prompt: str
    image: Pixels
    ids: list[int]
    tiles: np.ndarray[Any, np.dtype[np.float32]]


def questions(count: int) -> list[Question]:
    """About the scenes of the checkpoint that ships."""
    from tokenizers import Tokenizer

    tokenizer, description = Tokenizer.from_file(str(TINY / "tokenizer.json")), from_processor(TINY)
    found = []
    for example in held_out_scenes(count, first=5000):
        prompt = f"<|im_start|>User:<image>{example.question}<end_of_utterance>\nAssistant:"
        image: Pixels = np.asarray(example.image.convert("RGB"))
        ours = prepare(prompt, description, [image])
        ids = tokenizer.encode(ours.text, add_special_tokens=False).ids
        tiles = normalise(ours.pixels[0], description.images.normalisation)
        found.append(Question(example, prompt, image, ids, tiles))
    return found
