"""What loaders of SmolVLM read beside weights, whichever runtime they are of: config.json and the processor's files.

They disagree over defaults and over which file they believe: transformers 4 left out of config.json what equals a
default, and no runtime has the same ones; transformers 5 writes one composite processor_config.json, and every other
runtime reads the older preprocessor_config.json beside it. So every value that one of them reads is written out, in
each place where one of them looks, from the geometry and from the description that travels as preprocessing.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from artifacts.documents import read_json
from artifacts.formats import preprocessing
from compiler.config import read_config
from compiler.models.decoder import DecoderSpec
from compiler.processor import IMAGES, PROCESSOR
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About

FAMILY = "smolvlm2"
_TEMPLATE, _OLD_TEMPLATE, _TOKENIZER = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
_DROPPED = ("quantization_config", "torch_dtype", "_name_or_path", "auto_map", "model_file")
_FPS = 1  # of mlx-swift's reader, which takes no checkpoint that says nothing of clips


def text_spec(job: Job) -> DecoderSpec:
    """The geometry of the text side."""
    return DecoderSpec(**job.model.geometry["text"])


def explicit_config(job: BuildJob) -> dict[str, Any]:
    """config.json of the checkpoint, with nothing of either side left to a default."""
    source = read_config(job.source) if (job.source / "config.json").exists() else job.weights.config
    spec, tower, constants = text_spec(job), job.model.geometry["vision"], job.model.constants
    text = {
        "model_type": spec.model_type,
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.eps,
        "max_position_embeddings": spec.max_positions,
        "hidden_act": "silu",
        "rope_parameters": spec.rope,
        "rope_theta": spec.rope["rope_theta"],
    }
    vision = {
        "model_type": "smolvlm_vision",
        "hidden_size": tower["hidden"],
        "intermediate_size": tower["intermediate"],
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": tower["heads"],
        "num_channels": 3,
        "image_size": tower["image"],
        "patch_size": tower["patch"],
        "layer_norm_eps": tower["eps"],
        "hidden_act": "gelu_pytorch_tanh",
    }
    return _cleaned(source) | {
        "model_type": "smolvlm",
        "architectures": ["SmolVLMForConditionalGeneration"],
        "vocab_size": spec.vocab,
        "image_token_id": constants["image_token_id"],
        "scale_factor": constants["scale_factor"],
        "eos_token_id": list(spec.eos),
        # table and head are two tensors here, each with a scheme of its own
        "tie_word_embeddings": False,
        "text_config": _cleaned(source.get("text_config") or {}) | text | {"tie_word_embeddings": False},
        "vision_config": _cleaned(source.get("vision_config") or {}) | vision,
    }


def _cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _DROPPED}


def write_processor(job: BuildJob, folder: Path) -> None:
    """processor_config.json, preprocessor_config.json and the chat template, where preprocessing.json and the
    tokenizer's files lie there."""
    if not (folder / preprocessing.PREPROCESSING).is_file():
        return
    found = preprocessing.read(folder / preprocessing.PREPROCESSING)
    assert isinstance(found, preprocessing.Smolvlm)
    images, video = found.images, found.video
    size, tile = {"longest_edge": images.longest_edge}, {"longest_edge": images.tile}
    decided = {
        "image_processor_type": "SmolVLMImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_image_splitting": images.split,
        "size": size,
        "max_image_size": tile,
        "resample": Resampling[images.resample.upper()].value,
        "rescale_factor": images.normalisation.rescale,
        "image_mean": list(images.normalisation.mean),
        "image_std": list(images.normalisation.std),
    }
    composite, older = (_document(job.source / name) for name in (PROCESSOR, IMAGES))
    fps, most, edge = (video.fps, video.max_frames, video.longest_edge) if video else (_FPS, 1, images.tile)
    sampling = {
        "fps": int(fps) if fps == int(fps) else fps,  # a reader in Swift takes whole numbers alone
        "max_frames": most,
        "video_size": {"longest_edge": edge},
    }
    own = {"processor_class": "SmolVLMProcessor", "image_seq_len": images.tokens_per_tile}
    inner = composite.get("image_processor", {}) | decided
    _write(folder / PROCESSOR, composite | own | {"image_processor": inner})
    _write(folder / IMAGES, older | decided | own | {"video_sampling": sampling})
    _write_template(job.source, folder)


def _write_template(source: Path, folder: Path) -> None:
    """The chat template in a file of its own, where mlx-vlm looks, and in tokenizer_config.json, where transformers.js
    does."""
    tokenizer = _document(folder / _TOKENIZER)
    template = tokenizer.get("chat_template") or _document(source / _OLD_TEMPLATE).get("chat_template")
    if (folder / _TEMPLATE).is_file():
        template = (folder / _TEMPLATE).read_text(encoding="utf-8")
    if isinstance(template, str):
        (folder / _TEMPLATE).write_text(template, encoding="utf-8")
        _write(folder / _TOKENIZER, tokenizer | {"chat_template": template})


def _document(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def stored_twice(job: Job) -> str:
    """A sentence of README.md, where table and head are the same weights."""
    if not text_spec(job).tied:
        return ""
    return " The table of embeddings and the head are the same weights; this layout has each where it is used, twice."


def image_text_about(job: Job) -> About:
    """How README.md begins."""
    tokens, tiles = job.model.constants["max_tokens"], job.model.constants["max_tiles"]
    purpose = f" for at most {tiles:,} tiles of an image at once and {tokens:,} tokens of context"
    return About("Vision tower, embeddings and text decoder", "image-text-to-text", purpose)
