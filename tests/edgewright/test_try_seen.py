"""`edgewright try` with more than words: a picture that is asked about, and sound that a face or blendshapes say."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from artifacts.media.motion import MotionDecoder
from edgewright import api
from tests.edgewright.test_try import tried
from tests.runtime_tests.test_talking_head import made


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart that sees, whose model names colours."""
    report = api.run("quickstart-smolvlm2", out=tmp_path_factory.mktemp("out"), targets=["onnx"], validate=False)
    return Path(report.folder) / "onnx"


@pytest.mark.parametrize("color", ["red", "blue"])
def test_a_picture_is_asked_about_and_asked_about_again(seeing: Path, tmp_path: Path, color: str) -> None:
    image = Image.new("RGB", (256, 192), "white")
    ImageDraw.Draw(image).ellipse((60, 40, 160, 140), fill=color)
    image.save(tmp_path / "circle.png")
    question = "What color is the circle?"
    done = tried(str(seeing), "--greedy", "--image", str(tmp_path / "circle.png"), "--prompt", question)
    assert done.returncode == 0 and done.stdout.strip() == color
    done = tried(str(seeing), "--greedy", "--image", str(tmp_path / "circle.png"), given=f"{question}\n{question}\n")
    first, second = (line for line in done.stderr.splitlines() if " read" in line)
    assert done.returncode == 0 and done.stdout.split()[0] == color
    assert "held" not in first and "of them held" in second, "the picture is not looked at again"


def test_a_video_is_asked_about(seeing: Path, tmp_path: Path) -> None:
    """Where a shape ended that moves from left to right, or the other way: from a file's frames."""
    for start, end in (("left", "right"), ("right", "left")):
        with av.open(str(tmp_path / "clip.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=6, options={"crf": "8"})
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for at in np.linspace(16, 48, 24) if end == "right" else np.linspace(48, 16, 24):
                image = Image.new("RGB", (64, 64), "white")
                ImageDraw.Draw(image).rectangle((at - 8, 24, at + 8, 40), fill="red")
                file.mux(stream.encode(av.VideoFrame.from_image(image)))
            file.mux(stream.encode())
        question = "Where did the moving object end?"
        done = tried(str(seeing), "--greedy", "--video", str(tmp_path / "clip.mp4"), "--prompt", question)
        said = done.stdout.split()
        assert done.returncode == 0 and end in said and start not in said, done.stderr


@pytest.mark.parametrize(("option", "said"), [("--image", "not an image"), ("--video", "not a video")])
def test_a_file_that_is_none_is_one_message(seeing: Path, tmp_path: Path, option: str, said: str) -> None:
    (tmp_path / "no.png").write_text("no picture")
    done = tried(str(seeing), option, str(tmp_path / "no.png"), "--prompt", "x")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr


def sound(path: Path, rate: int = 16000, seconds: float = 1.0) -> Path:
    time = np.arange(int(rate * seconds)) / rate
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((8000 * np.sin(1400 * time)).astype("<i2").repeat(2).tobytes())
    return path


def test_a_face_says_what_it_hears_as_a_film_or_pictures(tmp_path: Path) -> None:
    face = str(made(tmp_path, "feathertalk", {"window": 20, "hop": 4, "ahead": 2}).folder)
    heard = str(sound(tmp_path / "said.wav"))
    done = tried(face, "--audio", heard, "--out", str(tmp_path / "said.mp4"))
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'said.mp4'}\n", done.stderr
    assert "25 frames at" in done.stderr
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "said.mp4")) as film:
        assert len(list(film.decode(video=0))) == 25 and len(film.streams.audio) == 1
    done = tried(face, "--audio", heard, "--out", str(tmp_path / "frames"), "--profile", "iphone-12")
    assert done.returncode == 0 and len(list((tmp_path / "frames").glob("*.png"))) == 25
    assert "iphone-12: fits." in done.stderr
    for arguments, said in (
        (["--audio", heard, "--out", str(tmp_path / "frames")], "is there already"),
        (["--audio", heard, "--out", str(tmp_path / "x.motion")], "this model makes .mp4"),
        (["--audio", heard, "--out", str(tmp_path / "no" / "x.mp4")], "cannot be written"),
        (["--audio", str(sound(tmp_path / "44.wav", 44100)), "--out", str(tmp_path / "x")], "ffmpeg -i IN"),
        (["--audio", face + "/edgewright.json", "--out", str(tmp_path / "x")], "no WAV that can be read"),
        (["--prompt", "x"], "give it --audio FILE.wav"),
    ):
        done = tried(face, *arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr, done.stderr


def test_blendshapes_become_a_motion_stream(tmp_path: Path) -> None:
    shapes = str(made(tmp_path, "audio2expression", {"window": 16, "hop": 5, "ahead": 2}).folder)
    place = tmp_path / "said.motion"
    done = tried(shapes, "--audio", str(sound(tmp_path / "said.wav")), "--out", str(place))
    assert done.returncode == 0, done.stderr
    raw, decoder, frames = place.read_bytes(), MotionDecoder(), 0
    while raw:
        size = int.from_bytes(raw[:2], "little")
        frames += len(decoder.decode(raw[2 : 2 + size]))
        raw = raw[2 + size :]
    assert frames == 30
