"""Llama-like text decoders: Ministral 3 and every decoder that its configuration can describe.

Pre-norm blocks of grouped-query attention with rotary positions and a gated SiLU MLP, without biases. The graph
is written in the edge dialect and holds no weights; `slots` names them all. Rotary frequencies come from
`transformers`' own functions (ROPE_INIT_FUNCTIONS), so YaRN's truncation is theirs to the letter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue

from compiler.config import Keys
from compiler.models.base import Component, Entry, Heads, Model, Port, scheme_arguments
from compiler.slots import Schemes, Slot
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

_DECODERS = ("llama", "mistral", "ministral3")
_WRAPPERS = ("mistral3",)
MODEL_TYPES = (*_DECODERS, *_WRAPPERS)
_PREFIXES = ("model.", "language_model.model.", "model.language_model.")
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
_NOT_OF_ROPE = ("llama_4_scaling_beta", "max_position_embeddings")  # Ministral-3 keeps them in rope_parameters


@dataclass(frozen=True)
class DecoderSpec:
    """The geometry of a decoder; sizes in elements."""

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


def read_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """Geometry from a Hugging Face config (its text side where it wraps one).

    Raises CheckpointError naming the key when the config is not of this family, or a value is not what it must be.
    """
    outer = inner = Keys(config)
    if config.get("model_type") in _WRAPPERS:
        inner = outer.section("text_config")
        if "text_config" not in outer:
            raise outer.error("text_config", f"must be an object in a {config.get('model_type')} config")
    kind = inner.values.get("model_type")
    if not isinstance(kind, str) or kind not in _DECODERS:
        raise CheckpointError(
            f"{inner.where}model_type {kind!r} is not supported; decoders of type "
            f"{', '.join(_DECODERS)} (also inside {', '.join(_WRAPPERS)}) are"
        )

    def of(key: str) -> Keys:
        return inner if key in inner.values else outer

    for key in ("attention_bias", "mlp_bias"):
        if of(key).flag(key, False):
            raise CheckpointError(f"{of(key).where}{key} is set; decoders with biases are not supported")
    of("hidden_act").word("hidden_act", ("silu",), "silu")
    if of("sliding_window").values.get("sliding_window") and kind != "llama":
        raise CheckpointError(f"{of('sliding_window').where}sliding_window is set; only full attention is supported")

    def integer(key: str, high: int, default: int | None = None) -> int:
        return of(key).integer(key, 1, high, default)

    hidden, heads = integer("hidden_size", 1 << 20), integer("num_attention_heads", 1 << 12)
    head_dim = integer("head_dim", 1 << 12, hidden // heads or None)
    if head_dim % 2:
        raise CheckpointError(f"{of('head_dim').where}head_dim {head_dim} is odd, which rotary positions cannot halve")
    kv_heads = integer("num_key_value_heads", 1 << 12, heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{of('num_key_value_heads').where}{heads} attention heads do not divide over {kv_heads} key-value heads"
        )
    vocab, max_positions = integer("vocab_size", 1 << 24), integer("max_position_embeddings", _MAX_POSITIONS)
    rope = _rope(of)
    original_positions = rope.get("original_max_position_embeddings", max_positions)
    return DecoderSpec(
        model_type=kind,
        vocab=vocab,
        hidden=hidden,
        layers=integer("num_hidden_layers", 1 << 12),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=integer("intermediate_size", 1 << 22),
        eps=of("rms_norm_eps").number("rms_norm_eps", 0, 1, 1e-6),
        tied=of("tie_word_embeddings").flag("tie_word_embeddings", False),
        max_positions=max_positions,
        original_positions=original_positions,
        rope=rope,
        query_beta=float(rope.get("llama_4_scaling_beta", 0.0)),
        query_period=original_positions,
        bos=of("bos_token_id").integer("bos_token_id", 0, vocab - 1) if "bos_token_id" in of("bos_token_id") else None,
        eos=_tokens(of("eos_token_id"), "eos_token_id", vocab),
    )


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


def slots(spec: DecoderSpec, tensors: Collection[str] | None = None) -> list[Slot]:
    """All slots in the order in which the graph reads them; a tied head has none of its own.

    tensors: names in the checkpoint, to find the prefix of the text side (default: the plain one).
    """
    prefix = "model."
    if tensors is not None:
        found = [p for p in _PREFIXES if f"{p}embed_tokens.weight" in tensors]
        if not found:
            raise CheckpointError("the checkpoint has no tensor named model.embed_tokens.weight: not a text decoder?")
        prefix = found[0]

    def slot(name: str, rows: int, columns: int, kind: Literal["linear", "embedding", "norm"]) -> Slot:
        return Slot(f"model.{name}", f"{prefix}{name}.weight", rows, columns, kind)

    found_slots = [slot("embed_tokens", spec.vocab, spec.hidden, "embedding")]
    for i in range(spec.layers):
        layer = f"layers.{i}."
        found_slots += [
            slot(layer + "input_layernorm", 1, spec.hidden, "norm"),
            slot(layer + "self_attn.q_proj", spec.query_width, spec.hidden, "linear"),
            slot(layer + "self_attn.k_proj", spec.kv_width, spec.hidden, "linear"),
            slot(layer + "self_attn.v_proj", spec.kv_width, spec.hidden, "linear"),
            slot(layer + "self_attn.o_proj", spec.hidden, spec.query_width, "linear"),
            slot(layer + "post_attention_layernorm", 1, spec.hidden, "norm"),
            slot(layer + "mlp.gate_proj", spec.intermediate, spec.hidden, "linear"),
            slot(layer + "mlp.up_proj", spec.intermediate, spec.hidden, "linear"),
            slot(layer + "mlp.down_proj", spec.hidden, spec.intermediate, "linear"),
        ]
    found_slots.append(slot("norm", 1, spec.hidden, "norm"))
    if not spec.tied:
        head = "lm_head.weight"
        if tensors is not None and head not in tensors:
            head = "language_model.lm_head.weight"
        found_slots.append(Slot("lm_head", head, spec.vocab, spec.hidden, "linear"))
    return found_slots


def fused_projections(spec: DecoderSpec) -> list[list[str]]:
    """Slots that one matmul may serve: q, k, v and gate, up of every layer."""
    layers = [f"model.layers.{i}." for i in range(spec.layers)]
    attention = [[f"{p}self_attn.{m}_proj" for m in "qkv"] for p in layers]
    return attention + [[f"{p}mlp.{m}_proj" for m in ("gate", "up")] for p in layers]


def rotary_frequencies(spec: DecoderSpec) -> tuple[list[float], float]:
    """Inverse frequencies (head_dim / 2 of them, radians per position) and the factor on cos and sin."""
    if spec.rope["rope_type"] == "default":
        import torch

        exponent = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
        return (1.0 / float(spec.rope["rope_theta"]) ** exponent).tolist(), 1.0
    # the base class, because a model's own config class would load its whole package
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings: dict[str, Any] = {
        "hidden_size": spec.hidden,
        "num_attention_heads": spec.heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_positions,
        "rope_parameters": {k: v for k, v in spec.rope.items() if k not in _NOT_OF_ROPE},
    }
    config = PreTrainedConfig(**settings)
    inverse, factor = ROPE_INIT_FUNCTIONS[spec.rope["rope_type"]](config, device="cpu")
    return inverse.tolist(), float(factor)


def head_slot(spec: DecoderSpec) -> str:
    """The slot that turns hidden states into logits."""
    return "model.embed_tokens" if spec.tied else "lm_head"


def read(config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int) -> Model:
    """The model of a checkpoint: one component, its cache as states. See `base.Family`."""
    spec = read_spec(config)
    if max_tokens > spec.max_positions:
        raise CheckpointError(
            f"context.max_tokens is {max_tokens}, the checkpoint knows {spec.max_positions} positions"
        )
    ids = (
        Port("input_ids", "int64", ("batch", "tokens"), below=spec.vocab),
        Port("positions", "int64", ("batch", "tokens"), below=max_tokens, counts=True),
    )
    last, every = (Port("logits", "float32", ("batch", n, spec.vocab)) for n in (1, "tokens"))
    hidden = Port("hidden", "float32", ("batch", "tokens", spec.hidden))
    one, many = ({"batch": (1, 1), "tokens": (1, most)} for most in (1, max_tokens))
    cache = (1, spec.kv_heads, max_tokens, spec.head_dim)
    layers = [f"model.layers.{i}." for i in range(spec.layers)]
    decoder = Component(
        name="decoder",
        slots=tuple(slots(spec, tensors)),
        entries=(
            Entry("prefill", ids, (last,), many),
            Entry("decode", ids, (last,), one),
            Entry("score", ids, (every,), many, shipped=False),
            Entry("hidden", ids, (hidden,), many, shipped=False, keeps=False),
        ),
        module=partial(module, spec),
        live=partial(live, spec),
        states=tuple(
            Port(f"{kind}_cache_{i}", "float32", cache) for i in range(spec.layers) for kind in ("key", "value")
        ),
        fused=tuple(tuple(names) for names in fused_projections(spec)),
        cuts=(*layers, "model.norm"),
        attention=Heads(spec.heads, spec.kv_heads, spec.head_dim),
        head=head_slot(spec),
    )
    constants: dict[str, JsonValue] = {
        "max_tokens": max_tokens,
        "vocab_size": spec.vocab,
        "bos": spec.bos,
        "eos": list(spec.eos),
        "max_positions": spec.max_positions,
        "original_positions": spec.original_positions,
    }
    return Model("decoder", (decoder,), "text", constants, asdict(spec), _text_config(config))


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the text decoder alone, as transformers loads it."""
    found = dict(config)
    if found.get("model_type") in _WRAPPERS:
        tied = found.get("tie_word_embeddings")
        found = dict(found["text_config"])
        if tied is not None:
            found.setdefault("tie_word_embeddings", tied)
        found["architectures"] = [f"{found['model_type'].capitalize()}ForCausalLM"]
    found.pop("quantization_config", None)
    return found


def live(spec: DecoderSpec, entry: Entry, sizes: Mapping[str, int]) -> int:
    """Values alive at once: the residual stream twice and the wider of attention and MLP, and the logits."""
    tokens = sizes["batch"] * sizes["tokens"]
    wide = max(2 * spec.intermediate, spec.qkv_width + spec.query_width) + 4 * spec.hidden
    rows = {"score": tokens, "hidden": 0}.get(entry.name, sizes["batch"])
    return tokens * wide + rows * spec.vocab


def module(spec: DecoderSpec, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    """The decoder as a module of edge ops, without parameters.

    forward(input_ids int64 [batch, tokens], positions int64 [batch, tokens], *caches) -> (out, *caches); a cache is
    [batch, kv_heads, max_tokens, head_dim], key and value of every layer in turn. out by the entry's name: logits
    float32 [batch, 1, vocab] of the last position (prefill, decode), [batch, tokens, vocab] (score), or the normalized
    states [batch, tokens, hidden] before the head, and no caches (hidden).
    schemes: by slot name; members of a fused projection whose schemes differ stay apart.
    """
    import torch

    from compiler.dialect import edge

    sizes = {s.name: (s.rows, s.columns) for s in slots(spec)}
    inv_freq, attention_factor = rotary_frequencies(spec)

    def linear(x: torch.Tensor, *names: str) -> torch.Tensor:
        found = {scheme_arguments(schemes, n) for n in names}
        if len(found) > 1:
            return torch.cat([linear(x, n) for n in names], -1)
        out: torch.Tensor = edge.linear(x, list(names), [sizes[n][0] for n in names], sizes[names[0]][1], *found.pop())
        return out

    class Decoder(torch.nn.Module):
        def forward(
            self, input_ids: torch.Tensor, positions: torch.Tensor, *caches: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            table = "model.embed_tokens"
            x = edge.embedding(input_ids, table, spec.vocab, spec.hidden, *scheme_arguments(schemes, table))
            cos, sin = edge.rotary(positions, inv_freq, attention_factor)
            residual = None
            written: list[torch.Tensor] = []
            for i in range(spec.layers):
                p = f"model.layers.{i}."
                if residual is None:
                    h, residual = edge.rms_norm(x, p + "input_layernorm", spec.hidden, spec.eps), x
                else:
                    h, residual = edge.add_rms_norm(x, residual, p + "input_layernorm", spec.hidden, spec.eps)
                qkv = linear(h, p + "self_attn.q_proj", p + "self_attn.k_proj", p + "self_attn.v_proj")
                x, key, value = edge.attention(
                    qkv,
                    cos,
                    sin,
                    positions,
                    caches[2 * i],
                    caches[2 * i + 1],
                    spec.heads,
                    spec.kv_heads,
                    spec.head_dim,
                    spec.head_dim**-0.5,
                    spec.query_beta,
                    spec.query_period,
                )
                if entry.keeps:
                    written += [key, value]
                x = linear(x, p + "self_attn.o_proj")
                h, residual = edge.add_rms_norm(x, residual, p + "post_attention_layernorm", spec.hidden, spec.eps)
                gate, up = linear(h, p + "mlp.gate_proj", p + "mlp.up_proj").split(spec.intermediate, -1)
                x = linear(torch.nn.functional.silu(gate) * up, p + "mlp.down_proj")
            assert residual is not None
            x, _ = edge.add_rms_norm(x, residual, "model.norm", spec.hidden, spec.eps)
            if entry.name == "hidden":
                return x, *written
            if entry.name != "score":
                x = x[:, -1:]
            return linear(x, head_slot(spec)), *written

    return Decoder()
