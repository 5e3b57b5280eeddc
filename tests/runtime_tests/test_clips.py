"""Frames of held-out clips: what is judged of them, and that frames which do not follow the sound fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EdgewrightError
from artifacts.formats.talking_head import Constants, read
from artifacts.formats.tensor_file import write_tensors
from artifacts.media.clips import MAX_BYTES, Clip, Clips, Contents, Mouth, parse_clips, read_clips, stored
from runtime_tests.clips import judge, worth_showing
from runtime_tests.film import write_film
from runtime_tests.quality import QualityLimits

MOUTH = Mouth(box=(2, 2, 6, 6), dark=(80, 80), teeth=(250, 250), shut=0.1)
LIMITS = QualityLimits(max_psnr_drop=0.1, max_blendshape_change=0.005, min_lip_closure=0.9)
AUDIO = {"sample_rate": 400, "samples": 40, "tokens_per_second": 20, "tokens": 2, "hop": 2, "ahead": 0}
FRAMES = {"rate": 20, "tokens": 1, "before": 0, "ahead": 0, "lookahead_ms": 0}
PICTURE = {"size": 8, "crop": 8, "border": 0, "mouth": [1, 1, 6, 6], "channels": "bgr", "scale": 255}
NAMES = ["jawOpen", "mouthClose", "mouthPucker"]


def drawing() -> Constants:
    return read({"audio": AUDIO, "frames": FRAMES, "picture": PICTURE}, "here")


def expressing() -> Constants:
    return read({"audio": AUDIO, "frames": FRAMES, "blendshapes": NAMES, "identities": 2}, "here")


def faces(opened: list[bool]) -> np.ndarray[Any, Any]:
    found = np.full((len(opened), 8, 8, 3), 180, np.uint8)
    found[opened, 3:5, 3:5] = 20
    return found


def pictures() -> Clips:
    truth = faces([False, True, True, False])
    original = truth.copy()
    original[:, 0] += 3
    clip = Clip(
        sound=np.zeros(80, np.float32),
        mouth=np.array([2, 1, 1, 0], np.uint8),
        truth=truth,
        video=faces([False] * 4),
        made={"original": original, "reference": original},
    )
    return Clips((clip,), MOUTH, "a file")


def verdicts(checks: Any) -> dict[str, Any]:
    return {check.name: check.verdict for check in checks}


def test_pictures_as_the_unquantized_ones_pass() -> None:
    clips = pictures()
    figures, checks = judge(clips, [clips.clips[0].made["original"]], drawing(), LIMITS, None)
    found = {figure.name: figure for figure in figures}
    assert verdicts(checks) == {"psnr_drop": "passed", "lip_closure": "passed"}
    assert found["psnr_drop"].value == 0 and found["psnr_to_original"].value == 99
    # an eighth of the values is off by 3
    assert found["psnr"].value == pytest.approx(10 * np.log10(255**2 / (9 / 8)))
    assert (found["lip_closure"].value, found["lip_closure"].at) == (1, "3 frames")
    assert (found["psnr"].obtained, found["psnr_original"].obtained) == ("measured", "declared")


def test_a_mouth_that_does_not_move_fails() -> None:
    """A fault injected: the picture of a shut mouth, again and again."""
    figures, checks = judge(pictures(), [faces([False] * 4)], drawing(), LIMITS, None)
    assert verdicts(checks) == {"psnr_drop": "failed", "lip_closure": "failed"}
    assert next(figure.value for figure in figures if figure.name == "lip_closure") == pytest.approx(1 / 3)


def test_noise_fails_though_the_mouth_is_right() -> None:
    noisy = pictures().clips[0].made["original"].copy()
    noisy[:, 7] -= 4
    _, checks = judge(pictures(), [noisy], drawing(), LIMITS, "an executor")
    assert verdicts(checks) == {"psnr_drop": "failed", "lip_closure": "passed"}
    assert {check.stand_in for check in checks} == {"an executor"}


def test_of_fewer_frames_those_are_judged() -> None:
    figures, _ = judge(pictures(), [faces([False, True])], drawing(), LIMITS, "an executor")
    assert {figure.at for figure in figures if figure.obtained != "declared"} == {"2 frames"}


def test_blendshapes_are_judged_by_how_far_they_moved() -> None:
    truth = np.array([[0.1, 0.1, 0], [0.5, 0, 0], [0, 0, 0.2], [0, 0, 0]], np.float32)
    original = truth + np.float32(0.02)
    clip = Clip(np.zeros(80, np.float32), np.array([2, 1, 0, 0], np.uint8), truth, made={"original": original})
    clips = Clips((clip,), None, "")
    figures, checks = judge(clips, [original + np.float32(0.004)], expressing(), LIMITS, None)
    found = {figure.name: figure.value for figure in figures}
    assert verdicts(checks) == {"blendshape_change": "passed", "lip_closure": "passed"}
    assert found["blendshape_change"] == pytest.approx(0.004, abs=1e-6)
    assert found["blendshape_error"] == pytest.approx(0.024, abs=1e-6)
    assert found["blendshape_error_original"] == pytest.approx(0.02, abs=1e-6)
    _, checks = judge(clips, [original * 0], expressing(), LIMITS, None)
    assert verdicts(checks) == {"blendshape_change": "failed", "lip_closure": "failed"}


def tensors() -> dict[str, Any]:
    clip = pictures().clips[0]
    return {
        "0.sound": np.arange(80, dtype=np.int16),
        "0.mouth": clip.mouth,
        "0.video": stored(clip.video),  # type: ignore[arg-type]
        "0.truth": stored(clip.truth),
    }


def written(path: Path, arrays: dict[str, Any], **contents: Any) -> bytes:
    said = Contents(**{"frames": (4,), "mouth": MOUTH, **contents})
    write_tensors(path, arrays, {"clips": said.model_dump_json()}, MAX_BYTES)
    return path.read_bytes()


def test_a_file_gives_its_clips_back(tmp_path: Path) -> None:
    written(tmp_path / "c", tensors() | {"0.original": stored(faces([True] * 4))})
    (clip,) = read_clips(tmp_path / "c", drawing()).clips
    assert np.array_equal(clip.truth, pictures().clips[0].truth) and clip.video is not None
    assert np.array_equal(clip.made["original"], faces([True] * 4)) and "reference" not in clip.made
    assert clip.sound.dtype == np.float32 and clip.sound[1] == np.float32(1 / 32768)


@pytest.mark.parametrize(
    ("changed", "contents", "message"),
    [
        ({"0.sound": None}, {}, "tensor 0.sound is missing"),
        ({"0.sound": np.zeros(81, np.int16)}, {}, r"0.sound has 81 samples, which are not 4 frames"),
        ({"0.mouth": np.zeros(3, np.uint8)}, {}, r"tensor 0.mouth is uint8 \[3\], not uint8 \[4\]"),
        ({"0.truth": stored(faces([True]))}, {}, "0.truth is a picture of 8 × 8, not 4 crops of 8 × 8"),
        ({"0.video": np.zeros(9, np.uint8)}, {}, "0.video: not an image"),
        ({}, {"mouth": None}, "holds blendshapes, which this model does not make"),
        ({}, {"identities": (1,)}, "clip 0: identity 1, of 0"),
        ({}, {"identities": (0, 0)}, "2 identities for 1 clips"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path: Path, changed: Any, contents: Any, message: str) -> None:
    arrays = {name: array for name, array in (tensors() | changed).items() if array is not None}
    raw = written(tmp_path / "c", arrays, **contents)
    with pytest.raises(EdgewrightError, match=f"^the file: .*{message}"):
        parse_clips(raw, "the file", drawing())


@pytest.mark.parametrize("raw", [b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}"])
def test_nonsense_is_refused(raw: bytes) -> None:
    with pytest.raises(EdgewrightError, match=r"^the file: .*see artifacts/media/clips\.py"):
        parse_clips(raw, "the file", drawing())


def test_blendshapes_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    weights = np.full((4, 3), np.nan, np.float32)
    arrays = {**{name: tensors()[name] for name in ("0.sound", "0.mouth")}, "0.weights": weights}
    with pytest.raises(EdgewrightError, match=r"0\.weights holds NaN"):
        parse_clips(written(tmp_path / "c", arrays, mouth=None), "the file", expressing())


def test_a_film_shows_the_panels_and_where_they_differ(tmp_path: Path) -> None:
    import av

    gray, light = (np.full((10, 32, 32, 3), value, np.uint8) for value in (60, 70))
    panels = {"original": gray, "quantized": gray, "compiled": light}
    write_film(tmp_path / "a.mp4", panels, ("compiled", "original"), np.zeros(6400, np.float32), 16000, 25)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert {stream.type for stream in file.streams} == {"video", "audio"}
        pages = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(pages) == 10 and pages[0].shape[1] == 4 * 3 * 32
    middles = pages[5][-48, 48::96].mean(-1)
    # the difference of 10, eight times as large
    np.testing.assert_allclose(middles, [60, 60, 70, 80], atol=4)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]


def test_the_clip_that_tells_the_most_is_shown() -> None:
    quiet = Clip(np.zeros(80, np.float32), np.zeros(4, np.uint8), np.zeros(0))
    assert worth_showing(Clips((quiet, *pictures().clips), MOUTH, "")) == 1
