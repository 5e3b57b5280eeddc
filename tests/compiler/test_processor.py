"""A checkpoint's processor documents become one description; those that contradict each other are refused by key."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.errors import EdgewrightError
from artifacts.formats.preprocessing import content, read
from artifacts.media.prompt import expand
from artifacts.media.tiles import normalise, split
from compiler.processor import from_processor
from tests.artifacts.media import reference as ref

HALF = [0.5, 0.5, 0.5]
# as SmolVLMProcessor.save_pretrained writes it, video_size replaced by size as its constructor does
VIDEO = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "do_sample_frames": False,
    "fps": 1,
    "image_mean": HALF,
    "image_std": HALF,
    "max_image_size": {"longest_edge": 32},
    "num_frames": 8,
    "resample": 1,
    "rescale_factor": 0.00392156862745098,
    "return_metadata": False,
    "size": {"longest_edge": 64},
    "video_processor_type": "SmolVLMVideoProcessor",
    "video_sampling": {"fps": 1, "max_frames": 8, "video_size": {"longest_edge": 64}},
}


def smolvlm() -> dict[str, Any]:
    """Documents of a checkpoint with tiles of 32 pixels, patches of 8 and pixel shuffle by 2: 4 tokens a tile."""
    encoder = ref.tokenizer()
    return {
        "config.json": {
            "model_type": "smolvlm",
            "image_token_id": encoder.convert_tokens_to_ids("<image>"),
            "scale_factor": 2,
            "vision_config": {"image_size": 32, "patch_size": 8},
        },
        "processor_config.json": {
            "image_processor": ref.smolvlm_images().to_dict(),
            "image_seq_len": 4,
            "processor_class": "SmolVLMProcessor",
            "video_processor": deepcopy(VIDEO),
        },
        "tokenizer.json": json.loads(encoder.backend_tokenizer.to_str()),
    }


def pixtral() -> dict[str, Any]:
    """Documents as Ministral-3's: patches of 14 merged 2 × 2."""
    encoder = ref.tokenizer()
    images = ref.pixtral_images().to_dict() | {"patch_size": 14}
    return {
        "config.json": {
            "model_type": "mistral3",
            "image_token_index": encoder.convert_tokens_to_ids("[IMG]"),
            "spatial_merge_size": 2,
            "vision_config": {"image_size": 112, "patch_size": 14},
        },
        "processor_config.json": {
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
            "image_processor": images,
            "image_token": "[IMG]",
            "patch_size": 14,
            "processor_class": "PixtralProcessor",
            "spatial_merge_size": 2,
        },
        "tokenizer.json": json.loads(encoder.backend_tokenizer.to_str()),
    }


def written(folder: Path, documents: dict[str, Any]) -> Path:
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    return folder


def test_smolvlm_as_it_is_saved_today(tmp_path):
    found = from_processor(written(tmp_path, smolvlm()))
    rescale = found.images.normalisation
    wanted = ref.smolvlm()
    assert found.images == wanted.images.model_copy(update={"normalisation": rescale})
    assert (rescale.rescale, rescale.mean, rescale.std) == (1 / 255, (0.5,) * 3, (0.5,) * 3)
    assert found.prompt.model_copy(update={"ids": {}}) == wanted.prompt.model_copy(update={"ids": {}})
    assert set(found.prompt.ids) == {t for t in ref.SPECIAL if "row" in t or t in ref.SPECIAL[:3]}
    assert found.video is not None
    assert (found.video.fps, found.video.max_frames, found.video.longest_edge) == (1, 8, 64)
    assert found.video.number_words[-1] == "eight"
    (tmp_path / "preprocessing.json").write_text(content(found))
    assert read(tmp_path / "preprocessing.json") == found


def test_the_description_does_what_the_processor_does(tmp_path):
    documents = smolvlm()
    processor = ref.smolvlm_images(longest_edge=96, image_mean=[0.4, 0.5, 0.6], resample=3)
    documents["processor_config.json"]["image_processor"] = processor.to_dict()
    del documents["processor_config.json"]["video_processor"]
    found = from_processor(written(tmp_path, documents))
    image = ref.picture(50, 80)
    grid, tiles = split(image, found.images)
    out = ref.smolvlm_processor(processor)(text="<image>?", images=[Image.fromarray(image)])
    np.testing.assert_array_equal(normalise(tiles, found.images.normalisation), out["pixel_values"][0])
    assert ref.tokenizer()(expand("<image>?", found, [grid]))["input_ids"] == out["input_ids"][0]
    assert found.video is None


def test_smolvlm2_as_it_was_published(tmp_path):
    """The flat document; its `size` takes the place of video_size in transformers 5.23, and here."""
    documents = smolvlm()
    documents["preprocessor_config.json"] = documents["processor_config.json"].pop("image_processor") | {
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}}
    }
    del documents["processor_config.json"]["video_processor"]
    found = from_processor(written(tmp_path, documents))
    assert found.images.longest_edge == 128
    assert found.video is not None
    assert (found.video.max_frames, found.video.longest_edge, len(found.video.number_words)) == (64, 128, 64)
    assert found.video.number_words[-1] == "sixty-four"


def test_a_document_of_its_own_for_clips(tmp_path):
    documents = smolvlm()
    sampling = {"fps": 2, "max_frames": 5, "video_size": {"longest_edge": 32}}
    documents["video_preprocessor_config.json"] = documents["processor_config.json"].pop("video_processor") | {
        "video_sampling": sampling
    }
    del documents["video_preprocessor_config.json"]["size"]
    for key in ("fps", "num_frames"):
        del documents["video_preprocessor_config.json"][key]
    video = from_processor(written(tmp_path, documents)).video
    assert video is not None
    assert (video.fps, video.max_frames, video.longest_edge) == (2, 5, 32)


def test_sizes_of_the_2_2b_model(tmp_path):
    documents = smolvlm()
    documents["config.json"] |= {"scale_factor": 3, "vision_config": {"image_size": 384, "patch_size": 14}}
    documents["processor_config.json"] |= {"image_seq_len": 81}
    for part in ("image_processor", "video_processor"):
        documents["processor_config.json"][part] |= {
            "size": {"longest_edge": 1536},
            "max_image_size": {"longest_edge": 384},
        }
    images = from_processor(written(tmp_path, documents)).images
    assert (images.longest_edge, images.tile, images.max_tiles, images.tokens_per_tile) == (1536, 384, 17, 81)


def test_tokens_with_names_of_their_own(tmp_path):
    documents = smolvlm()
    text = json.dumps(documents["tokenizer.json"]).replace("<fake_token_around_image>", "<edge>")
    documents["tokenizer.json"] = json.loads(text)
    documents["tokenizer_config.json"] = {"extra_special_tokens": {"fake_image_token": "<edge>"}}
    prompt = from_processor(written(tmp_path, documents)).prompt
    assert prompt.around == "<edge>"
    assert "<edge>" in prompt.ids


def test_pixtral(tmp_path):
    found = from_processor(written(tmp_path, pixtral()))
    wanted = ref.pixtral()
    assert found == wanted


SMOLVLM_LIES = [
    (
        "processor_config.json",
        ["image_seq_len"],
        64,
        "processor_config.json: image_seq_len must be 4, the vectors that",
    ),
    ("processor_config.json", ["image_seq_len"], None, "without it the processor takes 169, and is missing"),
    (
        "config.json",
        ["vision_config", "patch_size"],
        4,
        "(vision_config.image_size 32 // patch_size 4)² / scale_factor",
    ),
    ("config.json", ["vision_config", "image_size"], 64, "max_image_size makes tiles of 32 pixels, and config.json"),
    (
        "config.json",
        ["image_token_id"],
        3,
        "config.json: image_token_id must be the id of <image> in tokenizer.json, 259",
    ),
    ("config.json", ["model_type"], "idefics3", "config.json: model_type must be one of smolvlm, mistral3"),
    ("processor_config.json", ["image_processor", "do_normalize"], False, "image_processor.do_normalize must be true"),
    (
        "processor_config.json",
        ["image_processor", "image_processor_type"],
        "Idefics3ImageProcessor",
        "image_processor.image_processor_type must be one of SmolVLMImageProcessor, SmolVLMImageProcessorFast,",
    ),
    ("processor_config.json", ["image_processor", "resample"], 9, "image_processor.resample must be a whole number"),
    ("processor_config.json", ["image_processor", "image_std"], [1, 2], "image_std must be three numbers"),
    ("processor_config.json", ["image_processor", "image_std"], [0.5, 0, 1], "std.1: Input should be greater than"),
    ("processor_config.json", ["image_processor", "image_mean"], ["a"] * 3, "image_mean must be three numbers"),
    ("processor_config.json", ["image_processor", "size"], {"height": 9}, "image_processor.size.height is not known"),
    ("processor_config.json", ["image_processor", "size"], {"longest_edge": 9999}, "size.longest_edge must be a whole"),
    ("processor_config.json", ["image_processor"], None, "says nowhere how images are prepared: processor_config.json"),
    ("processor_config.json", ["image_processor"], 7, "processor_config.json: image_processor must be an object"),
    ("processor_config.json", ["video_processor", "num_frames"], 9, "must be that of video_sampling.max_frames, 8"),
    (
        "processor_config.json",
        ["video_processor", "fps"],
        9,
        "video_processor.fps must be that of video_sampling.fps, 1",
    ),
    (
        "processor_config.json",
        ["video_processor", "max_image_size"],
        {"longest_edge": 16},
        "must be that of the images",
    ),
    ("processor_config.json", ["video_processor", "resample"], 2, "resample must be that of the images, lanczos"),
    ("processor_config.json", ["video_processor", "image_mean"], [0, 0, 0], "image_mean must be, with image_std"),
    ("processor_config.json", ["video_processor", "video_sampling"], {"fps": 1}, "max_frames must be a whole number"),
    (
        "tokenizer.json",
        ["added_tokens"],
        [],
        "tokenizer.json: added_tokens has no <image>, the processor's image token",
    ),
    ("tokenizer.json", ["added_tokens"], [3], "tokenizer.json: added_tokens holds an entry without content and id"),
]
PIXTRAL_LIES = [
    ("processor_config.json", ["patch_size"], 16, "patch_size must be 14, as config.json: vision_config.patch_size"),
    (
        "processor_config.json",
        ["spatial_merge_size"],
        None,
        "must be 2, as config.json: spatial_merge_size; without it",
    ),
    (
        "processor_config.json",
        ["image_processor", "size"],
        {"longest_edge": 140},
        "size may be 112 at most, config.json",
    ),
    ("processor_config.json", ["image_end_token"], "[END]", "added_tokens has no [END], with which the processor lays"),
    ("processor_config.json", ["image_token"], 5, "processor_config.json: image_token must be a token"),
    ("processor_config.json", ["image_processor", "do_center_crop"], True, "do_center_crop must be false"),
    ("config.json", ["image_token_index"], 10, "config.json: image_token_index must be the id of [IMG]"),
]


@pytest.mark.parametrize(
    ("documents", "name", "keys", "value", "message"),
    [(smolvlm, *lie) for lie in SMOLVLM_LIES] + [(pixtral, *lie) for lie in PIXTRAL_LIES],
)
def test_contradictions_are_refused_by_file_and_key(documents, name, keys, value, message, tmp_path):
    content = documents()
    at = content[name]
    for key in keys[:-1]:
        at = at[key]
    if value is None:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    with pytest.raises(EdgewrightError) as error:
        from_processor(written(tmp_path, content))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"), [("do_image_splitting", False), ("size", {"longest_edge": 64}), ("resample", 2)]
)
def test_two_documents_that_runtimes_believe_must_say_the_same(key, value, tmp_path):
    documents = smolvlm()
    documents["preprocessor_config.json"] = documents["processor_config.json"]["image_processor"] | {key: value}
    with pytest.raises(EdgewrightError) as error:
        from_processor(written(tmp_path, documents))
    start = f"preprocessor_config.json: {key} must be that of processor_config.json: image_processor.{key}, "
    assert str(error.value).startswith(start)


def test_without_a_tokenizer(tmp_path):
    documents = smolvlm()
    del documents["tokenizer.json"]
    with pytest.raises(EdgewrightError, match=r"no tokenizer\.json: a prompt with images is written in its tokens"):
        from_processor(written(tmp_path, documents))
