"""From an image file, whoever made it, to RGB pixels.

What lives here: opening, limits, and the conversion of every kind of pixel. What must not: sizes that a model wants
(`tiles.py`, `pixtral.py`).

As transformers does it (`image_utils.load_image` turns by EXIF, `image_transforms.convert_to_rgb` lays what is
transparent over white), but for one kind: 16-bit gray, which Pillow clips at 255, so that nearly all of it becomes
white. Here it keeps its high byte, as Pillow itself does with 16-bit colour, and as every viewer and phone shows it.
Colour profiles are not looked at, by neither.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts.documents import read_bytes
from artifacts.media.errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is opened. Never all that Pillow can: EPS runs a program, others are opened by what they pretend to be."""
MAX_BYTES = 64 << 20
MAX_PIXELS = 40_000_000
_BAND_PIXELS = 1 << 20
_ORIENTATION = 0x0112  # EXIF 2.32, table 4
_ALPHA_OVER = (255, 255, 255, 255)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS, links: bool = True) -> Pixels:
    """The first picture of an image file, upright: uint8 [height, width, 3], R, G, B.

    At most MAX_BYTES of file and `max_pixels` are read, sizes from the header before anything is decoded; decoding then
    takes about ten bytes a pixel, twice that where a format is buffered whole. Of an animation or several pages the
    first is taken (an animation is a clip for `video.py`). Raises EdgewrightError naming the file: no regular file, too
    large, no image, damaged, cut short.
    """
    return decode_image(read_bytes(path, MAX_BYTES, links=links), str(path), max_pixels=max_pixels)


def decode_image(raw: bytes, source: str, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """`read_image` for bytes in memory; `source` is what errors call them."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about large images, for which the limit here is lower
            image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        raise MediaError(
            f"{source}: not an image that can be read; {', '.join(FORMATS)} are (save a HEIC or SVG as one of them)"
        ) from None
    except Image.DecompressionBombError:
        raise MediaError(f"{source}: {_too_large(max_pixels)}") from None
    except Exception as error:
        raise MediaError(f"{source}: its header cannot be read as an image: {_reason(error)}") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise MediaError(f"{source}: {width} × {height} pixels ({width * height:,}); {_too_large(max_pixels)}")
        try:
            image.load()
            pixels = _rgb(image, source)
            turn = _turn(image)
        except MediaError:
            raise
        except Exception as error:
            raise MediaError(f"{source}: damaged, or cut short: {_reason(error)}") from error
    return np.ascontiguousarray(_upright(pixels, turn))


def _too_large(max_pixels: int) -> str:
    return f"at most {max_pixels:,} are read, so that memory is bounded: make it smaller first"


def _reason(error: Exception) -> str:
    return str(error)[:160] or type(error).__name__


def _turn(image: Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the file does not say, or cannot."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged block beside a sound picture
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """A view, turned and mirrored: 2 and 4 are mirrored, 3 upside down, 5 to 8 have rows for columns."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _rgb(image: Image, source: str) -> Pixels:
    """All pixels as R, G, B, band by band, so that conversions never hold a second whole image."""
    if image.mode in ("I", "F"):
        raise MediaError(
            f"{source}: its pixels are 32-bit numbers, and nothing says which is white; save it with 8 or 16 bits"
        )
    width, height = image.size
    transparent = image.info.get("transparency")
    found = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        band = image.crop((0, top, width, bottom))
        found[top:bottom] = _high_byte(band, transparent) if image.mode.startswith("I;16") else _converted(band)
    return found


def _converted(band: Image) -> Pixels:
    from PIL import Image

    if "A" in band.getbands() or band.info.get("transparency") is not None:
        band = Image.alpha_composite(Image.new("RGBA", band.size, _ALPHA_OVER), band.convert("RGBA"))
    return np.asarray(band.convert("RGB"))


def _high_byte(band: Image, transparent: Any) -> Pixels:
    values = np.asarray(band).astype(np.uint16)
    gray = (values >> 8).astype(np.uint8)
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return np.repeat(gray[..., None], 3, axis=2)
