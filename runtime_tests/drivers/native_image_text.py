"""Images at their own size and text: `image_text`, where an image goes through the tower in one piece.

What lives here: an image as cells, and a call that is filled up to a size that the runtime takes. What must not: a
runtime, how an image becomes cells and a prompt (`artifacts/media/`), and how tokens follow each other (`text.py`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Manifest, Progress
from artifacts.formats import preprocessing
from artifacts.formats.interface import Dimension
from artifacts.manifest import payload_file
from artifacts.media.images import Pixels
from artifacts.media.pixtral import Cut, cut
from artifacts.media.prepare import prepare
from artifacts.media.tiles import normalise
from runtime_tests import genai
from runtime_tests.drivers import Asker, Judged, image_text, positive, text
from runtime_tests.drivers.image_text import VISION, Floats, ImageText
from runtime_tests.from_text import TOKENIZER
from runtime_tests.sessions import Session

if TYPE_CHECKING:
    from runtime_tests.jobs import Job
    from runtime_tests.process import Ended, Failure

speed = image_text.speed
_CELLS = (2, 3)  # of the picture that another runtime is shown, where a package takes so many
_QUESTION = "What is in the picture? "


def load(artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
    """See `Driver`: the largest image, in a prompt that fills the context beside the answer."""
    return f"{NativeImageText.most(artifact, manifest)} and {positive(artifact, manifest, 'max_tokens'):,} tokens"


def judge(session: Session, manifest: Manifest, job: Job, progress: Progress) -> Judged:
    """See `Driver`: entry vectors judge every entry. Where onnxruntime-genai loads the package, `more` has what it is
    to be compared in, as `text.judge` leaves it, and "image": a picture that needs no resizing, as PNG in base64."""
    artifact = job.artifact
    if not all((artifact / name).is_file() for name in (genai.CONFIG, TOKENIZER, preprocessing.PREPROCESSING)):
        return Judged()
    from tokenizers import Tokenizer

    progress("an answer to compare", 0, 1)
    description = preprocessing.read(payload_file(artifact, preprocessing.PREPROCESSING), links=False)
    assert isinstance(description, preprocessing.Pixtral)
    picture = _picture(description.images, positive(artifact, manifest, "max_cells", 1))
    asked = description.prompt.image + _QUESTION
    tokenizer = Tokenizer.from_file(str(payload_file(artifact, TOKENIZER)))
    prepared = prepare(asked, description, [picture])
    ids = tokenizer.encode(prepared.text, add_special_tokens=False).ids
    count = min(job.steps, positive(artifact, manifest, "max_tokens") - len(ids))
    if count < 1:
        return Judged(warnings=[f"the context has no room for {len(ids)} tokens: {genai.NAME} was not asked"])
    session.load(threads=job.threads)
    decoder = NativeImageText(session, artifact, manifest)
    decoder.show(decoder.see([normalise(pixels, description.images.normalisation) for pixels in prepared.pixels]))
    greedy = decoder.greedy(np.array(ids, np.int64), count)
    more = {"prompt": ids, "text": asked, "greedy": greedy, "image": _png(picture)}
    return Judged(more=more)


def conclude(manifest: Manifest, judged: Judged, ask: Callable[..., Ended]) -> Sequence[Failure]:
    """See `Driver`: what onnxruntime-genai makes of picture and text by itself."""
    if not judged.more:
        return ()
    eos = manifest.driver.constants.get("eos") if manifest.driver else None
    return text.compared_with_genai(manifest, judged, ask, eos, judged.more["image"])


def _picture(rule: preprocessing.PixtralImages, most: int) -> Pixels:
    """uint8 [height, width, 3] of whole cells: red falls to the right, green downwards, blue is bright.

    Its values are scaled to the same bits in float32 and in float64: what differs in the last of them makes another
    answer where activations have 8 bits.
    """
    cell = rule.patch * rule.merge
    columns = max(1, min(_CELLS[1], most, rule.longest_edge // cell))
    rows = max(1, min(_CELLS[0], most // columns, rule.longest_edge // cell))
    scale, values = rule.normalisation.rescale, np.arange(256)
    same = values[values.astype(np.float32) * np.float32(scale) == (values * scale).astype(np.float32)]
    down, right = (axis / max(axis.max(), 1) for axis in np.mgrid[: rows * cell, : columns * cell])
    levels = np.stack([1 - right, (1 - down) / 2, np.ones_like(down)], -1)
    found: Pixels = same[(levels * (len(same) - 1)).astype(np.int64)].astype(np.uint8)
    return found


def _png(picture: Pixels) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return base64.b64encode(file.getvalue()).decode("ascii")


def asker(session: Session, artifact: Path, manifest: Manifest) -> Asker:
    """See `Driver`."""
    return Asked(session, artifact, manifest)


class NativeImageText(ImageText):
    """One conversation about images, each a call of the tower."""

    def __init__(self, session: Session, artifact: Path, manifest: Manifest) -> None:
        super().__init__(session, artifact, manifest)
        self._patch, self._merge, self._cells = (self._constant(key, 1) for key in ("patch_size", "merge", "max_cells"))
        self._takes = self._vision.entry("image").dimensions["cells"]

    @staticmethod
    def most(artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
        """See `ImageText`."""
        edge, cells = (positive(artifact, manifest, key, 1) for key in ("max_image", "max_cells"))
        return f"an image of {edge:,} pixels along an edge ({cells:,} tokens)"

    def largest(self, tiles: int | None = None) -> Floats:
        """See `ImageText`: one that fills the context is no square."""
        cell = self._patch * self._merge
        places = np.zeros((self._cells, self._merge**2), np.int64)
        return self._features_of(Cut(np.zeros((self._cells, 3, cell, cell), np.float32), places, places))

    def see(self, pictures: Sequence[Floats]) -> Floats:
        """See `ImageText`: of images [1, 3, height, width], each by itself."""
        found = [self._features_of(cut(image, self._patch, self._merge)) for picture in pictures for image in picture]
        return np.concatenate(found)

    def _features_of(self, found: Cut) -> Floats:
        """[cells, hidden] of one image. Raises EdgewrightError for one of more cells than the entry takes."""
        count = len(found.pixels)
        size = filled(count, self._takes)
        if size is None:
            raise EdgewrightError(
                f"an image makes {count:,} tokens, and the package takes {self._takes.high:,} at the most: give a "
                "smaller one"
            )
        images = np.zeros(size, np.int64)
        images[count:] = 1
        fill = partial(_filled, size=size)
        given = {"pixels": fill(found.pixels), "rows": fill(found.rows), "columns": fill(found.columns)}
        (features,) = self.session.call(VISION, "image", **given, images=images).values()
        return features[:count]


def filled(count: int, takes: Dimension) -> int | None:
    """The least size that a dimension takes for so many; None where they are too many."""
    sizes = takes.sizes or (max(count, takes.low), takes.high)
    return min((size for size in sizes if count <= size <= takes.high), default=None)


def _filled(values: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])


class Asked(image_text.Asked):
    """See `image_text.Asked`."""

    def __init__(self, session: Session, artifact: Path, manifest: Manifest) -> None:
        super().__init__(session, artifact, manifest, NativeImageText)


run = partial(image_text.run, kind=NativeImageText)
