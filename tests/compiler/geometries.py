"""Decoders at random: geometries, schemes and contexts that every target either builds or refuses by name.

Drawn from all that a decoder and a recipe can say: odd and even vocabularies, even head sizes from 16 to 128, heads
that share keys or not, hidden and intermediate sizes that are multiples of 16, tied embeddings or not, one to three
layers, rotary positions with and without YaRN, and for each tensor its bits and group. Groups divide a tensor's
columns, as recipes have to have it. Seven draws of eight take them from what every runtime knows (from 32 up, or one
scale per row) and leave a tensor at 16 bits where 32 does not divide its columns, as a refusal would advise; the
eighth takes any.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import strategies as st

from compiler.models import decoder
from compiler.slots import HALF, Scheme
from tests.compiler.conftest import MINISTRAL3

_GROUPS = (32, 64, 128, 256)
_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


@dataclass(frozen=True)
class Geometry:
    """A config.json, a scheme for each matrix by slot name, and the context."""

    config: dict[str, Any]
    schemes: dict[str, Scheme]
    max_tokens: int


def draw(seed: int) -> Geometry:
    """The geometry of a seed."""
    random = Random(seed)
    kv_heads = random.randint(1, 3)
    config = {
        **MINISTRAL3,
        **random.choice([{}, _LLAMA]),
        "vocab_size": random.randint(20, 300),
        "hidden_size": 16 * random.randint(1, 12),
        "intermediate_size": 16 * random.randint(1, 12),
        "num_hidden_layers": random.randint(1, 3),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * random.randint(1, 4),
        "head_dim": 2 * random.randint(8, 64),
        "tie_word_embeddings": random.random() < 0.5,
    }
    any_group, mixed = random.random() < 1 / 8, random.random() < 0.5
    schemes: dict[str, Scheme] = {}
    of_columns: dict[int, Scheme] = {}
    for slot in decoder.slots(decoder.read_spec(config)):
        if slot.kind == "norm":
            continue
        if mixed or slot.columns not in of_columns:
            of_columns[slot.columns] = random.choice(_schemes(slot.columns, any_group))
        schemes[slot.name] = of_columns[slot.columns]
    return Geometry(config, schemes, random.randint(24, 80))


def _schemes(columns: int, any_group: bool) -> list[Scheme]:
    """What a recipe may say of a matrix with so many columns."""
    groups = [group for group in ((16, *_GROUPS) if any_group else _GROUPS) if columns % group == 0]
    words = [bits for bits in (4, 8) if columns * bits % 32 == 0]
    return [HALF, *(Scheme(bits, group) for bits in words for group in (0, *groups) if groups or any_group)]


geometries = st.integers(0, 2**32 - 1).map(draw)
