"""The family liveportrait: published names, shapes and multiplications; its config; what an app is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from artifacts.formats.frames import pace
from compiler.drivers import plain
from compiler.models.base import Model, read_model
from compiler.models.liveportrait_networks import MLPS
from compiler.tensors import CheckpointError
from edgewright import api
from tests.compiler import portrait

# multiplications of a call, as upstream's modules were counted
MACS = {
    "appearance.extract": 32_057_065_472,
    "motion.estimate": 5_818_718_208,
    "retargeting.stitch": 44_864,
    "retargeting.eyes": 143_808,
    "retargeting.lips": 36_928,
    "warping.warp": 171_035_721_728,
    "generator.generate": 445_787_406_336,
}
PARAMETERS = {"appearance": 834_944, "motion": 28_118_728, "warping": 45_523_073, "generator": 55_365_388}


def model_of(**config: Any) -> Model:
    return read_model({"model_type": "liveportrait", **config}, None, 2)


def folded(module: torch.nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict without its batch and spectral norms; what stands before a convolution stays."""
    shapes = {}
    for name, tensor in module.state_dict().items():
        norm = isinstance(module.get_submodule(name.rpartition(".")[0]), torch.nn.modules.batchnorm._BatchNorm)
        if name.endswith((".weight_u", ".weight_v")) or (norm and "norm1" not in name):
            continue
        if not norm or name.endswith(("weight", "bias")):
            shape = (tensor.numel(),) if ".grn." in name else tuple(tensor.shape)
            shapes[prefix + name.replace("weight_orig", "weight")] = shape
    return shapes


def test_every_component_is_the_published_one() -> None:
    with torch.device("meta"):
        modules = portrait.published()
    model = model_of()
    names = ["appearance", "motion", "retargeting", "warping", "generator"]
    assert [component.name for component in model.components] == names
    for name, file in portrait.PARTS.items():
        slots = model.component(name).slots
        assert {slot.tensor: slot.shape for slot in slots} == folded(modules[name], f"{file}.")
        assert sum(math.prod(slot.shape) for slot in slots) == PARAMETERS[name]
    slots = model.component("retargeting").slots
    expected: dict[str, tuple[int, ...]] = {}
    for entry, published in MLPS.items():
        expected |= folded(modules[entry], f"stitching_retargeting_module.{published}.")
    assert {slot.tensor: slot.shape for slot in slots} == expected


def test_multiplications_are_those_of_the_published_modules() -> None:
    """Counted from shapes; of the narrow geometry also by PyTorch over the modules themselves."""
    frames = model_of().constants["frames"]
    assert isinstance(frames, dict)
    assert {name: count for part in frames.values() for name, count in part.items()} == MACS
    modules, model = portrait.small(), model_of(**portrait.SMALL)
    frames = model.constants["frames"]
    assert isinstance(frames, dict)
    counted = {name: count for part in frames.values() for name, count in part.items()}
    for component in model.components:
        for entry in component.entries:
            module = modules.get(component.name) or modules[entry.name]
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                module(*(torch.zeros(port.sized({})) for port in entry.inputs))
            assert counter.get_total_flops() // 2 == counted[f"{component.name}.{entry.name}"]


def test_an_app_is_told_what_runs_when_and_what_keypoints_are() -> None:
    constants = model_of().constants
    assert {when: [*names] for when, names in constants["frames"].items()} == {  # type: ignore[union-attr]
        "once": ["appearance.extract", "motion.estimate"],
        "each": ["motion.estimate", "retargeting.stitch", "warping.warp", "generator.generate"],
        "closing": ["retargeting.eyes", "retargeting.lips"],
    }
    assert constants["keypoints"] == {"count": 21, "degrees": {"bins": 3.0, "first": -97.5}, "bins": 66}
    assert constants["closing"] == {"eyes": 3, "lips": 2}
    assert constants["picture"] == {"size": 256, "drawn": 512, "channels": "rgb"}


def test_it_is_said_to_be_no_real_time_model() -> None:
    said = pace(model_of().constants)
    assert said == (
        "no real-time model on a phone's CPU: a frame is 623 thousand million multiplications (generator.generate 446, "
        "warping.warp 171), which eight cores at 4 GHz with 16 in each cycle, more than any phone's, compute in 1.2 s"
    )
    assert plain.warnings(model_of(), Path()) == [said] and said in api.plan_warnings("liveportrait-int8")
    assert pace(model_of(**portrait.SMALL).constants) is None
    assert pace(read_model({"model_type": "feathertalk"}, None, 2).constants) is None
    for other in ({}, {"frames": None}, {"frames": {"each": []}}, {"frames": {"each": {"a.b": "many"}}}):
        assert pace(other) is None


def test_ports_are_the_published_ones() -> None:
    ports = {
        f"{component.name}.{entry.name}": (
            [port.shape for port in entry.inputs],
            {port.name: port.shape for port in entry.outputs},
        )
        for component in model_of().components
        for entry in component.entries
    }
    picture, volume, points, warped = (1, 3, 256, 256), (1, 32, 16, 64, 64), (1, 21, 3), (1, 256, 64, 64)
    heads = {"kp": 63, "scale": 1, "pitch": 66, "yaw": 66, "roll": 66, "t": 3, "exp": 63}
    assert ports == {
        "appearance.extract": ([picture], {"feature": volume}),
        "motion.estimate": ([picture], {name: (1, size) for name, size in heads.items()}),
        "retargeting.stitch": ([(1, 126)], {"stitch_delta": (1, 65)}),
        "retargeting.eyes": ([(1, 66)], {"eyes_delta": (1, 63)}),
        "retargeting.lips": ([(1, 65)], {"lips_delta": (1, 63)}),
        "warping.warp": ([volume, points, points], {"warped": warped}),
        "generator.generate": ([warped], {"picture": (1, 3, 512, 512)}),
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": 250}, r"size must be a multiple of 128, by which it is halved, not 250"),
        ({"appearance_feature_extractor_params": {"max_features": 500}}, r"\S+max_features must be 512, reshape_chann"),
        ({"warping_module_params": {"num_kp": 24}}, r"warping_module_params\.num_kp must be a whole number from 21 to"),
        ({"motion_extractor_params": {"backbone": "resnet"}}, r"\S+backbone must be one of convnextv2_tiny, not 'resn"),
        ({"motion_extractor_params": {"dims": [8, 16]}}, r"\S+dims and depths must be four whole numbers each"),
        ({"motion_extractor_params": {"depths": [3, 3, "9", 3]}}, r"\S+depths must be a whole number from 1 to"),
        ({"spade_generator_params": {"block_expansion": 32}}, r"\S+block_expansion must give 256 channels, as many as"),
        ({"stitching_retargeting_module_params": []}, r"stitching_retargeting_module_params must be an object"),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^config\.json: {message}"):
        model_of(**config)


@pytest.mark.parametrize(
    "name",
    ["warping_module.third.norm.running_mean", "spade_generator.up_0.conv_s.weight_orig"],
)
def test_norms_that_are_not_folded_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"tensor '{name}' belongs to a norm that is not folded; run edgewright"):
        read_model({"model_type": "liveportrait"}, [name], 2)
