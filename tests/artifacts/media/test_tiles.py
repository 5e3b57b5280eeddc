"""Tiles and values equal transformers' SmolVLMImageProcessorPil bit by bit, whatever an image's shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from artifacts.media.errors import MediaError
from artifacts.media.tiles import grid, most_tiles, normalise, split
from tests.artifacts.media.reference import LONGEST, SIZES, TILE, picture, smolvlm, smolvlm_images


@pytest.fixture(scope="module")
def rule():
    return smolvlm().images


@pytest.fixture(scope="module")
def processor():
    return smolvlm_images()


@pytest.mark.parametrize("size", SIZES)
def test_tiles_their_order_and_values_equal_the_reference(size, rule, processor):
    image = picture(*size)
    cut, tiles = split(image, rule)
    reference = processor(Image.fromarray(image), return_row_col_info=True)
    assert [[cut.rows]] == reference["rows"]
    assert [[cut.cols]] == reference["cols"]
    assert tiles.shape == (cut.tiles, TILE, TILE, 3)
    np.testing.assert_array_equal(normalise(tiles, rule.normalisation), reference["pixel_values"][0])
    assert np.asarray(reference["pixel_attention_mask"]).all()  # whole tiles: a mask says nothing


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (511, 513), (100, 4000)])
def test_a_small_copy_alone_where_images_are_not_split(size):
    rule, image = smolvlm(split=False, max_tiles=1).images, picture(*size)
    cut, tiles = split(image, rule)
    reference = smolvlm_images(do_image_splitting=False)(Image.fromarray(image), return_row_col_info=True)
    assert (cut.rows, cut.cols, len(tiles)) == (0, 0, 1)
    np.testing.assert_array_equal(normalise(tiles, rule.normalisation), reference["pixel_values"][0])


@pytest.mark.parametrize(("longest", "tile"), [(2048, 512), (1536, 384), (1456, 364), (600, 512), (95, 33)])
@pytest.mark.parametrize("size", SIZES)
def test_grids_of_checkpoints_as_they_are_shipped(size, longest, tile):
    """The sizes of SmolVLM2 256M and 500M, 2.2B, the class's defaults, and some that divide badly; no pixels."""
    from transformers.image_utils import SizeDict
    from transformers.models.smolvlm import image_processing_pil_smolvlm as reference

    found = grid(*size, smolvlm(longest_edge=longest, tile=tile, max_tiles=most_tiles(longest, tile)).images)

    class Sizes(reference.SmolVLMImageProcessorPil):
        def resize(self, image, size, resample=None, **_):
            if size.longest_edge:
                size = SizeDict(**dict(zip(("height", "width"), resized(image, size.longest_edge), strict=True)))
            return np.broadcast_to(np.uint8(0), (3, size.height, size.width))

    resized = reference.get_resize_output_image_size
    processor = Sizes()
    image = processor.resize(np.broadcast_to(np.uint8(0), (3, *size)), SizeDict(longest_edge=longest))
    assert found.scaled == image.shape[1:]
    image = processor.resize_for_vision_encoder(image, tile)
    tiles, rows, cols = processor.split_images(image, {"longest_edge": tile})
    assert (found.rows, found.cols, found.tiles) == (rows, cols, len(tiles))


def test_values_of_every_mean_and_spread():
    normalisation = smolvlm().images.normalisation.model_copy(update={"mean": (0.485, 0.456, 0.406)})
    normalisation = normalisation.model_copy(update={"std": (0.229, 0.224, 0.225), "rescale": 0.00392156862745098})
    tiles = picture(TILE, TILE)[None]
    processor = smolvlm_images(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    reference = [processor.normalize(processor.rescale(t.transpose(2, 0, 1), 1 / 255), *_spread()) for t in tiles]
    np.testing.assert_array_equal(normalise(tiles, normalisation), reference)


def _spread():
    return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), most=st.integers(1, 17))
def test_fewer_tiles_where_a_phone_has_less_memory(height, width, most):
    full, bounded = smolvlm().images, smolvlm(max_tiles=most).images
    found, reference = grid(height, width, bounded), grid(height, width, full)
    assert found.tiles <= most
    assert found.tiles <= reference.tiles <= most_tiles(LONGEST, TILE)
    if reference.tiles <= most:
        assert found == reference


def test_no_image_takes_more_tiles_than_a_square_one():
    rule = smolvlm().images
    assert most_tiles(LONGEST, TILE) == 17
    assert max(grid(h, w, rule).tiles for h in range(1, 200, 7) for w in range(1, 200, 7)) == 17


def test_a_tile_of_one_pixel_cannot_be_one_tile_alone():
    with pytest.raises(MediaError, match="an image of 1 × 1 pixels takes more than 1 tiles at any size"):
        grid(1, 1, smolvlm(longest_edge=1, tile=1, max_tiles=1).images)
