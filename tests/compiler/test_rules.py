"""Rules give every tensor its scheme, and a rule that does nothing is an error."""

from __future__ import annotations

import pytest

from artifacts import EdgewrightError
from compiler.models import decoder
from compiler.quantize.rules import assign
from compiler.slots import HALF, Scheme
from recipes.schema import Rule
from tests.compiler.conftest import MINISTRAL3

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
