"""Frames are chosen as transformers' SmolVLMVideoProcessor chooses them, and read from whatever holds a clip."""

from __future__ import annotations

import json
import os
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from artifacts.documents import DocumentError
from artifacts.errors import EdgewrightError, MissingTool
from artifacts.media.errors import MediaError
from artifacts.media.tiles import normalise
from artifacts.media.video import MAX_FRAMES, clip_of_array, clip_of_file, clip_of_folder, read_clip, sample
from tests.artifacts.media.reference import FPS, GOLDENS, TILE, VIDEO_LONGEST, clip, smolvlm, smolvlm_images
from tests.artifacts.media.reference import MAX_FRAMES as MOST


@pytest.fixture(scope="module")
def description():
    return smolvlm()


@pytest.fixture(scope="module")
def goldens():
    return json.loads(GOLDENS.read_text())


def test_indices_and_timestamps_equal_the_reference(description, goldens):
    for golden in goldens["sampling"]:
        frames, fps = golden["frames"], golden["fps"]
        found = sample(frames, fps, frames / fps, description.video)
        assert list(found) == golden["indices"]
        assert [at / fps for at in found] == golden["times"]


@given(frames=st.integers(1, 5000), fps=st.sampled_from([0.1, 1.0, 23.976, 25.0, 29.97, 30.0, 60.0, 239.76]))
def test_indices_equal_the_reference_whatever_a_clip_is(frames, fps):
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
    from transformers.video_utils import VideoMetadata

    metadata = VideoMetadata(total_num_frames=frames, fps=fps, duration=frames / fps)
    processor = SimpleNamespace(num_frames=MOST, fps=FPS)
    reference = SmolVLMVideoProcessor.sample_frames(processor, metadata)  # the function; its class wants torchvision
    assert list(sample(frames, fps, frames / fps, smolvlm().video)) == reference.tolist()


def test_frames_equal_the_image_processor_without_splitting(description):
    frames = clip(9, 50, 31)
    found = clip_of_array(frames, 4.0, description)
    processor = smolvlm_images(longest_edge=VIDEO_LONGEST, do_image_splitting=False)
    reference = [processor(Image.fromarray(frames[at]))["pixel_values"][0][0] for at in found.indices]
    np.testing.assert_array_equal(normalise(found.tiles, description.images.normalisation), reference)


def test_frames_equal_the_video_processor_but_for_the_last_bits(description, goldens):
    """It resizes by torch, with 8-bit weights: 2 of 255 at most, and nearly everywhere nothing."""
    for golden in goldens["frames"]:
        found = clip_of_array(clip(20, *golden["size"]), 10.0, description)
        values = normalise(found.tiles, description.images.normalisation)
        assert list(values.shape) == golden["shape"]
        flat = values.reshape(-1)[:: values.size // 300]
        levels = np.abs(flat - np.array(golden["values"])) * 127.5
        assert levels.max() < 2.01
        assert np.mean(levels > 0.01) < 0.05


def write(path: Path, frames: np.ndarray, rate: Fraction | int = 10, codec: str = "ffv1", **stream: object) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if not len(frames):
            container.start_encoding()
        container.mux(video.encode())
    return path


def test_a_file_gives_the_frames_that_were_put_in(description, tmp_path):
    frames = clip(31, 40, 64)
    path = write(tmp_path / "clip.mkv", frames)  # its header does not say how many
    found, wanted = clip_of_file(path, description), clip_of_array(frames, 10.0, description)
    np.testing.assert_array_equal(found.tiles, wanted.tiles)
    assert (found.indices, found.timestamps, found.duration) == (wanted.indices, wanted.timestamps, wanted.duration)


def test_a_file_is_sampled_as_by_the_reader_of_the_reference(description, tmp_path):
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
    from transformers.video_utils import read_video_pyav

    path = write(tmp_path / "clip.mp4", clip(47, 48, 64), Fraction(30000, 1001), "mpeg4")
    processor = SimpleNamespace(num_frames=MOST, fps=FPS)
    frames, metadata = read_video_pyav(
        str(path), lambda metadata: SmolVLMVideoProcessor.sample_frames(processor, metadata)
    )
    found = clip_of_file(path, description)
    assert list(found.indices) == metadata.frames_indices.tolist()
    assert list(found.timestamps) == metadata.timestamps
    assert found.duration == metadata.duration
    for tile, frame in zip(found.tiles, frames, strict=True):
        np.testing.assert_array_equal(tile, clip_of_array(frame[None], 1.0, description).tiles[0])


TURNS = {0: (1, 0, 0, 1), 1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}


@pytest.mark.parametrize("quarters", TURNS)
def test_a_phone_held_upright(quarters, description, tmp_path):
    """The matrix of a track (ISO 14496-12, 8.3.2) says how it is shown; turned counterclockwise by 90° for each."""
    path = write(tmp_path / "clip.mp4", clip(5, 48, 64), 10, "mpeg4")
    raw, one = path.read_bytes(), 0x10000
    before = np.array([one, 0, 0, 0, one, 0, 0, 0, 0x40000000], ">i4").tobytes()
    at = raw.index(before, raw.index(b"tkhd"))
    a, b, c, d = TURNS[quarters]
    after = np.array([a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000], ">i4").tobytes()
    plain = read_frames(path)
    path.write_bytes(raw[:at] + after + raw[at + len(after) :])
    turned = np.ascontiguousarray(np.rot90(plain, quarters, axes=(1, 2)))
    np.testing.assert_array_equal(clip_of_file(path, description).tiles, clip_of_array(turned, 10.0, description).tiles)


def read_frames(path: Path) -> np.ndarray:
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_folder_of_frames_by_the_numbers_in_their_names(description, tmp_path):
    frames = clip(12, 20, 30)
    for at, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame{at}.png")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    found, wanted = read_clip(tmp_path, description, fps=3.0), clip_of_array(frames, 3.0, description)
    np.testing.assert_array_equal(found.tiles, wanted.tiles)
    assert found.timestamps == wanted.timestamps


def test_only_frames_that_count_are_opened(description, tmp_path):
    for at, frame in enumerate(clip(41, 20, 30)):
        Image.fromarray(frame).save(tmp_path / f"{at:03}.png")
    (tmp_path / "001.png").write_bytes(b"no image")
    assert clip_of_folder(tmp_path, 10.0, description).indices[:2] == (0, 5)
    (tmp_path / "005.png").write_bytes(b"no image")
    with pytest.raises(MediaError, match=r"005\.png: not an image that can be read"):
        clip_of_folder(tmp_path, 10.0, description)


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), 10.0, "the clip: a clip without frames"),
        (np.zeros((3, 4, 4), np.uint8), 10.0, r"the clip: frames are uint8 \[3, 4, 4\], expected uint8"),
        (np.zeros((3, 4, 4, 3), np.float32), 10.0, "the clip: frames are float32"),
        (np.zeros((3, 0, 4, 3), np.uint8), 10.0, "the clip: its frames hold no pixels"),
        (np.zeros((3, 4, 4, 3), np.uint8), 0.0, "the clip: 0 frames per second, which no clip has"),
        (np.zeros((3, 4, 4, 3), np.uint8), float("nan"), "nan frames per second"),
        (np.broadcast_to(np.uint8(0), (MAX_FRAMES + 1, 1, 1, 3)), 10.0, "at most 200,000 are looked at"),
    ],
)
def test_frames_that_are_none(frames, fps, message, description):
    with pytest.raises(MediaError, match=message):
        clip_of_array(frames, fps, description)


def test_folders_that_hold_no_clip(description, tmp_path):
    with pytest.raises(MediaError, match=r"a clip without frames"):
        clip_of_folder(tmp_path, 10.0, description)
    with pytest.raises(MediaError, match=r"does not say how many make a second; give fps"):
        read_clip(tmp_path, description)
    with pytest.raises(MediaError, match=r"missing: cannot be read as a folder of frames: No such file"):
        clip_of_folder(tmp_path / "missing", 10.0, description)


def test_files_that_hold_no_clip(description, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    # what would make a player open other files, and addresses
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mkv\n")
    for name in ("text.mp4", "empty.mp4", "list.m3u8", "list.mp4"):
        with pytest.raises(MediaError, match=rf"{name}: not a video that can be read"):
            clip_of_file(tmp_path / name, description)
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "pipe", "a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "no", "No such file"),
    ):
        with pytest.raises(DocumentError, match=what):
            clip_of_file(path, description)


def test_a_file_of_sound(description, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4608), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(MediaError, match=r"sound\.mkv: holds no video"):
        clip_of_file(path, description)


def test_a_file_without_frames(description, tmp_path):
    path = write(tmp_path / "none.mkv", np.zeros((0, 16, 16, 3), np.uint8))
    with pytest.raises(MediaError, match=r"none\.mkv: "):
        clip_of_file(path, description)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.parametrize(("name", "codec"), [("cut.mkv", "ffv1"), ("cut.avi", "mpeg4"), ("cut.mp4", "mpeg4")])
def test_a_file_cut_short_is_named_or_shorter(name, codec, share, description, tmp_path):
    path = write(tmp_path / name, clip(30, 48, 64), 10, codec)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    try:
        found = clip_of_file(path, description)
    except EdgewrightError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert name == "cut.mkv" or share == 0.95  # it says nowhere how long it is; only the index is cut off
        assert found.duration <= 3


def test_frames_larger_than_any_camera_makes(description, tmp_path, monkeypatch):
    path = write(tmp_path / "large.mkv", clip(3, 64, 64))
    monkeypatch.setattr("artifacts.media.video.MAX_PIXELS", 64 * 63)
    with pytest.raises(MediaError, match=r"large\.mkv: frames of 64 × 64 pixels; at most 4,032 are read"):
        clip_of_file(path, description)


def test_without_pyav(description, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingTool, match=r"pip install 'edgewright\[video\]', or give a folder of frames"):
        clip_of_file(tmp_path / "clip.mp4", description)


def test_a_model_of_images_only(description, tmp_path):
    with pytest.raises(MediaError, match="the model takes images only, no clips"):
        clip_of_array(clip(3, 8, 8), 10.0, description.model_copy(update={"video": None}))
    assert clip_of_array(clip(3, 8, 8), 10.0, description).tiles.shape == (1, TILE, TILE, 3)
