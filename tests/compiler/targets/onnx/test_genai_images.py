"""ONNX packages of Ministral 3 with its eyes in the real onnxruntime-genai, its own image processor included.

Given an image that is prepared as PREPROCESSING.md says, answers must be those of our session and of transformers. Of
other images its processor makes other sizes: nearest whole cells, not the next larger ones. What it makes of them must
have the answers that our session gives to the same pixels. Its pixels are 5e-7 off, and activations of 8 bits make
other answers of that in a model of random weights: so quantized packages are asked about the same pixels alone.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_genai as og
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from artifacts import Manifest
from artifacts.media.pixtral import fit
from artifacts.media.prepare import prepare
from compiler.slots import HALF, Scheme
from compiler.targets import target_options
from recipes.schema import Vision
from runtime_tests.drivers.native_image_text import Asked, NativeImageText
from runtime_tests.sessions import make_session
from tests.artifacts.media import reference as ref
from tests.compiler.conftest import packed, quantized_job
from tests.compiler.pixtral import GEOMETRIES, SMALL, Geometry, cells_of, image, reference, write_pixtral
from tests.compiler.test_processor import pixtral, written

CONTEXT, STEPS, LONGEST = 64, 6, 100
ENCODER = ref.tokenizer()
GEOMETRY = dataclasses.replace(
    SMALL, tied=False, image=112, vocab=len(ENCODER), image_token=ENCODER.convert_tokens_to_ids("[IMG]")
)
Pixels = NDArray[np.uint8]


def build(folder: Path, geometry: Geometry, scheme: Scheme) -> tuple[Path, Manifest]:
    source = write_pixtral(folder / "source", geometry, 3)
    whole = geometry == GEOMETRY
    if whole:
        documents = pixtral()
        written(source, {name: documents[name] for name in documents if name != "config.json"})
        ENCODER.save_pretrained(source)
    bound, options = Vision(max_image=LONGEST), target_options()["onnx"]()
    odd = {"model.vision_tower.patch_conv": HALF}
    job = quantized_job(folder / "quantized", source, options, scheme, odd, max_tokens=CONTEXT, vision=bound)
    return folder / "package", packed(job, "onnx", folder / "package", companions=whole)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    return build(tmp_path_factory.mktemp("half"), GEOMETRY, HALF)


@pytest.fixture(scope="module", params=[8, 4])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    return build(tmp_path_factory.mktemp("quantized"), GEOMETRY, Scheme(request.param, 32))


def session(artifact: tuple[Path, Manifest]) -> Any:
    found = make_session(*artifact)
    found.load()
    return found


class Genai:
    """A package in onnxruntime-genai."""

    def __init__(self, folder: Path) -> None:
        self.model = og.Model(str(folder))
        self.processor = self.model.create_multimodal_processor()

    def prepared(self, prompt: str, pictures: Sequence[Pixels]) -> Any:
        """What its processor makes of a prompt and of pictures, as PNG."""
        if not pictures:
            return self.processor(prompt)
        files = []
        for picture in pictures:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "png")
            files.append(file.getvalue())
        return self.processor(prompt, images=og.Images.open_bytes(*files))

    def continued(self, prepared: Any) -> list[int]:
        """Up to STEPS most likely tokens."""
        parameters = og.GeneratorParams(self.model)
        parameters.set_search_options(do_sample=False, max_length=CONTEXT)
        generator = og.Generator(self.model, parameters)
        generator.set_inputs(prepared)
        said: list[int] = []
        while len(said) < STEPS and not generator.is_done():
            generator.generate_next_token()
            said.append(int(generator.get_next_tokens()[0]))
        return said


def in_words(ids: Sequence[int]) -> str:
    text: str = ENCODER.decode(ids, skip_special_tokens=True).strip()
    return text


def by_transformers(prompt: str, images: Sequence[Pixels]) -> list[int]:
    """What transformers' model answers, with transformers' pixels."""
    ids = ENCODER(prepare(prompt, ref.pixtral(LONGEST), images).text, return_tensors="pt")["input_ids"]
    given = {}
    if images:
        processor = ref.pixtral_images(LONGEST)
        made = [np.asarray(processor(Image.fromarray(image))["pixel_values"][0]) for image in images]
        height, width = (max(one.shape[axis] for one in made) for axis in (1, 2))
        pixels = torch.zeros((len(made), 3, height, width))
        for at, one in enumerate(made):
            pixels[at, :, : one.shape[1], : one.shape[2]] = torch.from_numpy(one)
        given = {"pixel_values": pixels, "image_sizes": torch.tensor([one.shape[1:] for one in made])}
    with torch.no_grad():
        out = reference(GEOMETRY, 3).generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, do_sample=False, **given
        )
    said: list[int] = out[0, ids.shape[1] :].tolist()
    return said


# of two, one is no larger than the other on either side: genai cannot stack others. transformers' own model takes no
# image of one cell by itself
ASKED = [[(33, 90)], [(57, 40), (1, 1)], [(57, 40)], [(300, 211)], [(211, 300)], [(1, 60)], [(90, 70), (40, 57)], []]


def test_prepared_images_have_the_answers_of_our_session_and_of_transformers(half: tuple[Path, Manifest]) -> None:
    asked, genai, description = Asked(session(half), *half), Genai(half[0]), ref.pixtral(LONGEST)
    answers = set()
    for sizes in ASKED:
        images = [ref.picture(*size) for size in sizes]
        prompt = "What? " + "[IMG]:" * len(images) + "er"
        found = genai.prepared(prompt, [fit(image, description.images)[1] for image in images])
        expected = ENCODER(prepare(prompt, description, images).text)["input_ids"]
        assert found["input_ids"].as_numpy()[0].tolist() == expected
        said = genai.continued(found)
        assert in_words(said) == asked.answer(prompt, images, most=STEPS)
        assert said == by_transformers(prompt, images)
        answers.add(tuple(said))
    assert len(answers) > len(ASKED) // 2


def asked_by_itself(artifact: tuple[Path, Manifest]) -> None:
    """Nearest whole cells. Where these are what transformers takes, the pixels are its own."""
    ours, genai = NativeImageText(session(artifact), *artifact), Genai(artifact[0])
    same = []
    for size in [*(size for sizes in ASKED for size in sizes), (83, 55), (20, 109), (112, 84), (200, 200)]:
        found = genai.prepared("What? [IMG]:er", [ref.picture(*size)])
        pixels, ids = found["pixel_values"].as_numpy(), found["input_ids"].as_numpy()[0].astype(np.int64)
        if max(size) <= LONGEST:
            assert pixels.shape[2:] == tuple(28 * max(1, int(edge / 28 + 0.5)) for edge in size)
        ours.show(ours.see([pixels]))
        said = genai.continued(found)
        assert said == ours.greedy(ids, len(said))
        wanted = np.asarray(ref.pixtral_images(LONGEST)(Image.fromarray(ref.picture(*size)))["pixel_values"][0])
        same.append(wanted.shape == pixels.shape[1:])
        if same[-1]:
            np.testing.assert_allclose(pixels[0], wanted, atol=1e-6, rtol=0)
    assert 3 <= sum(same) < len(same)


def test_its_own_sizes_have_the_answers_of_our_session_to_the_same_pixels(half: tuple[Path, Manifest]) -> None:
    asked_by_itself(half)


def test_so_have_those_of_quantized_packages(quantized: tuple[Path, Manifest]) -> None:
    asked_by_itself(quantized)


def test_an_image_longer_than_the_bound_is_refused(half: tuple[Path, Manifest]) -> None:
    """Its processor bounds the area alone; the tower knows no places beyond the bound."""
    genai = Genai(half[0])
    found = genai.prepared("[IMG]", [ref.picture(30, 170)])
    assert found["pixel_values"].as_numpy().shape[2:] == (28, 168)
    with pytest.raises(RuntimeError, match="indices element out of data bounds"):
        genai.continued(found)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_its_graphs_compute_what_the_entries_do(geometry: Geometry, tmp_path: Path) -> None:
    built = build(tmp_path, geometry, HALF)
    own = session(built)
    vision, embedding = (ort.InferenceSession(built[0] / f"{name}.onnx") for name in ("vision", "embedding"))
    for size in [(1, 1), (1, 3), (3, 2)]:
        picture = image(geometry, *size)
        (features,) = vision.run(None, {"pixel_values": picture[None]})
        cells = cells_of(picture, geometry.patch, geometry.merge)
        np.testing.assert_array_equal(features, own.call("vision", "image", **cells)["features"])
    token = geometry.image_token
    ids = np.array([[3, token, 4, token, token]], np.int64)
    plain = own.call("embed", "embed", input_ids=ids)["embeddings"]
    for count in range(4):  # an image token more than there are features is one that the model itself says
        given = features[:count]
        (found,) = embedding.run(None, {"input_ids": ids, "image_features": given})
        wanted = plain.copy()
        wanted[0, [1, 3, 4][:count]] = given
        np.testing.assert_array_equal(found, wanted)


def test_weights_are_stored_once(quantized: tuple[Path, Manifest]) -> None:
    def stored(file: str) -> set[tuple[tuple[str, str], ...]]:
        graph = onnx.load(quantized[0] / file, load_external_data=False).graph
        return {tuple((e.key, e.value) for e in t.external_data) for t in graph.initializer if t.external_data}

    for own, ecosystem in (("vision.image.onnx", "vision.onnx"), ("embed.embed.onnx", "embedding.onnx")):
        assert stored(own) == stored(ecosystem) != set()
