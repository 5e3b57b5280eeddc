"""The trained talking heads that ship: what training.json says of them is computed again, and it is good."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from artifacts.media.motion import FPS, MOST_FRAMES, WEIGHTS, MotionDecoder, MotionEncoder
from recipes.checkpoints import avatar_clips, avatar_expression, avatar_face, avatar_measures, avatar_speech
from recipes.checkpoints.avatar_training import OUT, STREAM, expressed

REPORT: dict[str, Any] = json.loads((OUT / "training.json").read_text())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_all_of_it_is_eight_megabytes_at_the_most() -> None:
    assert sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file()) <= 8e6
    for name, stream in STREAM.items():
        assert json.loads((OUT / name / "config.json").read_text())["streaming"] == stream


def close(found: dict[str, Any], said: dict[str, Any]) -> None:
    assert found.keys() == said.keys()
    for name, value in said.items():
        assert found[name] == pytest.approx(value, rel=0.02, abs=1e-5), name


def test_the_mouth_of_the_blendshapes_follows_speech_that_was_never_heard() -> None:
    said = REPORT["audio2expression"]
    for found, told in zip(avatar_measures.expression(2)["each"], said["each"], strict=False):
        close(found, told)
    assert said["clips"] >= 20 and said["lip_closure"] >= 0.98 and said["jaw_correlation"] >= 0.98
    assert said["blendshape_rms_of_speaking_ones"] < 0.2 * said["the_same_of_a_mouth_at_rest"]


def test_the_drawn_mouth_follows_speech_that_was_never_heard() -> None:
    said = REPORT["feathertalk"]
    (found,) = avatar_measures.renderer(1)["each"]
    close(found, said["each"][0])
    assert said["clips"] >= 8 and said["lip_closure"] >= 0.95 and said["opening_correlation"] >= 0.9
    assert said["psnr"] >= 30 and said["ssim"] >= 0.95
    assert said["psnr_mouth"] >= said["psnr_mouth_of_the_video_as_it_was"] + 3, "it draws, and does not copy"


def test_the_points_follow_weights_and_poses_that_were_never_seen() -> None:
    said = REPORT["gaussian"]
    found = avatar_measures.gaussian(said["poses"] // 2)
    close(found, {name: said[name] for name in found})
    for kind in ("random", "speaking"):
        assert said[f"rms_mm_{kind}"] < 0.05 * said[f"rms_mm_{kind}_at_rest"]


def test_a_seed_gives_its_clip() -> None:
    """The committed clips are those that the script makes, held-out ones of seeds that training never drew."""
    places = {avatar_speech.HELD_OUT_SEED: avatar_clips.HELD_OUT / "audio2expression.safetensors"}
    places[0] = OUT / "audio2expression" / "clips.safetensors"
    for first, path in places.items():
        stored = load_file(path)
        clip = avatar_speech.speak(avatar_clips.telling(first, 1)[0], 2.4)
        assert np.abs(stored["0.sound"] - np.round(clip.sound * 32767)).max() <= 1
        assert np.abs(stored["0.weights"] - clip.weights(30)).max() < 1e-5
        assert {1, 2} <= {int(told) for told in stored["0.mouth"]}


def test_a_drawn_mouth_is_open_and_shut_as_the_phones_say() -> None:
    opened = {-1: [], 1: []}  # type: dict[int, list[float]]
    for seed in range(2):
        clip = avatar_speech.speak(seed, 3)
        poses = avatar_face.idle(seed, 75, 25)
        for pose, weights, told in zip(poses, clip.weights(25), clip.told(25), strict=True):
            if told:
                opened[int(told)].append(avatar_face.opening(avatar_face.draw(pose, weights)))
    assert opened[-1] and max(opened[-1]) <= avatar_face.SHUT < min(opened[1])


def test_as_a_motion_stream_speech_is_half_a_kilobyte_a_second() -> None:
    """What the trained network says of held-out clips, with a head that sways: sizes with headers, errors, and a lost
    packet."""
    model = avatar_expression.stored(avatar_expression.network())
    avatar_measures.loaded(OUT / "audio2expression", {"backbone.": model})
    for n in range(2):
        sound = avatar_speech.speak(avatar_speech.HELD_OUT_SEED + n, 3.6).sound
        weights = expressed(model, sound, n, len(avatar_expression.GAINS))
        head = avatar_face.idle(n, len(weights), FPS)
        pose = [[10 * p.nod, 12 * p.turn, np.degrees(p.roll), p.x, p.y, 0] for p in head]
        frames = np.concatenate([weights, np.array(pose)], 1).astype(np.float32)
        encoder = MotionEncoder()
        packets = [encoder.encode(frames[at : at + MOST_FRAMES]) for at in range(0, len(frames), MOST_FRAMES)]
        assert sum(map(len, packets)) * FPS / len(frames) <= 512
        decoder = MotionDecoder()
        found = np.concatenate([decoder.decode(packet) for packet in packets])
        assert np.abs(found - frames)[:, :WEIGHTS].max() <= 1 / 255
        assert np.abs(found - frames)[:, WEIGHTS : WEIGHTS + 3].max() <= 0.1
        for lost in range(1, len(packets) - 5):
            decoder = MotionDecoder()
            for packet in packets[:lost]:
                decoder.decode(packet)
            missing = MOST_FRAMES
            for packet in packets[lost + 1 :]:
                if len(decoder.decode(packet)):
                    break
                missing += MOST_FRAMES
            assert missing / FPS <= 0.5
