"""The geometry of a text decoder, read from a Hugging Face config and checked, key by key.

Whoever made a checkpoint wrote the values: each is read through `compiler.config.Keys`, which says what is wrong with
which. What must not live here: the graph that follows from it (`decoder.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.config import Keys
from compiler.tensors import CheckpointError

DECODERS = ("llama", "mistral", "ministral3", "qwen2", "qwen3", "smollm3")
WRAPPERS = ("mistral3",)
MODEL_TYPES = (*DECODERS, *WRAPPERS)
_MAX_POSITIONS = (1 << 31) - 1
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_ROPE_NEEDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
_ROPE_NUMBERS = {
    "factor": (1, 1e6),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
    "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6),
    "attention_factor": (1e-6, 1e6),
    "mscale": (0, 1e6),
    "mscale_all_dim": (0, 1e6),
    "llama_4_scaling_beta": (0, 1e6),
}
_ROPE_LENGTHS = ("original_max_position_embeddings", "max_position_embeddings")
_ROPE_KEYS = {"type", "rope_type", "rope_theta", "partial_rotary_factor", "truncate", *_ROPE_NUMBERS, *_ROPE_LENGTHS}


@dataclass(frozen=True)
class DecoderSpec:
    """The geometry of a decoder; sizes in elements.

    biases: the projections of every layer that have one. head_norms: whether queries and keys are normalized head by
    head before they are rotated. rotary: for each layer, whether they are rotated at all.
    """

    model_type: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    eps: float
    tied: bool
    max_positions: int
    original_positions: int
    rope: dict[str, Any]
    query_beta: float
    query_period: int
    biases: tuple[str, ...]
    head_norms: bool
    rotary: tuple[bool, ...]
    bos: int | None
    eos: tuple[int, ...]

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        return self.query_width + 2 * self.kv_width


def read_spec(config: Mapping[str, Any], wrapped: bool = False) -> DecoderSpec:
    """Geometry from a Hugging Face config (its text side where it wraps one).

    wrapped: it does, whatever its own `model_type`.
    Raises CheckpointError naming the key when the config is not of this family, or a value is not what it must be.
    """
    outer = inner = Keys(config)
    if wrapped or config.get("model_type") in WRAPPERS:
        inner = outer.section("text_config")
        if "text_config" not in outer:
            raise outer.error("text_config", f"must be an object in a {config.get('model_type')} config")
    kind = inner.values.get("model_type")
    if not isinstance(kind, str) or kind not in DECODERS:
        raise CheckpointError(
            f"{inner.where}model_type {kind!r} is not supported; decoders of type "
            f"{', '.join(DECODERS)} (also inside {', '.join(WRAPPERS)}) are"
        )

    def of(key: str) -> Keys:
        return inner if key in inner.values else outer

    of("hidden_act").word("hidden_act", ("silu",), "silu")
    _check_full_attention(kind, of)

    def integer(key: str, high: int, default: int | None = None) -> int:
        return of(key).integer(key, 1, high, default)

    hidden, heads = integer("hidden_size", 1 << 20), integer("num_attention_heads", 1 << 12)
    head_dim = integer("head_dim", 1 << 12, 128 if kind == "qwen3" else hidden // heads or None)
    if head_dim % 2:
        raise CheckpointError(f"{of('head_dim').where}head_dim {head_dim} is odd, which rotary positions cannot halve")
    kv_heads = integer("num_key_value_heads", 1 << 12, heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{of('num_key_value_heads').where}{heads} attention heads do not divide over {kv_heads} key-value heads"
        )
    layers = integer("num_hidden_layers", 1 << 12)
    vocab, max_positions = integer("vocab_size", 1 << 24), integer("max_position_embeddings", _MAX_POSITIONS)
    rope = _rope(of)
    # transformers ties what the whole model's config ties, whatever its text_config says
    whole = outer if "tie_word_embeddings" in outer.values else inner
    original_positions = rope.get("original_max_position_embeddings", max_positions)
    return DecoderSpec(
        model_type=kind,
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=integer("intermediate_size", 1 << 22),
        eps=of("rms_norm_eps").number("rms_norm_eps", 0, 1, 1e-6),
        tied=whole.flag("tie_word_embeddings", kind == "smollm3"),
        max_positions=max_positions,
        original_positions=original_positions,
        rope=rope,
        query_beta=float(rope.get("llama_4_scaling_beta", 0.0)),
        query_period=original_positions,
        biases=_biases(kind, of),
        head_norms=kind == "qwen3",
        rotary=_rotary_layers(kind, of, layers),
        bos=of("bos_token_id").integer("bos_token_id", 0, vocab - 1) if "bos_token_id" in of("bos_token_id") else None,
        eos=_tokens(of("eos_token_id"), "eos_token_id", vocab),
    )


def _check_full_attention(kind: str, of: Callable[[str], Keys]) -> None:
    """Raises CheckpointError for a window: which key says so differs between families."""
    switch = "use_sliding_window" if kind in ("qwen2", "qwen3", "smollm3") else "sliding_window"
    asked = of(switch).flag(switch, False) if switch == "use_sliding_window" else of(switch).values.get(switch)
    if asked and kind != "llama":
        raise CheckpointError(f"{of(switch).where}{switch} is set; only full attention is supported")
    kinds = of("layer_types").values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(found != "full_attention" for found in kinds)):
        raise of("layer_types").error("layer_types", "must be a list of full_attention, the only kind supported")


def _biases(kind: str, of: Callable[[str], Keys]) -> tuple[str, ...]:
    """Qwen2 has three and no key that says so."""
    attention, mlp = (of(key).flag(key, False) for key in ("attention_bias", "mlp_bias"))
    found: tuple[str, ...] = ("q_proj", "k_proj", "v_proj") if attention or kind == "qwen2" else ()
    found += ("o_proj",) if attention and kind != "qwen2" else ()
    return found + (("gate_proj", "up_proj", "down_proj") if mlp else ())


def _rotary_layers(kind: str, of: Callable[[str], Keys], layers: int) -> tuple[bool, ...]:
    if kind != "smollm3":
        return (True,) * layers
    every = of("no_rope_layer_interval").integer("no_rope_layer_interval", 1, 1 << 12, 4)
    listed = of("no_rope_layers").values.get("no_rope_layers")
    if listed is None:
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    if not isinstance(listed, list) or len(listed) < layers or any(value not in (0, 1) for value in listed):
        raise of("no_rope_layers").error("no_rope_layers", f"must be a list of 0 and 1 for each of {layers} layers")
    return tuple(bool(value) for value in listed[:layers])


def _rope(of: Callable[[str], Keys]) -> dict[str, Any]:
    """Rotary parameters, those that were read and found sound, by the names that transformers gives them."""
    plain = of("rope_parameters").values.get("rope_parameters") not in (None, {})
    name = "rope_parameters" if plain else "rope_scaling"
    given = of(name).section(name)
    for key, value in given.values.items():
        if isinstance(value, dict):
            raise given.error(
                key, "cannot be an object: rotary parameters that differ between layers are not supported"
            )
    kind = given.word("rope_type", _ROPE_TYPES, given.word("type", _ROPE_TYPES, "default"))
    for key in _ROPE_NEEDS.get(kind, ()):
        if key not in given:
            raise given.error(key, f"is needed for rope_type {kind}")
    for key, (low, high) in _ROPE_NUMBERS.items():
        given.number(key, low, high, low)
    for key in _ROPE_LENGTHS:
        given.integer(key, 1, _MAX_POSITIONS, 1)
    given.flag("truncate", True)
    if kind == "llama3" and given.values["low_freq_factor"] >= given.values["high_freq_factor"]:
        raise given.error("high_freq_factor", "must be more than low_freq_factor")
    partial = given if "partial_rotary_factor" in given else of("partial_rotary_factor")
    if partial.number("partial_rotary_factor", 0, 1, 1.0) != 1:
        raise CheckpointError(f"{partial.where}partial_rotary_factor other than 1 is not supported")
    theta = given if "rope_theta" in given else of("rope_theta")
    base = theta.number("rope_theta", 1.001, 1e12, 10000.0)
    rope = {key: value for key, value in given.values.items() if key in _ROPE_KEYS and value is not None}
    return rope | {"rope_theta": theta.values.get("rope_theta") or base, "rope_type": kind}


def _tokens(keys: Keys, key: str, vocab: int) -> tuple[int, ...]:
    found = keys.tokens(key)
    if any(token >= vocab for token in found):
        raise keys.error(key, f"must be below vocab_size, {vocab}")
    return found
