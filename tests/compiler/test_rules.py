"""Rules give every tensor its scheme, and a rule that does nothing is an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from artifacts import EdgewrightError
from compiler.models import decoder
from compiler.models.base import read_model
from compiler.quantize.rules import assign, rounded_slots
from compiler.slots import HALF, Scheme
from recipes.schema import Rule
from tests.compiler.conftest import MINISTRAL3, original

SLOTS = decoder.slots(decoder.read_spec(MINISTRAL3))


def test_the_first_rule_that_matches_wins() -> None:
    rules = [
        Rule(match="model.embed_tokens", bits=8),
        Rule(match="model.layers.*.mlp.*", bits=4, group="channel"),
        Rule(match="model.layers.0.*", bits=16),
        Rule(match="*", bits=4, group=16, symmetric=False),
    ]
    assignment = assign(rules, SLOTS)
    assert assignment.schemes["model.embed_tokens"] == Scheme(8, 32)
    assert assignment.schemes["model.layers.0.mlp.down_proj"] == Scheme(4, 0)
    assert assignment.schemes["model.layers.0.self_attn.q_proj"] == HALF
    assert assignment.schemes["model.layers.1.self_attn.q_proj"] == Scheme(4, 16, False)
    assert assignment.method("model.embed_tokens") == "rtn"
    assert not any("norm" in name for name in assignment.schemes)


def test_activations_are_asked_for_by_component_and_of_convolutions_alone() -> None:
    model = read_model({"model_type": "feathertalk", "feather_hubert": {"channels": 32, "num_blocks": 1}}, None, 2)
    rules = [
        Rule(match="unet.outc.*", bits=16),
        Rule(match="unet.*", bits=8, group="channel", activations="int8"),
        Rule(match="*", bits=16),
    ]
    found = rounded_slots(model, assign(rules, model.slots))
    convolutions = {s.name for s in model.component("renderer").slots if s.kind == "convolution"}
    assert found == {"renderer": convolutions - {"unet.outc.conv"}}


def test_activations_of_what_has_no_convolution_or_more_entries_than_one_are_refused(toy: Path) -> None:
    rules = [Rule(match="*", bits=8, group="channel", activations="int8")]
    text = read_model(MINISTRAL3, None, 32)
    with pytest.raises(
        EdgewrightError, match=r"activations: int8 is for convolutions, and '\*' matches none; leave it"
    ):
        rounded_slots(text, assign(rules, text.slots))
    model, _ = original(toy)
    states = replace(model.components[1], states=model.components[0].states)
    model = replace(model, components=(model.components[0], states))
    with pytest.raises(
        EdgewrightError, match=r"one entry, without states and of fixed sizes, which head is not; leave"
    ):
        rounded_slots(model, assign(rules, model.slots))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule(match="model.layer.*", bits=8), Rule(match="*", bits=4)], r"rules\[0\]: 'model.layer.\*' matches no"),
        ([Rule(match="*embed*", bits=8), Rule(match="*tokens", bits=4)], r"rules\[1\]: every tensor .* earlier rule"),
        ([Rule(match="*layers*", bits=8)], r"no rule matches 'model.embed_tokens' \(1 tensors"),
        ([Rule(match="*", bits=4, group=64)], r"'model.layers.0.mlp.down_proj' has 96 columns.*that do: 32, 16"),
    ],
)
def test_rules_that_do_nothing_or_do_not_fit_are_errors(rules: list[Rule], message: str) -> None:
    with pytest.raises(EdgewrightError, match=message):
        assign(rules, SLOTS)
