"""The family audio2expression: published names, shapes and sizes; what its config may say; the stream as constants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from compiler.graph import arguments, capture, op_name
from compiler.models.base import Component, Model, read_model
from compiler.tensors import CheckpointError
from tests.compiler.avatars import Audio2Expression

UNUSED = ("audio_encoder.lm_head.", "audio_encoder.masked_spec_embed", "identity_encoder.grus.")
PLACES = "audio_encoder.encoder.pos_conv_embed.conv."


def model_of(**config: Any) -> Model:
    return read_model({"model_type": "audio2expression", **config}, None, 2)


def products(component: Component) -> dict[str, int]:
    """Multiplications of the captured graph's convolutions and linear layers."""
    (entry,) = component.entries
    found = {"edge::convolution": 0, "edge::linear": 0}
    for node in capture(component, entry, {}).graph.nodes:
        if op_name(node) in found:
            given = arguments(node)
            found[op_name(node)] += node.meta["val"].numel() * (given.get("columns") or math.prod(given["shape"][1:]))
    return found


def test_it_is_the_published_one() -> None:
    from transformers import Wav2Vec2Config

    with torch.device("meta"):
        published = Audio2Expression(Wav2Vec2Config(), 512, 12, 64)
    assert sum(p.numel() for p in published.parameters()) == 102_113_044
    shapes = {name: tuple(tensor.shape) for name, tensor in published.state_dict().items()}
    read = {name: shape for name, shape in shapes.items() if not name.startswith((*UNUSED, f"{PLACES}param"))}
    (component,) = model_of().components
    assert {slot.tensor: slot.shape for slot in component.slots} == {
        f"backbone.{name}": shape for name, shape in (read | {f"{PLACES}weight": (768, 48, 128)}).items()
    }
    # as published, the identity is multiplied at each of 64 frames, and not once
    assert products(component) == {"edge::convolution": 5_901_775_872 - 63 * 12 * 64, "edge::linear": 5_487_853_568}


def test_the_stream_is_defined_by_constants() -> None:
    constants = dict(model_of().constants)
    names = constants.pop("blendshapes")
    assert (
        isinstance(names, list) and len(names) == len(set(map(str, names))) == 52 and names == sorted(map(str, names))
    )
    assert (names[0], names[24], names[51]) == ("browDownLeft", "jawOpen", "tongueOut")
    assert constants == {
        "audio": {
            "sample_rate": 16000,
            "samples": 34133,
            "tokens_per_second": 30,
            "tokens": 64,
            "hop": 30,
            "ahead": 0,
        },
        "frames": {"rate": 30, "tokens": 1, "before": 0, "ahead": 0, "lookahead_ms": 0},
        "identities": 12,
    }
    later = model_of(streaming={"window": 48, "hop": 6, "ahead": 6}).constants["frames"]
    assert isinstance(later, dict) and later["lookahead_ms"] == 200


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_transformer": True}, "use_transformer must be false: the offline variant is not supported"),
        ({"wav2vec2": {"do_stable_layer_norm": True}}, r"wav2vec2\.do_stable_layer_norm must be false"),
        ({"wav2vec2": {"hidden_act": "relu"}}, r"wav2vec2\.hidden_act must be one of gelu, not 'relu'"),
        ({"wav2vec2": {"conv_kernel": [3]}}, r"wav2vec2\.conv_dim, conv_kernel and conv_stride must be of one length"),
        ({"wav2vec2": {"conv_dim": "512"}}, r"wav2vec2\.conv_dim must be a list of 1 to 16 whole numbers"),
        (
            {"wav2vec2": {"num_attention_heads": 7}},
            r"wav2vec2\.hidden_size 768 does not divide over num_attention_heads",
        ),
        ({"streaming": {"hop": 40, "ahead": 30}}, r"streaming\.hop 40 and ahead 30 must fit into the window, 64"),
        ({"expression_dim": 51}, "expression_dim must be a whole number from 52 to 52, not 51"),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^config\.json: {message}"):
        model_of(**config)


def test_a_weight_norm_that_is_not_folded_is_refused() -> None:
    parts = [f"backbone.{PLACES}{part}" for part in ("weight_g", "weight_v")]
    with pytest.raises(CheckpointError, match=r"pos_conv_embed\.conv\.weight' is in parts, .*run edgewright adopt"):
        read_model({"model_type": "audio2expression"}, parts, 2)
