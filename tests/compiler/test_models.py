"""Models and their components: read by the family that takes a config, for any context, carried between processes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.formats import interface
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.models.base import Model, Port, read_model, scheme_arguments
from compiler.models.interface import described
from compiler.slots import Scheme
from compiler.tensors import CheckpointError
from tests.compiler import portrait
from tests.compiler.conftest import MINISTRAL3, original, reference_logits

TOY = {"model_type": "toy_renderer", "image_size": 16, "hidden_size": 64, "channels": 32}


@pytest.mark.parametrize("kind", ["gpt2", None, 3, ["llama"], {}, "Llama", ""])
def test_a_type_that_no_family_takes_is_refused_and_those_that_are_taken_are_named(kind: Any) -> None:
    with pytest.raises(CheckpointError) as raised:
        read_model({**MINISTRAL3, "model_type": kind}, None, 64)
    message = str(raised.value)
    assert message.startswith(f"config.json: model_type {kind!r} is not supported; ")
    assert {*decoder.MODEL_TYPES, "toy_renderer"} <= {*message.removesuffix(" are").split("; ")[1].split(", ")}


def test_a_config_without_a_type_is_refused() -> None:
    with pytest.raises(CheckpointError, match="model_type None is not supported"):
        read_model({}, None, 64)


@pytest.mark.parametrize("kind", decoder.MODEL_TYPES)
def test_every_type_of_a_family_is_read_by_it(kind: str) -> None:
    config = (
        {"model_type": kind, "text_config": MINISTRAL3} if kind == "mistral3" else {**MINISTRAL3, "model_type": kind}
    )
    model = read_model(config, None, 64)
    assert (model.family, model.driver, [part.name for part in model.components]) == ("decoder", "text", ["decoder"])


def test_a_family_beside_ours_is_found_by_its_file() -> None:
    model = read_model(TOY, None, 2)
    assert (model.family, model.driver) == ("toy_renderer", "plain")
    assert [part.name for part in model.components] == ["cell", "head"]
    assert len({slot.name for slot in model.slots}) == len(model.slots) == 8


def sizes(model: Model) -> tuple[Any, ...]:
    """What a context changes."""
    (part,) = model.components
    return (
        model.constants["max_tokens"],
        {state.shape[2] for state in part.states},
        part.entry("prefill").dimensions["tokens"],
        part.entry("decode").dimensions["tokens"],
        part.entry("prefill").inputs[1].below,
    )


def test_the_same_model_for_another_context(ministral: Path) -> None:
    checkpoint = Checkpoint(ministral)
    model = read_model(checkpoint.config, checkpoint.names(), 64)
    other = model.at(128)
    assert sizes(model) == (64, {64}, (1, 64), (1, 1), 64)
    assert sizes(other) == (128, {128}, (1, 128), (1, 1), 128)
    assert sizes(other.at(64)) == sizes(model)
    assert (other.slots, other.geometry, other.config) == (model.slots, model.geometry, model.config)
    assert other.components[0].state_values == 2 * model.components[0].state_values == 2 * 2 * 2 * 32 * 128
    with pytest.raises(CheckpointError, match=r"context\.max_tokens is 257, the checkpoint knows 256 positions"):
        model.at(257)


def test_another_context_keeps_the_names_of_the_checkpoint() -> None:
    """A wrapped text side lies under a prefix that only the checkpoint's own names tell."""
    wrapped = {"model_type": "mistral3", "text_config": MINISTRAL3}
    names = {f"language_model.{slot.tensor}" for slot in read_model(MINISTRAL3, None, 64).slots}
    model = read_model(wrapped, names, 64)
    assert {slot.tensor for slot in model.slots} == names
    assert model.at(32).slots == model.slots


def test_a_model_of_no_context_is_the_same_at_any() -> None:
    model = read_model(TOY, None, 2)
    other = model.at(4096)
    assert (other.slots, other.constants, other.driver) == (model.slots, model.constants, model.driver)
    assert [part.states for part in other.components] == [part.states for part in model.components]


def test_a_model_travels_to_another_process_and_computes_the_same(ministral: Path) -> None:
    model, weights = original(ministral)
    copy: Model = pickle.loads(pickle.dumps(model))
    assert copy.slots == model.slots and sizes(copy) == sizes(model)
    ids = np.arange(12)[None]
    np.testing.assert_array_equal(reference_logits(copy, weights, ids), reference_logits(model, weights, ids))


def test_slots_are_taken_together_where_their_schemes_agree() -> None:
    (part,) = read_model(MINISTRAL3, None, 64).components
    alike = {slot.name: Scheme(4, 32) for slot in part.slots if not slot.is_vector}
    together = [tuple(slot.name for slot in slots) for slots in part.matrices(alike)]
    assert sum(map(len, together)) == len(part.slots) and {n for names in together for n in names} == {
        slot.name for slot in part.slots
    }
    assert [names for names in together if len(names) > 1] == [
        names for layer in range(2) for names in part.fused if f".{layer}." in names[0]
    ]
    assert part.unfused(alike) == []
    torn = alike | {"model.layers.1.self_attn.k_proj": Scheme(8, 32)}
    apart = [tuple(slot.name for slot in slots) for slots in part.matrices(torn)]
    assert part.unfused(torn) == [tuple(f"model.layers.1.self_attn.{m}_proj" for m in "qkv")]
    assert ("model.layers.1.self_attn.k_proj",) in apart and ("model.layers.1.self_attn.q_proj",) in apart
    assert scheme_arguments(torn, "model.layers.1.self_attn.k_proj") == (8, 32, True)
    assert scheme_arguments(torn, "model.norm") == (16, 0, True)


def test_a_port_takes_the_size_of_every_dimension_it_names() -> None:
    port = Port("x", "float32", ("batch", "tokens", 7))
    assert port.sized({"batch": 2, "tokens": 3}) == (2, 3, 7)
    with pytest.raises(KeyError, match="tokens"):
        port.sized({"batch": 2})


def test_a_manifest_states_what_an_app_can_call_and_what_a_target_narrowed() -> None:
    model = read_model(MINISTRAL3, None, 64)
    narrowed = interface.Dimension(low=8, high=32, sizes=(8, 32))
    (part,) = described(model, {("decoder", "prefill", "tokens"): narrowed})
    assert [entry.name for entry in part.entries] == ["prefill", "decode"]  # the others are for tests
    assert part.entry("prefill").dimensions["tokens"] == narrowed
    assert part.entry("decode").dimensions["tokens"] == interface.Dimension(low=1, high=1)
    assert part.entry("prefill").inputs[1].counts and part.entry("prefill").inputs[0].below == 160
    assert [state.name for state in part.states] == [f"{kind}_cache_{i}" for i in range(2) for kind in ("key", "value")]
    assert interface.Component.model_validate_json(part.model_dump_json()) == part
    with pytest.raises(KeyError, match="decoder has no entry 'score'"):
        part.entry("score")


def test_a_renderer_of_full_size_is_wide_and_small_ones_are_not() -> None:
    """260 MiB of values at once, 25, and a handful; a decoder's grow with its context."""
    types = {"liveportrait": True, "feathertalk": False}
    assert {kind: read_model({"model_type": kind}, None, 2).wide for kind in types} == types
    assert not read_model({"model_type": "liveportrait", **portrait.SMALL}, None, 2).wide
    assert not read_model(MINISTRAL3, None, 64).wide
