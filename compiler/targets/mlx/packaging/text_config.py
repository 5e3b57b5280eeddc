"""config.json of an MLX package, written so that mlx-lm, mlx-swift and transformers read the same model from it.

They disagree over defaults and over where a value lives, silently: mlx-lm's llama reads `rope_theta` and
`rope_scaling` and knows no `rope_parameters`; its ministral3 reads `rope_parameters` and nothing else; a missing
`tie_word_embeddings` is true here and false there; YaRN's magnitude is derived from different keys. So every value
that one of them reads is written out, in each place where one of them looks.

What no spelling can make equal is refused by `unreadable`. Knows no weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from compiler.models.decoder import WRAPPERS, DecoderSpec
from compiler.slots import HALF, Schemes, Slot
from compiler.targets.mlx.geometry import stored

WRAPPED_PREFIX = "language_model."
_DROPPED = ("quantization_config", "torch_dtype", "_name_or_path", "auto_map", "model_file")


def is_wrapped(source: Mapping[str, Any]) -> bool:
    """Whether the checkpoint's text decoder is a part of a larger model; its package then keeps that form."""
    return source.get("model_type") in WRAPPERS


def tensor_prefix(source: Mapping[str, Any]) -> str:
    """What mlx-lm puts before the slot names of this checkpoint."""
    return WRAPPED_PREFIX if is_wrapped(source) else ""


def unreadable(spec: DecoderSpec) -> list[str]:
    """What mlx-lm's model class cannot be told, one sentence each."""
    found = []
    if spec.query_beta and spec.model_type != "ministral3":
        found.append(
            f"mlx-lm scales queries by position (llama_4_scaling_beta) in ministral3, not in {spec.model_type}"
        )
    if spec.rope["rope_type"] == "yarn":
        if spec.rope.get("truncate", True) is False:
            found.append("mlx-lm always truncates YaRN's correction range, the checkpoint says truncate: false")
        if float(spec.rope["factor"]) <= 1 and spec.rope.get("attention_factor") not in (None, 1.0):
            found.append("mlx-lm cannot be given an attention_factor where YaRN's factor is 1 or less")
    return found


def package_config(source: Mapping[str, Any], spec: DecoderSpec, slots: list[Slot], schemes: Schemes) -> dict[str, Any]:
    """The whole config.json, sorted as mlx-lm writes it. source: the checkpoint's own."""
    config = _cleaned(source)
    config.pop("vision_config", None)
    if is_wrapped(source):
        config["text_config"] = _cleaned(source["text_config"]) | text_values(spec, source["text_config"])
        config |= {"tie_word_embeddings": spec.tied, "dtype": "float16"}
    else:
        config |= text_values(spec, source)
    prefix = tensor_prefix(source)
    # mlx-swift drops the prefix of a wrapped decoder before it looks a module up, so there each has both names
    if (quantization := quantization_section(slots, schemes, lambda name: (prefix + name, name))) is not None:
        config |= {"quantization": quantization, "quantization_config": quantization}
    return dict(sorted(config.items()))


def _cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _DROPPED}


def text_values(spec: DecoderSpec, source: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of the decoder that a reader could otherwise take from a default of its own."""
    rope = rope_parameters(spec)
    values: dict[str, Any] = {
        "model_type": spec.model_type,
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.eps,
        "tie_word_embeddings": spec.tied,
        "max_position_embeddings": spec.max_positions,
        "sliding_window": None,
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "dtype": "float16",
    }
    if "layer_types" in source:
        values["layer_types"] = ["full_attention"] * spec.layers
    if spec.model_type != "ministral3":
        values["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return values


def rope_parameters(spec: DecoderSpec) -> dict[str, Any]:
    """Rotary parameters with nothing left to a default."""
    rope = {key: value for key, value in spec.rope.items() if value is not None}
    if "type" in rope:  # read before rope_type by mlx-lm, after it by transformers
        rope["type"] = rope["rope_type"]
    if rope["rope_type"] in ("yarn", "llama3") or spec.model_type == "ministral3":
        rope["original_max_position_embeddings"] = spec.original_positions
    if spec.model_type == "ministral3":
        rope["llama_4_scaling_beta"] = spec.query_beta
    if rope["rope_type"] == "yarn":
        rope |= {"beta_fast": rope.get("beta_fast") or 32.0, "beta_slow": rope.get("beta_slow") or 1.0}
        rope |= dict(zip(("mscale", "mscale_all_dim"), _magnitudes(rope), strict=True))
    return rope


def _magnitudes(rope: Mapping[str, Any]) -> tuple[float, float]:
    """YaRN's mscale and mscale_all_dim from which both derive the same factor on cos and sin.

    transformers takes attention_factor, else the ratio of both magnitudes, else mscale 1 over 1. mlx-lm knows no
    attention_factor, and divides by the magnitude of mscale_all_dim, which is 1 for 0.
    """
    if (factor := rope.get("attention_factor")) is not None:
        scale = float(rope["factor"])
        return (factor - 1) / (0.1 * math.log(scale)) if scale > 1 else 1.0, 0.0
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return rope["mscale"], rope["mscale_all_dim"]
    return 1.0, 0.0


def quantization_section(
    slots: list[Slot], schemes: Schemes, modules: Callable[[str], tuple[str, ...]]
) -> dict[str, Any] | None:
    """The commonest scheme as the default, the others by module; None when nothing is quantized.

    modules: by which names loaders look a slot's module up.
    """
    quantized = {s.name: stored(schemes[s.name], s.columns) for s in slots if schemes.get(s.name, HALF).bits != 16}
    if not quantized:
        return None
    sizes: Counter[tuple[int, int]] = Counter()
    for slot in slots:
        if slot.name in quantized:
            sizes[quantized[slot.name].group, quantized[slot.name].bits] += slot.rows * slot.columns
    default = sizes.most_common(1)[0][0]
    section: dict[str, Any] = {"group_size": default[0], "bits": default[1], "mode": "affine"}
    for name, scheme in quantized.items():
        if (scheme.group, scheme.bits) != default:
            own = {"group_size": scheme.group, "bits": scheme.bits, "mode": "affine"}
            section |= dict.fromkeys(modules(name), own)
    return section
