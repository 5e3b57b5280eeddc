"""The picture and its cells equal transformers' PixtralImageProcessorPil bit by bit; prompts PixtralProcessor's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from artifacts.media.errors import MediaError
from artifacts.media.pixtral import cells, fit
from artifacts.media.prompt import expand, image_tokens
from artifacts.media.tiles import normalise
from tests.artifacts.media.reference import GOLDENS, SIZES, picture, pixtral, pixtral_images, tokenizer

NARROW = {(7, 500), (500, 7), (100, 4000), (4000, 100), (1, 3000), (3000, 1)}


@pytest.mark.parametrize("size", [size for size in SIZES if size not in NARROW or min(size) > 6])
def test_picture_and_values_equal_the_reference(size):
    rule, image = pixtral().images, picture(*size)
    found, pixels = fit(image, rule)
    reference = pixtral_images()(Image.fromarray(image))
    assert [(found.rows * 28, found.cols * 28)] == [tuple(size) for size in reference["image_sizes"]]
    np.testing.assert_array_equal(normalise(pixels[None], rule.normalisation), reference["pixel_values"])


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 1])
def test_cells_at_the_size_of_ministral_3(size):
    from transformers.image_utils import ChannelDimension
    from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

    image = np.broadcast_to(np.uint8(0), (3, *size))
    found = cells(*size, pixtral(1540).images)
    assert (found.rows * 28, found.cols * 28) == get_resize_output_image_size(image, 1540, 28, ChannelDimension.FIRST)


def test_an_image_too_narrow_is_refused_with_its_size():
    with pytest.raises(MediaError, match="an image of 1 × 3000 pixels is too narrow: reduced to 112 pixels"):
        cells(3000, 1, pixtral().images)


def test_prompts_equal_those_of_the_processor():
    goldens, description, encoder = json.loads(GOLDENS.read_text())["pixtral"], pixtral(), tokenizer()
    assert len(goldens) > 10
    for golden in goldens:
        found = [cells(*size, description.images) for size in golden["sizes"]]
        text = expand(golden["prompt"], description, found)
        assert encoder(text)["input_ids"] == golden["ids"]
        assert golden["ids"].count(description.prompt.ids["[IMG]"]) == image_tokens(description, found)
