"""The family feathertalk: published names, shapes and sizes; what its config may say; streams as constants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from compiler.graph import arguments, capture, op_name
from compiler.models.base import Component, Model, read_model
from compiler.plan import plan
from compiler.quantize.methods import method_options
from compiler.targets import target_options
from compiler.tensors import CheckpointError
from recipes.schema import recipe_model
from tests.compiler.avatars import FeatherHubert, UNet

CHANNELS = [32, 64, 128, 256, 512]
SMALL = {"channels": 256, "num_blocks": 8}
WENET = {"audio": "wenet", "feather_hubert": None}


def model_of(**config: Any) -> Model:
    return read_model({"model_type": "feathertalk", **config}, None, 2)


def folded(module: torch.nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a module's state dict when its batch norms are gone: convolutions alone, each with a bias if
    a batch norm stood behind it."""
    shapes = {}
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Conv1d | torch.nn.Conv2d):
            shapes[f"{prefix}{name}.weight"] = tuple(part.weight.shape)
            if isinstance(part, torch.nn.Conv2d) or part.bias is not None:
                shapes[f"{prefix}{name}.bias"] = (part.out_channels,)
        if isinstance(part, torch.nn.GroupNorm):
            shapes |= {f"{prefix}{name}.{which}": (part.num_channels,) for which in ("weight", "bias")}
    return shapes


def macs(component: Component) -> int:
    """Multiplications of the captured graph's convolutions."""
    (entry,) = component.entries
    nodes = [node for node in capture(component, entry, {}).graph.nodes if op_name(node) == "edge::convolution"]
    return sum(node.meta["val"].numel() * math.prod(arguments(node)["shape"][1:]) for node in nodes)


def products(module: torch.nn.Module, samples: int) -> int:
    """Multiplications of a module on the device "meta" over speech."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        module(torch.zeros(1, samples))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("wenet", "parameters", "multiplied"), [(False, 12_159_591, 3_163_639_808), (True, 12_796_359, 3_397_963_776)]
)
def test_the_renderer_is_the_published_one(wenet: bool, parameters: int, multiplied: int) -> None:
    with torch.device("meta"):
        published = UNet(CHANNELS, wenet=wenet)
    assert sum(p.numel() for p in published.parameters()) == parameters
    component = model_of(**WENET if wenet else {}).component("renderer")
    assert {slot.tensor: slot.shape for slot in component.slots} == folded(published, "unet.")
    assert macs(component) == multiplied


@pytest.mark.parametrize(
    ("wenet", "parameters", "multiplied"), [(False, 3_759_775, 766_334_976), (True, 4_147_135, 883_759_104)]
)
def test_mobileone_is_the_published_one_reparameterized(wenet: bool, parameters: int, multiplied: int) -> None:
    component = model_of(variant="mobileone", **WENET if wenet else {}).component("renderer")
    # as published, the fifth convolution of the branch that hears keeps its batch norm, of 512 more
    assert sum(math.prod(slot.shape) for slot in component.slots) == parameters - 512
    assert macs(component) == multiplied


def test_the_encoder_is_the_published_one() -> None:
    with torch.device("meta"):
        published = FeatherHubert([64, 128, 256, 384], 256, 8, 1024)
    model = model_of(feather_hubert=SMALL)
    component = model.component("audio")
    assert {s.tensor: s.shape for s in component.slots} == {
        f"feather_hubert.{name}": tuple(tensor.shape) for name, tensor in published.state_dict().items()
    }
    assert sum(math.prod(slot.shape) for slot in component.slots) == 3_364_096
    assert products(published, 16000) == 432_254_336
    assert macs(component) == products(published, 32080)
    assert sum(math.prod(s.shape) for s in model_of().component("audio").slots) == 15_244_544


def test_the_stream_is_defined_by_constants() -> None:
    constants = model_of(feather_hubert=SMALL).constants
    assert constants["audio"] == {
        "sample_rate": 16000,
        "samples": 32080,
        "tokens_per_second": 50,
        "tokens": 100,
        "hop": 10,
        "ahead": 8,
        "normalization_eps": 1e-7,
    }
    heard = {"before": 4, "ahead": 3, "features": [16, 32, 32]}
    assert constants["frames"] == {"rate": 25, "tokens": 2, "lookahead_ms": 280, **heard}
    assert constants["picture"] == {
        "size": 160,
        "crop": 168,
        "border": 4,
        "mouth": [5, 5, 150, 145],
        "channels": "bgr",
        "scale": 255,
    }
    assert model_of(**WENET).constants["frames"] == {"rate": 20, "before": 4, "ahead": 3, "features": [128, 16, 32]}


def test_a_narrower_geometry_fits_together() -> None:
    model = model_of(channels=[8, 16, 24, 32, 48], feather_hubert={"channels": 32, "num_blocks": 3, "output_dim": 256})
    audio, renderer = (component.entries[0] for component in model.components)
    assert audio.outputs[0].shape == (1, 100, 256)
    assert [port.shape for port in renderer.inputs] == [(1, 6, 96, 96), (1, 16, 16, 16)]
    assert renderer.outputs[0].shape == (1, 3, 96, 96)


def test_what_is_alive_at_once_is_in_the_last_level() -> None:
    """Its second depthwise convolution, with the input that is added: 2 · 32 in and out, and 32 beside them; or the
    first, of 128 in and out."""
    renderer = model_of().component("renderer")
    assert renderer.live(renderer.entries[0], {}) == 2 * 128 * 160 * 160


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": 128}, r"size must be 160, not 128: features of 32 x 32 become 10 x 10"),
        ({"channels": [32, 64]}, r"channels must be a list of 5 whole numbers"),
        ({"channels": [32, 63, 128, 256, 512]}, r"channels must be even from the second"),
        ({"variant": "tiny"}, r"variant must be one of original, mobileone, not 'tiny'"),
        ({"feather_hubert": {"output_dim": 1000}}, r"feather_hubert\.output_dim must be a square, not 1000"),
        ({"feather_hubert": {"frontend": [1, 2, 3]}}, r"feather_hubert\.frontend must be a list of 4 whole numbers"),
        ({"streaming": {"window": 10, "hop": 8, "ahead": 8}}, r"streaming\.hop 8 and ahead 8 must be even, and fit"),
        ({"streaming": {"window": 101}}, r"streaming\.hop 10 and ahead 8 must be even, and fit into the window, 101"),
        ({"audio": "wenet"}, r"feather_hubert must be null where audio is wenet"),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^config\.json: {message}"):
        model_of(**config)


@pytest.mark.parametrize("name", ["unet.audio_model.bn3.running_mean", "unet.inc.inconv.depthwise.rbr_skip.weight"])
def test_norms_that_are_not_folded_are_refused(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"tensor '{name}' belongs to a norm that is not folded; run edgewright adopt"
    ):
        read_model({"model_type": "feathertalk"}, ["unet.outc.conv.weight", name], 2)


RULES = [
    # nine columns fill no words; the first convolutions have six inputs, one, and 16, in which MLX has no groups
    *({"match": match, "bits": 16} for match in ("unet.*.conv.3", "unet.inc.*", "*.dw_conv", "*.layers.0.conv")),
    {"match": "unet.audio_model.conv1.conv.0", "bits": 16},
    {"match": "*", "bits": 8, "group": "channel"},
]


@pytest.mark.parametrize("target", ["onnx", "coreml", "mlx", "tvm"])
def test_a_plan_of_the_published_geometry_needs_its_config_alone(target: str) -> None:
    """Sizes in INT8: 13.2 MB of renderer and 3.7 MB of encoder, which with float32 scales are the most."""
    content = {
        "name": "feathertalk",
        "checkpoint": {"path": "."},
        "quantize": {"rules": RULES},
        "context": {"max_tokens": 2},
        "targets": {target: {}},
    }
    recipe = recipe_model(target_options(), method_options()).model_validate(content)
    (found,) = plan(recipe, {"model_type": "feathertalk", "feather_hubert": SMALL})
    audio, renderer = found.components
    assert (audio.component, renderer.component) == ("audio", "renderer")
    assert 3.36e6 < audio.weight_bytes <= 3.7e6 and 12.1e6 < renderer.weight_bytes <= 13.2e6
    assert found.refused is None
