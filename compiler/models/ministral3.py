"""Ministral 3 with its eyes: images through the Pixtral tower, token ids and images' features into one decoder.

vision    image(pixels, rows, columns, images) -> features: the tower, and the projector that makes a cell one token
embed     embed(input_ids) -> embeddings; features take the places of image tokens, which is the driver's work
decoder   prefill and decode over embeddings (`decoder.py`)

A checkpoint of this kind is taken as its text decoder alone (`decoder.py`) unless the recipe has a section `vision`,
whose `max_image` bounds what an image takes. Names of slots are those that transformers gives the tensors now, without
".weight"; published files may have older ones. What must not live here: how an image becomes cells and a prompt
(processors), and in which order components are called (drivers).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from compiler.config import Keys
from compiler.models import decoder, embed, pixtral
from compiler.models.base import Component, Entry, Model, Port
from compiler.models.decoder_spec import DecoderSpec, read_spec
from compiler.models.layers import linears
from compiler.models.pixtral import TowerSpec
from compiler.slots import Schemes, Slot
from compiler.tensors import CheckpointError
from recipes.schema import Vision

if TYPE_CHECKING:
    import torch

VISION_TYPES = ("mistral3",)
_DRIVER = "native_image_text"
_TEXT, _VISION, _PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."
_FIRST = "patch_conv.weight"
_IMAGE_TOKEN = 10
_IMAGES = 2  # pictures that one call tells apart: one, and what fills the call up to a size that a runtime takes


def read(config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int, vision: Vision) -> Model:
    """The model of a checkpoint: vision, embed and decoder. See `base.Family`."""
    keys = Keys(config)
    spec = _read_text(keys)
    tower = _read_tower(keys, tensors)
    if vision.max_image is None:
        raise CheckpointError(
            "vision: this model sees an image in one piece, and is bounded by max_image, not max_tiles"
        )
    if not tower.cell <= vision.max_image <= tower.image:
        raise CheckpointError(
            f"vision.max_image is {vision.max_image}; the checkpoint takes images from {tower.cell} pixels (a token's "
            f"edge) to {tower.image} (vision_config.image_size)"
        )
    side = -(-vision.max_image // tower.cell)
    # more cells than the context holds are of no use
    cells = min(side**2, max_tokens)
    key = "image_token_id" if "image_token_id" in keys else "image_token_index"
    constants = decoder.constants(spec, max_tokens) | {
        "image_token_id": keys.integer(key, 0, spec.vocab - 1, _IMAGE_TOKEN),
        "max_image": vision.max_image,
        "max_cells": cells,
        "patch_size": tower.patch,
        "merge": tower.merge,
    }
    way = decoder.Way(embedded=True, prefix=_TEXT)
    text = decoder.component(spec, tensors, max_tokens, way)
    prefix = decoder.tensor_prefix(tensors, way)
    projector = _projector(keys, spec, tower)
    components = (
        _vision(tower, projector, spec, cells, side * tower.merge),
        embed.component(spec, max_tokens, _TEXT, prefix),
        text,
    )
    geometry = {"text": asdict(spec), "vision": asdict(tower), "constants": constants}
    packed = {name: value for name, value in config.items() if name != "quantization_config"}
    # table and head are two tensors, each with a scheme of its own
    packed |= {"tie_word_embeddings": False, "text_config": {**config["text_config"], "tie_word_embeddings": False}}
    return Model("ministral3", components, _DRIVER, constants, geometry, packed)


def _read_text(keys: Keys) -> DecoderSpec:
    """The text side. Whether its embeddings are tied says the outer config: the inner one may hold a default."""
    if "text_config" not in keys:
        raise keys.error("text_config", "must be an object")
    text = keys.section("text_config")
    tied = keys.flag("tie_word_embeddings", text.flag("tie_word_embeddings", False))
    return read_spec({**keys.values, "text_config": {**text.values, "tie_word_embeddings": tied}})


def _read_tower(keys: Keys, tensors: Collection[str] | None) -> TowerSpec:
    if "vision_config" not in keys:
        raise keys.error("vision_config", "must be an object")
    merge = keys.integer("spatial_merge_size", 1, 16, 2)
    keys.integer("vision_feature_layer", -1, -1, -1)
    keys.word("projector_hidden_act", ("gelu",), "gelu")
    prefix = _VISION
    if tensors is not None and _VISION + _FIRST not in tensors:
        prefix = _VISION.removeprefix("model.")
        if prefix + _FIRST not in tensors:
            raise CheckpointError(
                f"the checkpoint has no tensor named {_VISION}{_FIRST}: it holds no vision tower; leave the recipe's "
                "section vision out to compile its text side alone"
            )
    return pixtral.read_tower(keys.section("vision_config"), merge, _VISION, prefix)


def _projector(keys: Keys, spec: DecoderSpec, tower: TowerSpec) -> dict[str, Slot]:
    """Slots by their names in the projector."""
    tensors = _PROJECTOR if tower.tensors == _VISION else _PROJECTOR.removeprefix("model.")
    sizes = {
        "patch_merger.merging_layer": (tower.hidden, tower.hidden * tower.merge**2),
        "linear_1": (spec.hidden, tower.hidden),
        "linear_2": (spec.hidden, spec.hidden),
    }
    found = {"norm": Slot(f"{_PROJECTOR}norm", f"{tensors}norm.weight", 1, tower.hidden, "norm")}
    for name, (rows, columns) in sizes.items():
        found[name] = Slot(_PROJECTOR + name, f"{tensors}{name}.weight", rows, columns, "linear")
        if name.startswith("linear") and keys.flag("multimodal_projector_bias", False):
            bias = f"{name}.bias"
            found[bias] = Slot(_PROJECTOR + bias, tensors + bias, 1, rows, "bias")
    return found


def _vision(tower: TowerSpec, projector: Mapping[str, Slot], spec: DecoderSpec, cells: int, places: int) -> Component:
    patches = ("cells", tower.merge**2)
    inputs = (
        Port("pixels", "float32", ("cells", pixtral.CHANNELS, tower.cell, tower.cell)),
        Port("rows", "int64", patches, below=places),
        Port("columns", "int64", patches, below=places),
        Port("images", "int64", ("cells",), below=_IMAGES),
    )
    features = Port("features", "float32", ("cells", spec.hidden))
    return Component(
        name="vision",
        slots=(*pixtral.slots(tower), *projector.values()),
        entries=(Entry("image", inputs, (features,), {"cells": (1, cells)}),),
        module=partial(_module, tower, projector, spec, places),
        live=partial(_live, tower),
        fused=tuple(pixtral.fused(tower)),
        cuts=(*pixtral.cuts(tower), _PROJECTOR),
    )


def _live(tower: TowerSpec, entry: Entry, sizes: Mapping[str, int]) -> int:
    return pixtral.live(tower, sizes["cells"])


def _module(
    tower: TowerSpec, projector: Mapping[str, Slot], spec: DecoderSpec, places: int, entry: Entry, schemes: Schemes
) -> torch.nn.Module:
    """forward(pixels float32 [cells, 3, cell, cell], rows int64 [cells, merge²], columns int64 [cells, merge²],
    images int64 [cells]) -> features float32 [cells, hidden of the decoder], one for each image token.

    An app cuts an image, prepared and normalized as its processor does it, into squares of cell = patch_size · merge
    pixels, row after row; those are the cells. rows, columns: of every patch of a cell, counted in patches from the
    image's upper left corner, the cell's patches row after row. images: 0 throughout for one image. Where a runtime
    takes only some numbers of cells, the call is filled up with any cells that say 1: patches see those of their own
    number alone.
    """
    import torch

    from compiler.dialect import edge

    encode, linear = pixtral.encoder(tower, schemes, places), linears(projector.values(), schemes)

    class Vision(torch.nn.Module):
        def forward(
            self, pixels: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, images: torch.Tensor
        ) -> tuple[torch.Tensor]:
            x = edge.rms_norm(encode(pixels, rows, columns, images), f"{_PROJECTOR}norm", tower.hidden, spec.eps)
            # channel by channel, the patches of a cell side by side
            squares = x.transpose(1, 2).reshape(-1, tower.hidden * tower.merge**2)
            h = linear(linear(squares, f"{_PROJECTOR}patch_merger.merging_layer"), f"{_PROJECTOR}linear_1")
            return (linear(torch.nn.functional.gelu(h), f"{_PROJECTOR}linear_2"),)

    return Vision()
