"""preprocessing.json: what is written is read again, and what an app could not follow is refused by its key."""

from __future__ import annotations

import json

import pytest

from artifacts.errors import EdgewrightError
from artifacts.formats.preprocessing import content, read
from tests.artifacts.media.reference import pixtral, smolvlm


@pytest.mark.parametrize("description", [smolvlm(), pixtral(), smolvlm().model_copy(update={"video": None})])
def test_what_is_written_is_read(description, tmp_path):
    path = tmp_path / "preprocessing.json"
    path.write_text(content(description))
    assert read(path) == description


def changed(tree, keys, value):
    at = tree
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    return tree


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["rule"], "idefics", "Input tag 'idefics'"),
        (["version"], 2, "smolvlm.version: Input should be 1"),
        (["images", "tile"], 0, "smolvlm.images.tile: Input should be greater than 0"),
        (["images", "tile"], "32", "smolvlm.images.tile: Input should be a valid integer"),
        (
            ["images", "longest_edge"],
            100_000,
            "smolvlm.images.longest_edge: Input should be less than or equal to 4096",
        ),
        (["images", "sharpen"], True, "smolvlm.images.sharpen: Extra inputs are not permitted"),
        (["images", "order"], "global_then_rows", "Input should be 'rows_then_global'"),
        (["images", "normalisation", "std"], [0.5, 0.5, 0], "smolvlm.images.normalisation.std.2"),
        (["images", "normalisation", "mean"], [0.5, 0.5], "smolvlm.images.normalisation.mean.2: Field required"),
        (["prompt", "ids"], {}, "ids has no id of '<image>'"),
        (["prompt", "cell"], "<row>", "cell must hold {row} once"),
        (["video", "frame"], "{timestamp}{timestamp}", "frame must hold {timestamp} once"),
        (["video", "number_words"], ["one"], "number_words has 1 words for 12 frames"),
        (["video", "max_frames"], 10**9, "smolvlm.video.max_frames"),
        (["images", "tokens_per_tile"], 65536, "1,114,112 tokens for one image or clip; 1,048,576 are the most"),
    ],
)
def test_what_cannot_be_followed_is_named(keys, value, message, tmp_path):
    path = tmp_path / "preprocessing.json"
    path.write_text(json.dumps(changed(json.loads(content(smolvlm())), keys, value)))
    with pytest.raises(EdgewrightError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"rule": NaN}', b'{"rule": 1, "rule": 2}', b'{"a":' * 99])
def test_what_is_no_description(raw, tmp_path):
    path = tmp_path / "preprocessing.json"
    path.write_bytes(raw)
    with pytest.raises(EdgewrightError, match=r"preprocessing\.json: "):
        read(path)
