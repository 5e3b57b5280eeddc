"""One text, and the pixels in the order in which it speaks of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from artifacts.media import PAGE
from artifacts.media.errors import MediaError
from artifacts.media.prepare import prepare
from artifacts.media.tiles import normalise
from artifacts.media.video import clip_of_array
from tests.artifacts.media.reference import (
    clip,
    picture,
    pixtral,
    pixtral_images,
    smolvlm,
    smolvlm_processor,
    tokenizer,
)


def test_two_images_as_the_processor_gives_them():
    description, images = smolvlm(), [picture(30, 90), picture(64, 20)]
    found = prepare("<image>Compare<image>", description, images)
    reference = smolvlm_processor()(text="<image>Compare<image>", images=[Image.fromarray(image) for image in images])
    values = normalise(np.concatenate(found.pixels), description.images.normalisation)
    np.testing.assert_array_equal(values, reference["pixel_values"][0])
    ids = tokenizer()(found.text)["input_ids"]
    assert ids == reference["input_ids"][0]
    assert ids.count(description.prompt.ids["<image>"]) == found.image_tokens == len(values) * 4


def test_images_and_clips_come_in_the_order_of_the_prompt():
    description, frames = smolvlm(), clip_of_array(clip(9, 20, 30), 4.0, smolvlm())
    found = prepare("<image> <video> <image>", description, [picture(9, 9), picture(90, 20)], [frames])
    assert found.pixels[1] is frames.tiles
    assert [len(pixels) for pixels in found.pixels] == [17, len(frames.timestamps), 5]
    assert found.text.count("<image>") == found.image_tokens


def test_pictures_of_any_size():
    description, images = pixtral(), [picture(50, 90), picture(200, 20)]
    found = prepare("[IMG] or [IMG]", description, images)
    for pixels, image in zip(found.pixels, images, strict=True):
        reference = pixtral_images()(Image.fromarray(image))["pixel_values"]
        np.testing.assert_array_equal(normalise(pixels, description.images.normalisation), reference)
    assert found.text.count("[IMG]") == found.image_tokens


def test_an_image_without_its_marker():
    with pytest.raises(MediaError, match="1 image was given, and the prompt has no <image> that says where"):
        prepare("What is it?", smolvlm(), [picture(9, 9)])


def test_the_page_names_every_key_that_it_explains():
    page, description = PAGE.read_text(encoding="utf-8"), smolvlm()
    prompt, video = set(type(description.prompt).model_fields), set(type(description.video).model_fields)
    images = set(type(description.images).model_fields) | set(type(pixtral().images).model_fields)
    for key in (images | prompt | video) - {"order"}:
        assert key in page, key
