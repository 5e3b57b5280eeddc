"""Full-size checkpoints of random weights: the real geometry in the Hub's layout, distinct values in every layer.

python -m tests.bench.synthetic ministral-3-3b|600m|smolvlm2-256m|smolvlm2-500m|smolvlm2-2.2b FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
_SHARD_BYTES = 4_600_000_000
_BLOCK = 1 << 22
_YARN = {
    "rope_type": "yarn",
    "type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "max_position_embeddings": 262144,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_COMMON = {
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144,
    "rope_parameters": _YARN,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
GEOMETRIES: dict[str, dict[str, int]] = {
    "ministral-3-3b": {
        "hidden_size": 3072,
        "num_hidden_layers": 26,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9216,
        "vocab_size": 131072,
    },
    "600m": {
        "hidden_size": 1536,
        "num_hidden_layers": 20,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 4608,
        "vocab_size": 32768,
    },
}


def make_checkpoint(folder: Path, geometry: str, seed: int = 0) -> Path:
    """Write a sharded bf16 checkpoint; an existing one is kept. Memory: one block.

    geometry: of GEOMETRIES, with a tokenizer, or of a recipe in recipes/smolvlm2, with neither tokenizer nor processor.
    """
    if (folder / "model.safetensors.index.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any]
    if geometry in GEOMETRIES:
        config = {**_COMMON, **GEOMETRIES[geometry]}
        tiny = ROOT / "recipes" / "checkpoints" / "tiny-ministral3"
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
            if (tiny / name).exists():
                shutil.copyfile(tiny / name, folder / name)
    else:
        config = json.loads((ROOT / "recipes" / "smolvlm2" / f"{geometry}.config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shards = _shards(_shapes(config))
    rng = np.random.default_rng(seed)
    table = {}
    for at, shard in enumerate(shards):
        name = f"model-{at + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, shard, rng)
        table |= dict.fromkeys(shard, name)
    total = sum(2 * int(np.prod(shape)) for shard in shards for shape in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    from compiler.models.base import read_model

    return {slot.tensor: slot.shape for slot in read_model(config, None, 2).slots}


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        count = 2 * int(np.prod(shape))
        if size + count > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += count
    return shards


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            left = int(np.prod(shape))
            while left:
                count = min(left, _BLOCK)
                values = rng.standard_normal(count, np.float32)
                values *= 0.02
                if len(shape) == 1 and name.endswith("weight"):  # a norm is near one
                    values += 1
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).data)
                left -= count


if __name__ == "__main__":
    make_checkpoint(Path(sys.argv[2]), sys.argv[1])
