"""Llama-like text decoders: Ministral 3, Llama, Mistral, Qwen2, Qwen3, SmolLM3.

Pre-norm blocks of grouped-query attention and a gated SiLU MLP; biases, norms of queries and keys, and layers without
rotary positions as the geometry says (`decoder_spec.py`). The graph is written in the edge dialect and holds no
weights; `slots` names them all. Families that put more than text into a decoder enter it by embeddings instead of token
ids (`Way`). Rotary frequencies come from
`transformers`' own functions (ROPE_INIT_FUNCTIONS), so YaRN's truncation is theirs to the letter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue

from compiler.models.base import Component, Entry, Heads, Model, Port, scheme_arguments
from compiler.models.decoder_spec import MODEL_TYPES, WRAPPERS, DecoderSpec, read_spec
from compiler.models.layers import linears
from compiler.slots import Schemes, Slot
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = [
    "MODEL_TYPES",
    "WRAPPERS",
    "DecoderSpec",
    "Way",
    "component",
    "head_slot",
    "read",
    "read_spec",
    "rotary_frequencies",
    "slots",
    "tensor_prefix",
]

_PREFIXES = ("model.", "language_model.model.", "model.language_model.")
_OLDER_HEAD = "language_model.lm_head.weight"
_NOT_OF_ROPE = ("llama_4_scaling_beta", "max_position_embeddings")  # Ministral-3 keeps them in rope_parameters


@dataclass(frozen=True)
class Way:
    """The way into a decoder, and what its slots are called.

    embedded: it is entered by embeddings [batch, tokens, hidden]. The table that made them belongs to another
    component, and a tied head is a second slot over its tensor, because names of slots are unique in a model.
    prefix: of the slots' names, and of the tensors' where they do not go by another.
    """

    embedded: bool = False
    prefix: str = "model."


_BY_IDS = Way()


def slots(spec: DecoderSpec, tensors: Collection[str] | None = None, way: Way = _BY_IDS) -> list[Slot]:
    """All slots in the order in which the graph reads them; entered by ids, a tied head has none of its own.

    tensors: names in the checkpoint, to find the prefix of the text side (default: the plain one).
    """
    prefix = tensor_prefix(tensors, way)

    def slot(name: str, rows: int, columns: int, kind: Literal["linear", "embedding", "norm"]) -> Slot:
        return Slot(f"{way.prefix}{name}", f"{prefix}{name}.weight", rows, columns, kind)

    def projection(name: str, rows: int, columns: int) -> Iterator[Slot]:
        yield slot(name, rows, columns, "linear")
        if name.rsplit(".", 1)[-1] in spec.biases:
            yield Slot(f"{way.prefix}{name}.bias", f"{prefix}{name}.bias", 1, rows, "bias")

    found_slots = [] if way.embedded else [slot("embed_tokens", spec.vocab, spec.hidden, "embedding")]
    for i in range(spec.layers):
        layer = f"layers.{i}."
        found_slots += [
            slot(layer + "input_layernorm", 1, spec.hidden, "norm"),
            *projection(layer + "self_attn.q_proj", spec.query_width, spec.hidden),
            *projection(layer + "self_attn.k_proj", spec.kv_width, spec.hidden),
            *projection(layer + "self_attn.v_proj", spec.kv_width, spec.hidden),
        ]
        if spec.head_norms:
            found_slots += [slot(f"{layer}self_attn.{name}_norm", 1, spec.head_dim, "norm") for name in "qk"]
        found_slots += [
            *projection(layer + "self_attn.o_proj", spec.hidden, spec.query_width),
            slot(layer + "post_attention_layernorm", 1, spec.hidden, "norm"),
            *projection(layer + "mlp.gate_proj", spec.intermediate, spec.hidden),
            *projection(layer + "mlp.up_proj", spec.intermediate, spec.hidden),
            *projection(layer + "mlp.down_proj", spec.hidden, spec.intermediate),
        ]
    found_slots.append(slot("norm", 1, spec.hidden, "norm"))
    if way.embedded or not spec.tied:
        head = f"{prefix}embed_tokens.weight" if spec.tied else "lm_head.weight"
        if tensors is not None and head not in tensors and _OLDER_HEAD in tensors:
            head = _OLDER_HEAD
        found_slots.append(Slot("lm_head", head, spec.vocab, spec.hidden, "linear"))
    return found_slots


def tensor_prefix(tensors: Collection[str] | None, way: Way = _BY_IDS) -> str:
    """What the names of the text side's tensors begin with. Raises CheckpointError where `tensors` have no table."""
    table = "embed_tokens.weight"
    if tensors is None or way.prefix + table in tensors:
        return way.prefix
    found = [prefix for prefix in _PREFIXES if prefix + table in tensors]
    if not found:
        raise CheckpointError(f"the checkpoint has no tensor named {way.prefix}{table}: not a text decoder?")
    return found[0]


def fused_projections(spec: DecoderSpec, prefix: str = "model.") -> list[list[str]]:
    """Slots that one matmul may serve: q, k, v and gate, up of every layer."""
    layers = [f"{prefix}layers.{i}." for i in range(spec.layers)]
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


def head_slot(spec: DecoderSpec, way: Way = _BY_IDS) -> str:
    """The slot that turns hidden states into logits."""
    return f"{way.prefix}embed_tokens" if spec.tied and not way.embedded else "lm_head"


def read(config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int) -> Model:
    """The model of a checkpoint: one component, its cache as states. See `base.Family`."""
    spec = read_spec(config)
    decoder = component(spec, tensors, max_tokens)
    return Model("decoder", (decoder,), "text", constants(spec, max_tokens), asdict(spec), _text_config(config))


def constants(spec: DecoderSpec, max_tokens: int) -> dict[str, JsonValue]:
    """What an app must know of a text decoder."""
    return {
        "max_tokens": max_tokens,
        "vocab_size": spec.vocab,
        "bos": spec.bos,
        "eos": list(spec.eos),
        "max_positions": spec.max_positions,
        "original_positions": spec.original_positions,
    }


def component(spec: DecoderSpec, tensors: Collection[str] | None, max_tokens: int, way: Way = _BY_IDS) -> Component:
    """The decoder with its caches; entries prefill, decode, score and hidden. tensors: see `slots`.

    Raises CheckpointError for a context that the checkpoint has no positions for.
    """
    if max_tokens > spec.max_positions:
        raise CheckpointError(
            f"context.max_tokens is {max_tokens}, the checkpoint knows {spec.max_positions} positions"
        )
    entered = Port("input_ids", "int64", ("batch", "tokens"), below=spec.vocab)
    if way.embedded:
        entered = Port("embeddings", "float32", ("batch", "tokens", spec.hidden))
    inputs = (
        entered,
        Port("positions", "int64", ("batch", "tokens"), below=max_tokens, counts=True),
    )
    last, every = (Port("logits", "float32", ("batch", n, spec.vocab)) for n in (1, "tokens"))
    hidden = Port("hidden", "float32", ("batch", "tokens", spec.hidden))
    one, many = ({"batch": (1, 1), "tokens": (1, most)} for most in (1, max_tokens))
    cache = (1, spec.kv_heads, max_tokens, spec.head_dim)
    layers = [f"{way.prefix}layers.{i}." for i in range(spec.layers)]
    return Component(
        name="decoder",
        slots=tuple(slots(spec, tensors, way)),
        entries=(
            Entry("prefill", inputs, (last,), many),
            Entry("decode", inputs, (last,), one),
            Entry("score", inputs, (every,), many, shipped=False),
            Entry("hidden", inputs, (hidden,), many, shipped=False, keeps=False),
        ),
        module=partial(module, spec, way),
        live=partial(live, spec),
        states=tuple(
            Port(f"{kind}_cache_{i}", "float32", cache) for i in range(spec.layers) for kind in ("key", "value")
        ),
        fused=tuple(tuple(names) for names in fused_projections(spec, way.prefix)),
        cuts=(*layers, f"{way.prefix}norm"),
        attention=Heads(spec.heads, spec.kv_heads, spec.head_dim),
        head=head_slot(spec, way),
    )


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the text decoder alone, as transformers loads it."""
    found = dict(config)
    if found.get("model_type") in WRAPPERS:
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


def module(spec: DecoderSpec, way: Way, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    """The decoder as a module of edge ops, without parameters.

    forward(input_ids int64 [batch, tokens], positions int64 [batch, tokens], *caches) -> (out, *caches); where it is
    entered by embeddings, float32 [batch, tokens, hidden] in the place of the ids. A cache is
    [batch, kv_heads, max_tokens, head_dim], key and value of every layer in turn. out by the entry's name: logits
    float32 [batch, 1, vocab] of the last position (prefill, decode), [batch, tokens, vocab] (score), or the normalized
    states [batch, tokens, hidden] before the head, and no caches (hidden).
    schemes: by slot name; members of a fused projection whose schemes differ stay apart.
    """
    import torch

    from compiler.dialect import edge

    linear = linears(slots(spec, way=way), schemes)
    inv_freq, attention_factor = rotary_frequencies(spec)

    def normed_heads(qkv: torch.Tensor, prefix: str) -> torch.Tensor:
        """Queries and keys normalized head by head."""
        parts = list(qkv.split([spec.query_width, spec.kv_width, spec.kv_width], -1))
        for at, name in enumerate("qk"):
            heads = parts[at].unflatten(-1, (-1, spec.head_dim))
            parts[at] = edge.rms_norm(heads, f"{prefix}self_attn.{name}_norm", spec.head_dim, spec.eps).flatten(-2)
        return torch.cat(parts, -1)

    # Wide values live in functions of their own: where the dialect computes, they are gone before the next are made.

    def projected(h: torch.Tensor, prefix: str) -> torch.Tensor:
        qkv = linear(h, *(f"{prefix}self_attn.{name}_proj" for name in "qkv"))
        return normed_heads(qkv, prefix) if spec.head_norms else qkv

    def gated(h: torch.Tensor, prefix: str) -> torch.Tensor:
        gate, up = linear(h, prefix + "mlp.gate_proj", prefix + "mlp.up_proj").split(spec.intermediate, -1)
        out: torch.Tensor = torch.nn.functional.silu(gate) * up
        return out

    def embedded(ids: torch.Tensor) -> torch.Tensor:
        table = f"{way.prefix}embed_tokens"
        out: torch.Tensor = edge.embedding(ids, table, spec.vocab, spec.hidden, *scheme_arguments(schemes, table))
        return out

    class Decoder(torch.nn.Module):
        def forward(
            self, entered: torch.Tensor, positions: torch.Tensor, *caches: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            x = entered if way.embedded else embedded(entered)
            turned = edge.rotary(positions, inv_freq, attention_factor)
            # a layer that turns nothing is turned by no angle: attention stays one op
            unturned = turned if all(spec.rotary) else edge.rotary(positions, [0.0] * len(inv_freq), 1.0)
            residual = None
            written: list[torch.Tensor] = []
            for i in range(spec.layers):
                p = f"{way.prefix}layers.{i}."
                if residual is None:
                    h, residual = edge.rms_norm(x, p + "input_layernorm", spec.hidden, spec.eps), x
                else:
                    h, residual = edge.add_rms_norm(x, residual, p + "input_layernorm", spec.hidden, spec.eps)
                x, key, value = edge.attention(
                    projected(h, p),
                    *(turned if spec.rotary[i] else unturned),
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
                x = linear(gated(h, p), p + "mlp.down_proj")
            assert residual is not None
            x, _ = edge.add_rms_norm(x, residual, f"{way.prefix}norm", spec.hidden, spec.eps)
            if entry.name == "hidden":
                return x, *written
            if entry.name != "score":
                x = x[:, -1:]
            return linear(x, head_slot(spec, way)), *written

    return Decoder()
