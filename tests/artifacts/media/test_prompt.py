"""Prompts equal what transformers' SmolVLMProcessor tokenizes; markers and what they stand for are as many."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from artifacts.media.errors import MediaError
from artifacts.media.prompt import expand, image_tokens, refuse_overlong, video_text
from artifacts.media.tiles import grid
from artifacts.media.video import Clip, sample
from tests.artifacts.media.reference import (
    GOLDENS,
    IMAGES,
    LENGTH,
    SIZES,
    picture,
    pixtral,
    smolvlm,
    smolvlm_images,
    smolvlm_processor,
    tokenizer,
)


def times(frames, fps, description):
    taken = sample(frames, fps, frames / fps, description.video)
    return Clip(None, taken, tuple(at / fps for at in taken), frames / fps)


@pytest.fixture(scope="module")
def description():
    return smolvlm()


@pytest.fixture(scope="module")
def processor():
    return smolvlm_processor()


@pytest.mark.parametrize(
    ("prompt", "sizes"),
    [
        *(("<image>Describe.", [size]) for size in SIZES if max(size) < 1000),
        ("<image>Compare <image>", [(100, 300), (40, 33)]),
        ("\n<image>\n<image>\n\n<image>:", [(1, 1), (32, 32), (64, 20)]),
        ("User:<image>What is it?<end_of_utterance>\nAssistant:", [(50, 70)]),
        ("No image at all", []),
    ],
)
def test_ids_of_images(prompt, sizes, description, processor):
    images = [Image.fromarray(picture(*size)) for size in sizes]
    reference = processor(text=prompt, images=images or None)["input_ids"][0]
    grids = [grid(*size, description.images) for size in sizes]
    assert tokenizer()(expand(prompt, description, grids))["input_ids"] == reference
    assert reference.count(description.prompt.ids["<image>"]) == image_tokens(description, grids)


def test_ids_of_images_that_are_not_split():
    description = smolvlm(split=False, max_tiles=1)
    processor = smolvlm_processor(smolvlm_images(do_image_splitting=False))
    reference = processor(text="<image>?", images=[Image.fromarray(picture(90, 120))])["input_ids"][0]
    assert tokenizer()(expand("<image>?", description, [grid(90, 120, description.images)]))["input_ids"] == reference


def test_ids_of_clips(description):
    goldens, encoder = json.loads(GOLDENS.read_text())["prompts"], tokenizer()
    assert len(goldens) > 10
    for golden in goldens:
        images = [grid(*size, description.images) for size in IMAGES[: golden["images"]]]
        clip = times(golden["frames"], golden["fps"], description)
        text = expand(golden["prompt"], description, images, [clip])
        assert encoder(text)["input_ids"] == golden["ids"]
        count = image_tokens(description, images, len(clip.timestamps))
        assert golden["ids"].count(description.prompt.ids["<image>"]) == count


def test_a_clip_in_words(description):
    """What the reference's own method writes, for a clip of more than an hour and one of more than a day."""
    from transformers.video_utils import VideoMetadata

    processor = smolvlm_processor()
    for frames, fps in ((5000, 1.0), (100_000, 1.0), (9, 3.0)):
        clip = times(frames, fps, description)
        metadata = VideoMetadata(total_num_frames=frames, fps=fps, duration=frames / fps, frames_indices=clip.indices)
        pixels = type("Pixels", (), {"shape": (1, len(clip.indices))})
        reference = processor.replace_video_token({"pixel_values": pixels, "video_metadata": [metadata]}, 0)
        assert video_text(description, clip) == reference


@pytest.mark.parametrize(
    ("prompt", "images", "clips", "message"),
    [
        ("<image> <image>", 1, 0, "the prompt has 2 × <image>, and 1 image was given"),
        ("<image>", 2, 0, "the prompt has 1 × <image>, and 2 images were given"),
        ("Hello", 2, 0, "2 images were given, and the prompt has no <image> that says where"),
        ("<image><image><image>", 0, 0, "the prompt has 3 × <image>, and no image was given"),
        ("<video>", 0, 0, "the prompt has 1 × <video>, and no clip was given"),
        ("<image>", 1, 1, "1 clip was given, and the prompt has no <video> that says where"),
    ],
)
def test_markers_must_be_as_many_as_what_they_stand_for(prompt, images, clips, message, description):
    grids = [grid(9, 9, description.images)] * images
    with pytest.raises(MediaError) as error:
        expand(prompt, description, grids, [times(5, 1.0, description)] * clips)
    assert str(error.value) == message


def test_a_model_without_clips_says_so(description):
    without = description.model_copy(update={"video": None})
    clip = times(5, 1.0, description)
    for model in (without, pixtral()):
        with pytest.raises(MediaError, match="1 clip was given, and the model takes images only"):
            expand("<video>", model, [], [clip])
    assert expand("what is <video>?", without) == "what is <video>?"


def test_what_stands_for_an_image_is_not_searched_again(description):
    prompt = description.prompt.model_copy(update={"global_image": "<video>"})
    text = expand("<image>", description.model_copy(update={"prompt": prompt}), [grid(32, 32, description.images)])
    assert text.count("<video>") == 1


def test_a_prompt_longer_than_the_context_is_refused_with_its_counts(description):
    refuse_overlong(1024, 1024, description, 17 * LENGTH)
    with pytest.raises(MediaError) as error:
        refuse_overlong(1213, 1024, description, 17 * LENGTH)
    assert str(error.value) == (
        "the prompt has 1,213 tokens (68 of them for images: 17 tiles of 4), and the context holds 1,024: give fewer "
        "or smaller images"
    )
    with pytest.raises(MediaError, match=r"\(64 of them for images\)"):
        refuse_overlong(100, 64, pixtral(), 64)


@pytest.mark.parametrize("count", [0, 13])
def test_a_clip_of_no_frames_or_too_many(count, description):
    with pytest.raises(MediaError, match=f"a clip of {count} frames; the model takes 1 to 12"):
        video_text(description, Clip(None, (), tuple(map(float, range(count))), 9.0))
