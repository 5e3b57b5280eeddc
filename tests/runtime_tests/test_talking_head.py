"""The driver of talking heads: frames of sound in any chunks, on real packages, against the definition written out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EdgewrightError, Manifest, silent
from artifacts.formats.talking_head import read
from artifacts.media.errors import MediaError
from compiler.slots import HALF, Scheme
from compiler.targets.onnx.options import OnnxOptions
from compiler.targets.tvm.options import TvmOptions
from device_farm import load_profile
from edgewright import text
from edgewright.report import target_report
from runtime_tests.drivers.talking_head import TalkingHead, chunks, noise
from runtime_tests.jobs import Job
from runtime_tests.sessions import make_session
from runtime_tests.validate import Limits, validate
from tests.compiler.adopt.conftest import save_encoder, save_expression, save_unet
from tests.compiler.avatars import small_encoder, small_expression, small_unet
from tests.compiler.conftest import Reference, packed, quantized_job
from tests.compiler.targets.conftest import here

__all__ = ["here"]
PHONE = load_profile("iphone-12")


@dataclasses.dataclass
class Avatar:
    """A small checkpoint's ONNX package, and its job."""

    folder: Path
    manifest: Manifest
    job: Any

    def head(self, session: Any = None, **more: Any) -> TalkingHead:
        if session is None:
            session = make_session(self.folder, self.manifest)
            session.load()
        return TalkingHead(session, self.folder, self.manifest, **more)

    @property
    def constants(self) -> Any:
        return read(self.manifest.driver.constants, "here")


def made(folder: Path, family: str, stream: dict[str, int]) -> Avatar:
    import json

    from compiler.adopt import adopt

    files = (
        [save_unet(folder / "last.pth", small_unet()), save_encoder(folder / "hubert.pth", small_encoder())]
        if family == "feathertalk"
        else [save_expression(folder / "streaming.tar", small_expression())]
    )
    source = adopt(files, family, folder / "adopted", "apache-2.0", silent).folder
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"streaming": stream}))
    job = quantized_job(folder / "quantized", source, OnnxOptions(), HALF)
    return Avatar(folder / "onnx", packed(job, "onnx", folder / "onnx", companions=True), job)


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Avatar:
    return made(tmp_path_factory.mktemp("face"), "feathertalk", {"window": 20, "hop": 4, "ahead": 2})


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Avatar:
    return made(tmp_path_factory.mktemp("shapes"), "audio2expression", {"window": 16, "hop": 5, "ahead": 2})


@pytest.fixture(params=["face", "shapes"])
def avatar(request: pytest.FixtureRequest) -> Avatar:
    found: Avatar = request.getfixturevalue(request.param)
    return found


def frames(head: TalkingHead, parts: Any) -> list[Any]:
    return [frame for part in parts for frame in head.push(part, 16000)] + list(head.finish())


def test_sound_in_chunks_gives_the_frames_of_the_whole(avatar: Avatar) -> None:
    sound = noise(avatar.constants, 14)[:-100]
    whole = frames(avatar.head(), [sound])
    assert len(whole) == 14, "a frame that has begun is one"
    cuts = np.sort(np.random.default_rng(1).integers(0, len(sound), 40))
    for parts in (chunks(sound), np.split(sound, cuts), np.split(sound, [0, 0, 1])):
        found = frames(avatar.head(), parts)
        assert len(found) == 14 and all(np.array_equal(a, b) for a, b in zip(whole, found, strict=True))


def test_frames_come_as_soon_as_their_look_ahead_is_heard(avatar: Avatar) -> None:
    """A frame waits for the window that it is in and for its look-ahead, and not for the end."""
    constants, head = avatar.constants, avatar.head()
    each, rate = 160, constants.audio.sample_rate
    came: list[float] = []
    for at in range(0, rate, each):
        came += [1000 * (at + each) / rate for _ in head.push(np.zeros(each, np.float32), rate)]
    delays = [there - 1000 * (i + 1) / constants.frames.rate for i, there in enumerate(came)]
    slack = 1000 * each / rate + 5 + 1000 / constants.audio.tokens_per_second
    assert min(delays) >= constants.frames.lookahead_ms - 1
    assert max(delays) <= constants.frames.lookahead_ms + constants.hop_ms + slack


def _windows(constants: Any, sound: Any, count: int) -> Iterator[Any]:
    audio = constants.audio
    padded = np.concatenate([np.zeros(60000), sound, np.zeros(60000)])
    for n in range(-(-count * constants.frames.tokens // audio.hop)):
        begin = ((n + 1) * audio.hop + audio.ahead - audio.tokens) * audio.sample_rate // audio.tokens_per_second
        window = padded[60000 + begin :][: audio.samples].copy()
        if audio.normalization_eps:
            inside = slice(max(0, -begin), len(sound) - begin)
            window[inside] -= window[inside].mean()
            window[inside] /= np.sqrt(window[inside].var() + audio.normalization_eps)
        yield window.astype(np.float32)[None]


def test_the_frames_are_those_of_the_definition(face: Avatar) -> None:
    """Windows, tokens, features and pictures by hand, through PyTorch's reference."""
    constants, reference = face.constants, Reference(face.job)
    sound = noise(constants, 9)
    video = np.random.default_rng(5).integers(0, 256, (10, 100, 100, 3), np.uint8)
    tokens = []
    for window in _windows(constants, sound, 9):
        tokens += list(reference.call("audio", "encode", waveform=window)["hidden"][0, 20 - 2 - 4 : 20 - 2])
    heard = np.concatenate([np.zeros((8, 256)), tokens[:18], np.zeros((6, 256))]).astype(np.float32)
    found = frames(face.head(pictures=lambda at: (video[9], video[at])), [sound])
    inner = video[:, 2:98, 2:98].astype(np.float32) / 255
    for at, frame in enumerate(found):
        image = np.concatenate([inner[9], inner[at]], 2)
        image[3:90, 3:93, 3:] = 0
        given = heard[2 * at : 2 * at + 16].reshape(1, 16, 16, 16)
        expected = reference.call("renderer", "frame", image=image.transpose(2, 0, 1)[None], audio=given)["picture"][0]
        assert np.abs(frame - expected).max() <= 1e-4 * np.abs(expected).max(), at
    assert len(found) == 9


def test_the_blendshapes_are_those_of_the_definition(shapes: Avatar) -> None:
    constants, reference = shapes.constants, Reference(shapes.job)
    sound, who = noise(constants, 12), np.eye(1, 12, 3, dtype=np.float32)
    expected: list[Any] = []
    for window in _windows(constants, sound, 12):
        expected += list(reference.call("expression", "express", audio=window, identity=who)["expression"][0, 9:14])
    found = frames(shapes.head(identity=3), [sound])
    assert np.stack(found).shape == (12, 52)
    assert np.abs(np.stack(found) - expected[:12]).max() <= 1e-4
    assert np.abs(np.stack(found) - frames(shapes.head(), [sound])).max() > 1e-3, "who speaks matters"
    with pytest.raises(EdgewrightError, match="identity 12: the model knows 0 to 11"):
        shapes.head(identity=12)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("avatar", [pytest.param("face", marks=pytest.mark.nightly), "shapes"], indirect=True)
def test_another_runtime_gives_the_same_stream(avatar: Avatar, tmp_path: Path) -> None:
    job = dataclasses.replace(avatar.job, options=TvmOptions(triples=()))
    other = Avatar(tmp_path / "tvm", packed(job, "tvm", tmp_path / "tvm"), job)
    sound = noise(avatar.constants, 8)
    one, two = (np.stack(frames(found.head(), chunks(sound))) for found in (avatar, other))
    assert np.abs(one - two).max() <= 1e-4 * np.abs(one).max()


def test_silence_clipped_and_no_sound(avatar: Avatar) -> None:
    rate = avatar.constants.frames.rate
    for sound in (np.zeros(3200, np.float32), np.sign(noise(avatar.constants, 9))[:3200], np.ones(3200, np.float32)):
        found = frames(avatar.head(), [sound])
        assert len(found) == -(-3200 * rate // 16000) and all(np.isfinite(frame).all() for frame in found)
    assert frames(avatar.head(), []) == frames(avatar.head(), [np.empty(0, np.float32)]) == []
    assert len(frames(avatar.head(), [np.zeros(1, np.float32)])) == 1, "much less than a window"


def test_frames_that_nobody_took_come_with_the_next_call(face: Avatar) -> None:
    sound = noise(face.constants, 12)
    head = face.head()
    next(head.push(sound, 16000))
    rest = list(head.finish())
    assert len(rest) == 11
    assert all(np.array_equal(a, b) for a, b in zip(rest, frames(face.head(), [sound])[1:], strict=True))


def test_bad_sound_is_refused_and_the_stream_goes_on(avatar: Avatar) -> None:
    sound = noise(avatar.constants, 6)
    head = avatar.head()
    found = list(head.push(sound[:500], 16000))
    some, stereo = sound[:9], np.stack([sound, sound])
    for bad, rate in ((some, 48000), (some, 8000), (stereo, 16000), (sound * np.float32(np.nan), 16000)):
        with pytest.raises(MediaError, match=r"^sound: "):
            head.push(bad, rate)
    found += [*head.push(sound[500:], 16000), *head.finish()]
    assert np.array_equal(found, frames(avatar.head(), [sound]))


def test_a_validation_judges_the_stream_and_says_how_long_a_frame_waits_and_takes(avatar: Avatar) -> None:
    found = validate(avatar.folder, [(PHONE, Limits())], decode_tokens=6)
    assert found.passed, found
    (stream,) = [check for check in found.checks if check.name == "stream_differences"]
    assert (stream.value, stream.limit, stream.verdict, stream.obtained) == (0, 0, "passed", "measured")
    figures = {figure.name: figure for figure in found.figures}
    assert (
        figures["lookahead"].value == avatar.constants.frames.lookahead_ms == (160 if avatar.constants.picture else 66)
    )
    assert (figures["lookahead"].unit, figures["lookahead"].obtained) == ("ms", "declared")
    assert figures["host_frame_time"].value > 0 and figures["host_first_frame"].value > 0
    assert {figures[name].unit for name in ("host_frame_time", "host_first_frame", "host_audio")} == {"s"}
    said = text.speed(target_report(avatar.folder, avatar.manifest, found))
    assert said and re.search(
        r"first frame [\d.]+ ms after its sound, then a frame in [\d.]+ ms; each waits for \d+ ms", said
    )
    (phone,) = found.profiles
    assert [phase.phase for phase in phone.run.phases] == ["load", "audio", "first", "steady"]
    assert phone.checks[0].at == f"windows of {1000 * avatar.constants.audio.samples // 16000:,} ms"


def test_a_runtime_whose_frames_depend_on_the_cut_fails(shapes: Avatar) -> None:
    """A fault injected: a session that counts its calls."""
    from runtime_tests.drivers import talking_head

    class Drifting:
        stand_in, calls = None, 0

        def load(self, **options: Any) -> None: ...

        def call(self, component: str, entry: str, **arrays: Any) -> dict[str, Any]:
            self.calls += 1
            return {"expression": np.full((1, 16, 52), self.calls, np.float32)}

    session: Any = Drifting()
    job = Job(kind="quality", artifact=shapes.folder)
    (check,) = talking_head.judge(session, shapes.manifest, job, silent).checks
    assert (check.verdict, check.value) == ("failed", 13)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("audio", {"hop": 21}, r"driver\.constants\.audio: .*hop 21 and ahead 2 are more than the window's 20 tokens"),
        ("audio", {"hop": 3}, r"driver\.constants: .*2 tokens a frame .* do not fit a hop of 3"),
        ("audio", {"tokens": "20"}, r"driver\.constants\.audio\.tokens: "),
        ("audio", {"tokens": 24}, r"audio and frames do not fit the \[1, 20, 256\] that audio gives"),
        ("frames", {"before": 5}, r"audio and frames do not fit"),
        ("picture", {"mouth": [90, 0, 90, 1]}, r"driver\.constants\.picture: .*the mouth is not within it"),
    ],
)
def test_constants_that_do_not_fit_are_refused(face: Avatar, key: str, value: Any, message: str) -> None:
    driver = face.manifest.driver
    constants = driver.constants | {key: driver.constants[key] | value}
    manifest = face.manifest.model_copy(update={"driver": driver.model_copy(update={"constants": constants})})
    with pytest.raises(EdgewrightError, match=message):
        TalkingHead(None, face.folder, manifest)  # type: ignore[arg-type]


def test_the_page_lies_in_the_package_and_in_no_app(avatar: Avatar) -> None:
    page = (avatar.folder / "TALKING_HEAD.md").read_text()
    constants = avatar.constants
    for part in (constants.audio, constants.frames, constants.picture):
        assert all(name in page for name in (type(part).model_fields if part else ())), part
    assert not any("TALKING_HEAD.md" in files for files in avatar.manifest.runtime["payload"].values())


def test_eight_bits_stream_alike(face: Avatar, tmp_path: Path) -> None:
    others = {slot.name: Scheme(8, 0) for slot in face.job.model.slots if slot.columns % 32 == 0 and not slot.is_vector}
    job = quantized_job(tmp_path / "quantized", face.job.source, OnnxOptions(), HALF, others)
    small = Avatar(tmp_path / "onnx", packed(job, "onnx", tmp_path / "onnx"), job)
    sound = noise(face.constants, 7)
    whole = frames(small.head(), [sound])
    assert all(np.array_equal(a, b) for a, b in zip(whole, frames(small.head(), chunks(sound)), strict=True))
