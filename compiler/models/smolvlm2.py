"""SmolVLM and SmolVLM2: tiles through a SigLIP tower, token ids and tiles' features into one Llama decoder.

vision    tile(pixels) -> features: the tower and the connector, which shuffles squares of patches into wide ones
embed     embed(input_ids) -> embeddings; features take the places of image tokens, which is the driver's work
decoder   prefill and decode over embeddings (`decoder.py`)

Names of slots are those of the tensors without ".weight". What must not live here: how an image becomes tiles and a
prompt (processors), and in which order components are called (drivers).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from compiler.config import Keys
from compiler.models import decoder, embed, siglip
from compiler.models.base import Component, Entry, Model, Port
from compiler.models.decoder_spec import DecoderSpec, read_spec
from compiler.models.layers import linears
from compiler.models.siglip import TowerSpec
from compiler.slots import Schemes, Slot
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

    from recipes.schema import Vision

MODEL_TYPES = VISION_TYPES = ("smolvlm",)
_DRIVER = "image_text"
_TEXT, _VISION, _CONNECTOR = "model.text_model.", "model.vision_model.", "model.connector.modality_projection.proj"
_TILES_PER_EDGE = 4  # the longest edge to which the published processors scale an image, in tiles
_MAX_TILES = _TILES_PER_EDGE**2 + 1  # and the whole image once more
_IMAGE_TOKEN = 128257
# sections of configs that transformers 4 saved leave out what equals the defaults of their class
_LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read(
    config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int, vision: Vision | None = None
) -> Model:
    """The model of a checkpoint: vision, embed and decoder. See `base.Family`; `vision` bounds the tiles."""
    if vision is not None and (vision.max_tiles is None or vision.max_image is not None):
        raise CheckpointError("vision: a model that sees tiles is bounded by max_tiles, not by max_image")
    keys = Keys(config)
    spec = _read_text(keys)
    tower, scale = _read_vision(keys)
    tokens = (tower.side // scale) ** 2
    default = _IMAGE_TOKEN if spec.vocab > _IMAGE_TOKEN else None
    # more tiles than the context holds are of no use
    wanted = _MAX_TILES if vision is None or vision.max_tiles is None else vision.max_tiles
    max_tiles = min(wanted, max(1, max_tokens // tokens))
    constants = decoder.constants(spec, max_tokens) | {
        "image_token_id": keys.integer("image_token_id", 0, spec.vocab - 1, default),
        "tile_size": tower.image,
        "patches_per_tile": tower.patches,
        "tokens_per_tile": tokens,
        "max_tiles": max_tiles,
        "scale_factor": scale,
    }
    way = decoder.Way(embedded=True, prefix=_TEXT)
    components = (
        _vision(tower, scale, spec.hidden, max_tiles),
        embed.component(spec, max_tokens, _TEXT, _TEXT),
        decoder.component(spec, tensors, max_tokens, way),
    )
    geometry = {"text": asdict(spec), "vision": asdict(tower), "constants": constants}
    return Model("smolvlm2", components, _DRIVER, constants, geometry, _apart(config))


def _read_text(keys: Keys) -> DecoderSpec:
    if "text_config" not in keys:
        raise keys.error("text_config", "must be an object")
    given = keys.section("text_config")
    given.word("model_type", ("llama",), "llama")
    text = _LLAMA | {key: value for key, value in given.values.items() if value is not None}
    # what generation_config.json says of special tokens stands outside
    text |= {key: keys.values[key] for key in ("bos_token_id", "eos_token_id") if key in keys}
    tied = keys.flag("tie_word_embeddings", False)
    return read_spec({"text_config": text | {"tie_word_embeddings": tied}}, wrapped=True)


def _read_vision(keys: Keys) -> tuple[TowerSpec, int]:
    """The tower, and how many patches along an edge become one token."""
    if "vision_config" not in keys:
        raise keys.error("vision_config", "must be an object")
    tower = siglip.read_tower(keys.section("vision_config"), _VISION)
    scale = keys.integer("scale_factor", 1, 1 << 8, 2)
    if tower.side % scale:
        raise keys.error(
            "scale_factor",
            f"must divide the {tower.side} patches along an edge (vision_config.image_size {tower.image}, "
            f"patch_size {tower.patch})",
        )
    return tower, scale


def _apart(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of what is packed: table and head are two tensors, each with a scheme of its own."""
    found = {key: value for key, value in config.items() if key != "quantization_config"}
    return found | {"tie_word_embeddings": False}


def _vision(tower: TowerSpec, scale: int, width: int, max_tiles: int) -> Component:
    projection = Slot(_CONNECTOR, f"{_CONNECTOR}.weight", width, tower.hidden * scale**2, "linear")
    pixels = Port("pixels", "float32", ("tiles", siglip.CHANNELS, tower.image, tower.image))
    features = Port("features", "float32", ("tiles", tower.patches // scale**2, width))
    return Component(
        name="vision",
        slots=(*siglip.slots(tower), projection),
        entries=(Entry("tile", (pixels,), (features,), {"tiles": (1, max_tiles)}),),
        module=partial(_vision_module, tower, scale, projection),
        live=partial(_vision_live, tower),
        fused=tuple(siglip.fused(tower)),
        cuts=(*siglip.cuts(tower), _CONNECTOR),
    )


def _vision_live(tower: TowerSpec, entry: Entry, sizes: Mapping[str, int]) -> int:
    return sizes["tiles"] * siglip.live(tower)


def _vision_module(tower: TowerSpec, scale: int, projection: Slot, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    """forward(pixels float32 [tiles, 3, tile_size, tile_size]) -> features float32 [tiles, tokens_per_tile, hidden of
    the decoder]; pixels are normalized as the processor does it."""
    import torch

    encode, linear = siglip.encoder(tower, schemes), linears([projection], schemes)
    side, fewer = tower.side, tower.side // scale

    def shuffled(x: torch.Tensor) -> torch.Tensor:
        """Squares of scale by scale patches side by side in one: [tiles, fewer², hidden * scale²]. At most four
        dimensions at a time: Core ML takes five."""
        rows = x.reshape(-1, side, fewer, tower.hidden * scale).permute(0, 2, 1, 3)
        squares = rows.reshape(-1, fewer, fewer, tower.hidden * scale**2).permute(0, 2, 1, 3)
        return squares.reshape(-1, fewer**2, tower.hidden * scale**2)

    class Vision(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
            return (linear(shuffled(encode(pixels)), projection.name),)

    return Vision()
