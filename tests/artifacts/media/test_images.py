"""Every kind of image file as transformers sees it, and every file that is none in one sentence that names it."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from artifacts.documents import DocumentError
from artifacts.errors import EdgewrightError
from artifacts.media.errors import MediaError
from artifacts.media.images import MAX_BYTES, MAX_PIXELS, decode_image, read_image
from tests.artifacts.media.reference import picture, smolvlm_images

ALPHA = np.linspace(0, 255, 41 * 57).reshape(41, 57).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colours(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(picture(41, 57))
    return image if mode == "RGB" else image.convert(mode)


def transparent(mode: str = "RGBA") -> Image.Image:
    image = colours(mode.rstrip("A"))
    image.putalpha(Image.fromarray(ALPHA))
    return image


def with_clear_colour() -> bytes:
    return encoded(colours("P"), "PNG", transparency=bytes(range(255, 0, -1)))


KINDS = {
    "png": encoded(colours(), "PNG"),
    "png-gray": encoded(colours("L"), "PNG"),
    "png-two-colours": encoded(colours("1"), "PNG"),
    "png-palette": encoded(colours("P"), "PNG"),
    "png-palette-clear": with_clear_colour(),
    "png-one-clear-colour": encoded(colours(), "PNG", transparency=(10, 20, 30)),
    "png-alpha": encoded(transparent(), "PNG"),
    "png-gray-alpha": encoded(transparent("LA"), "PNG"),
    "jpeg": encoded(colours(), "JPEG", quality=60),
    "jpeg-gray": encoded(colours("L"), "JPEG"),
    "jpeg-cmyk": encoded(colours("CMYK"), "JPEG"),
    "jpeg-progressive": encoded(colours(), "JPEG", progressive=True),
    "webp": encoded(colours(), "WEBP"),
    "webp-alpha": encoded(transparent(), "WEBP", lossless=True),
    "gif": encoded(colours("P"), "GIF"),
    "gif-clear": encoded(colours("P"), "GIF", transparency=3),
    "bmp": encoded(colours(), "BMP"),
    "tiff": encoded(colours(), "TIFF"),
    "tiff-cmyk": encoded(colours("CMYK"), "TIFF"),
    "tiff-lab": encoded(colours("LAB"), "TIFF"),
    "tiff-alpha": encoded(transparent(), "TIFF", compression="tiff_lzw"),
    "avif": encoded(colours(), "AVIF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_equal_the_reference(kind, tmp_path):
    (tmp_path / kind).write_bytes(KINDS[kind])
    image = Image.open(io.BytesIO(KINDS[kind]))
    reference = smolvlm_images().process_image(image, do_convert_rgb=True).transpose(1, 2, 0)
    found = read_image(tmp_path / kind)
    assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(found, reference)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 5000), (2000, 1500)])
def test_sizes_that_bands_do_not_divide(size):
    pixels = picture(*size)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(pixels), "PNG"), "x"), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_turned_as_the_file_says(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(colours(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(raw, "x"), np.asarray(load_image(Image.open(io.BytesIO(raw)))))


def test_a_damaged_block_about_the_camera_is_no_reason_to_refuse_a_picture():
    raw = encoded(colours(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode_image(raw, "x"), decode_image(encoded(colours(), "JPEG"), "x"))


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 100, 200, 255))
    assert decode_image(encoded(image, "PNG"), "x").tolist() == [[[255] * 3, [0, 100, 200]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_keeps_its_high_byte(kind):
    """Where the reference clips: it sees white in all that is lighter than 1 of 256."""
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    raw = encoded(Image.fromarray(values), kind)
    np.testing.assert_array_equal(decode_image(raw, "x"), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2))
    assert np.mean(np.asarray(load_image(Image.open(io.BytesIO(raw)))) == 255) > 0.99


def test_16_bit_colour_keeps_its_high_byte():
    values = np.arange(27, dtype=np.uint16).reshape(3, 3, 3) * 2400
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    found = decode_image(png(3, 3, depth=16, colour=2, data=zlib.compress(rows)), "x")
    np.testing.assert_array_equal(found, values >> 8)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_an_animation_or_several_pages_the_first(kind, options):
    pages = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    raw = encoded(pages[0], kind, save_all=True, append_images=pages[1:], **options)
    assert Image.open(io.BytesIO(raw)).n_frames == 3
    assert np.unique(decode_image(raw, "x").reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def png(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


NOT_IMAGES = {
    "empty": (b"", "not an image that can be read"),
    "text": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read; JPEG, PNG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
    "bomb": (
        png(10_000, 5_000, data=zlib.compress(bytes(100_000))),
        "10000 × 5000 pixels (50,000,000); at most 40,000",
    ),
    "wide-bomb": (png(60_000, 60_000), "at most 40,000,000 are read, so that memory is bounded"),
    "no-pixels": (png(0, 5), "not an image that can be read"),
    "no-data": (png(5, 5), "damaged, or cut short"),
    "wrong-data": (png(5, 5, data=b"not deflated"), "damaged, or cut short"),
    "32-bit": (encoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "its pixels are 32-bit numbers"),
    "float": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "its pixels are 32-bit numbers"),
}


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_what_is_no_image_is_named(name, tmp_path, recwarn):
    raw, message = NOT_IMAGES[name]
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(MediaError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert not recwarn.list


@pytest.mark.parametrize(
    "kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff", "tiff-alpha", "avif", "jpeg-progressive"]
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_short(kind, share, tmp_path):
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(KINDS[kind][: int(len(KINDS[kind]) * share)])
    with pytest.raises(EdgewrightError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ")


@given(st.data())
def test_no_damage_ends_in_anything_but_pixels_or_a_sentence(data):
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    raw = bytearray(KINDS[kind])
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
        raw[at] = data.draw(st.integers(0, 255))
    try:
        found = decode_image(bytes(raw), "file")
    except MediaError as error:
        assert str(error).startswith("file: ")
    else:
        assert found.ndim == 3


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "image")
    (tmp_path / "image").write_bytes(KINDS["png"])
    with pytest.raises(DocumentError, match=r"link: cannot be read"):
        read_image(tmp_path / "link", links=False)
    assert read_image(tmp_path / "link").shape == (41, 57, 3)
    for path, what in (
        (tmp_path / "pipe", "it is a pipe"),
        (Path("/dev/zero"), "it is a device"),
        (tmp_path, "it is a folder"),
        (tmp_path / "missing", "No such file"),
        (tmp_path / "a\0b", "null"),
    ):
        with pytest.raises(DocumentError, match=what):
            read_image(path)


def test_a_file_larger_than_any_picture(tmp_path):
    path = tmp_path / "large.png"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DocumentError, match=r"large.png: is larger than 67,108,864 bytes"):
        read_image(path)


MEASURE = """
import resource, sys, warnings
from pathlib import Path
from artifacts.errors import EdgewrightError
from artifacts.media import images
from PIL import Image
images.decode_image(Path(sys.argv[1]).read_bytes(), "small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    images.read_image(Path(sys.argv[2]))
except EdgewrightError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(("side", "bytes_a_pixel"), [(2500, 14), (7100, 0.2)])
def test_memory_is_bounded(side, bytes_a_pixel, tmp_path):
    """An image within the limit takes a few bytes a pixel, turning included; one of 50 megapixels none."""
    assert (side**2 > MAX_PIXELS) == (side == 7100)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "small.png").write_bytes(KINDS["png-alpha"])
    image = Image.new("LA", (side, side), (7, 200))
    (tmp_path / "large.png").write_bytes(encoded(image, "PNG", exif=exif, compress_level=1))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small.png"), str(tmp_path / "large.png")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert int(out.stdout) < side**2 * bytes_a_pixel + (4 << 20)
