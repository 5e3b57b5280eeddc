"""Packages of the shipped checkpoint against PyTorch with the same dequantized weights."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import silent
from compiler.slots import Scheme
from compiler.targets import load_target
from compiler.targets.coreml.options import CoreMLOptions
from runtime_tests.drivers.text import calls
from runtime_tests.mil.bisect import compare, plain_name
from runtime_tests.mil.program import Function
from tests.compiler.conftest import MINISTRAL3, quantized_job
from tests.compiler.targets.coreml.conftest import INT4, INT8, TINY, Builder, Built, reference
from tests.compiler.targets.coreml.payloads import entries, open_package, slots_of, verify

Ids = np.ndarray[Any, Any]
PROMPT = 100


def decoded(built: Built, ids: Ids, *, exact: bool, prompt: int = PROMPT) -> torch.Tensor:
    """Logits after the prompt and after every further token, through the cache."""
    decoder = built.decoder(exact=exact)
    rows = [decoder.prefill(ids[:prompt]), *(decoder.decode(int(token)) for token in ids[prompt:])]
    return torch.from_numpy(np.stack(rows))


def decoded_by_core_ml(built: Built, ids: Ids, prompt: int = PROMPT) -> torch.Tensor:
    """The same through `MLModel.predict`, with the calls and the shared state of the Swift snippet (macOS 15)."""
    import coremltools as ct

    path = str(built.folder / "model.mlpackage")
    prefill, decode = (ct.models.MLModel(path, function_name=name) for name in ("prefill", "decode"))
    state = prefill.make_state()
    rows = []
    taken = built.manifest.components[0].entry("prefill").dimensions["tokens"]
    for begin, stop in [*calls(prompt, taken), *((i, i + 1) for i in range(prompt, len(ids)))]:
        inputs = {"input_ids": ids[None, begin:stop].astype(np.int32), "position": np.asarray([begin], np.int32)}
        answer = (decode if stop - begin == 1 else prefill).predict(inputs, state)
        if stop >= prompt:
            rows.append(np.asarray(answer["logits"], np.float32)[0, 0])
    return torch.from_numpy(np.stack(rows))


def distance(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Relative RMS and mean KL(expected || found) in nats."""
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    rms = ((found - expected).square().mean() / expected.square().mean()).sqrt()
    return float(rms), float((p.exp() * (p - q)).sum(-1).mean())


@pytest.fixture(params=[pytest.param(INT4, id="int4"), pytest.param(INT8, id="int8", marks=pytest.mark.nightly)])
def tiny(request: pytest.FixtureRequest, build: Builder) -> Built:
    return build(TINY, request.param, 512)


def test_64_decoded_steps_in_half_precision_agree(tiny: Built, text: Ids) -> None:
    """In the executor everywhere; on macOS in Core ML itself too, and the two with each other."""
    expected = reference(tiny.job, text)[PROMPT - 1 :]
    found = [decoded(tiny, text, exact=False)]
    if sys.platform == "darwin":
        found.append(decoded_by_core_ml(tiny, text))
    for logits in found:
        rms, kl = distance(logits, expected)
        assert rms <= 2e-3
        assert kl <= 1e-4
    assert distance(found[-1], found[0])[0] <= 4e-3


def test_the_same_steps_in_single_precision_agree_to_1e_4(tiny: Built, text: Ids) -> None:
    found, expected = decoded(tiny, text, exact=True), reference(tiny.job, text)[PROMPT - 1 :]
    assert (found - expected).abs().max() <= 1e-4


def test_one_flipped_high_nibble_of_a_used_row_is_seen(tiny: Built, text: Ids, tmp_path: Path) -> None:
    """A row of the embedding that the prompt uses; the flip is found through the program's own offsets."""
    table = ("model.embed_tokens",)
    offset = entries(open_package(tiny.folder), tiny.job)[table][0]
    file = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    row = int(text[PROMPT]) * tiny.spec.hidden * tiny.job.schemes[table[0]].bits // 8
    shutil.copytree(tiny.folder, tmp_path / "coreml")
    copy = replace(tiny, folder=tmp_path / "coreml")
    with (copy.folder / file).open("r+b") as weights:
        weights.seek(offset + 64 + row)
        byte = weights.read(1)[0]
        weights.seek(offset + 64 + row)
        weights.write(bytes([byte ^ 0x80]))
    expected = reference(tiny.job, text)[PROMPT - 1 :]
    rms, kl = distance(decoded(copy, text, exact=False), expected)
    assert rms > 2e-3 or kl > 1e-4
    assert (decoded(copy, text, exact=True) - expected).abs().max() > 1e-4


def test_all_positions_of_a_prompt_at_once(tiny: Built, text: Ids) -> None:
    found = torch.from_numpy(tiny.decoder(exact=True).logits(text))
    assert (found - reference(tiny.job, text)).abs().max() <= 1e-4


def test_every_payload_is_the_packed_one_and_the_size_is_theirs(tiny: Built) -> None:
    job = tiny.job
    assert verify(open_package(tiny.folder), job) == 2 * (4 * tiny.spec.layers + 1)
    matrices = [s for s in job.model.slots if not s.is_vector]
    packed = sum(job.schemes[s.name].packed_bytes(s.rows, s.columns, scale_bytes=2) for s in matrices)
    size = (tiny.folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert packed < size <= 1.02 * packed


def damaged(built: Built, folder: Path, slots: tuple[str, ...], part: int, content: bytes) -> Built:
    """A copy in which `content` stands at the beginning of the codes (part 0) or scales (1) of a weight."""
    copy = replace(built, folder=folder)
    shutil.copytree(built.folder, folder)
    package = open_package(folder)
    offset = entries(package, built.job)[slots][part]
    with (folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").open("r+b") as file:
        file.seek(offset + 64)
        file.write(content)
    return copy


@pytest.mark.parametrize("damage", [False, True])
def test_the_first_operation_that_differs_is_named(damage: bool, build: Builder, tmp_path: Path) -> None:
    """Every value of both functions agrees with PyTorch's; with a weight changed, the matrix that holds it does not."""
    built = build(TINY, INT4, 512)
    slots = ("model.layers.2.mlp.down_proj",)
    if damage:
        built = damaged(built, tmp_path / "coreml", slots, 1, np.full(8, 3, np.float16).tobytes())
    for name, inputs, values in load_target("coreml").traces(built.job):
        function = Function(open_package(built.folder), name, exact=True)
        found = compare(function, inputs, values, 1e-3)
        if not damage:
            assert found.divergence is None
            assert found.compared >= 9 * built.spec.layers
            continue
        assert found.divergence is not None
        assert (found.divergence.operation, plain_name(found.divergence.name)) == ("linear", "linear_11")
        assert slots_of(built.job)["linear_11"] == slots


def test_memory_is_modelled_from_the_program_with_a_band(build: Builder) -> None:
    built = build(TINY, INT4, 512)
    figures = {figure.name: figure for figure in built.session().footprint()}
    spec = built.spec
    states = 2 * spec.layers * spec.kv_width * 512 * 2
    weights = built.folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    assert figures["weights_clean_mapped"].value == weights.stat().st_size
    decode, prefill = figures["modelled_footprint_decoder_decode"], figures["modelled_footprint_decoder_prefill_256"]
    for figure in (decode, prefill):
        assert figure.obtained == "modelled" and figure.band is not None
        assert states < figure.band[0] < float(figure.value) < figure.band[1]
    # the mask of a prefill alone: 2 bytes for each of 256 positions of both query groups over the context
    assert float(prefill.value) - float(decode.value) > 2 * 2 * 256 * 512
    assert float(decode.value) < 1.01 * states


VARIANTS: dict[str, tuple[Scheme, dict[str, Scheme], dict[str, Any]]] = {
    "any length": (INT4, {}, {"prompt": "range"}),
    "explicit caches": (INT4, {}, {"cache": "explicit"}),
    "explicit caches in float32": (INT8, {}, {"cache": "explicit", "compute": "fp32", "prompt": "range"}),
    "iOS 17": (
        Scheme(8, 0),
        {"model.layers.0.self_attn.o_proj": Scheme(8, 0, symmetric=False), "model.layers.1.mlp.down_proj": Scheme(16)},
        {"minimum": "iOS17", "cache": "explicit"},
    ),
    "zero points": (Scheme(4, 32, symmetric=False), {"model.embed_tokens": Scheme(8, 32, symmetric=False)}, {}),
    "of every kind, untied, one length": (
        Scheme(4, 0),
        {"model.layers.1.self_attn.k_proj": INT8, "model.layers.0.mlp.down_proj": Scheme(16)},
        {"prompt_lengths": (8,)},
    ),
}


OFTEN = ("any length", "iOS 17", "of every kind, untied, one length")  # the others are nightly


@pytest.mark.parametrize(
    "variant", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.nightly) for name in VARIANTS]
)
def test_every_way_to_build_computes_the_same(variant: str, decoder_folder: Path, untied: Path, build: Builder) -> None:
    """A random two-layer Ministral 3, past its original positions, where queries are scaled."""
    scheme, others, options = VARIANTS[variant]
    source = untied if "untied" in variant else decoder_folder
    built = build(source, scheme, 80, others, **{"prompt_lengths": (4, 16), **options})
    ids = np.random.default_rng(3).integers(0, MINISTRAL3["vocab_size"], 60)
    expected = reference(built.job, ids)
    found = decoded(built, ids, exact=True, prompt=37)
    assert (found - expected[36:]).abs().max() <= 1e-4
    rms, _ = distance(decoded(built, ids, exact=False, prompt=37), expected[36:])
    assert rms <= (1e-5 if options.get("compute") == "fp32" else 4e-3)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="states"),
        pytest.param({"prompt": "range", "cache": "explicit"}, id="explicit", marks=pytest.mark.nightly),
    ],
)
def test_a_context_of_two_tokens(decoder_folder: Path, build: Builder, options: dict[str, Any]) -> None:
    built = build(decoder_folder, INT4, 2, **options)
    ids = np.asarray([7, 159])
    expected = reference(built.job, ids)
    assert (decoded(built, ids, exact=True, prompt=1) - expected).abs().max() <= 1e-4
    assert (torch.from_numpy(built.decoder(exact=True).logits(ids)) - expected).abs().max() <= 1e-4


@pytest.mark.nightly
def test_the_same_input_gives_the_same_bytes(decoder_folder: Path, tmp_path: Path) -> None:
    """Converted in processes, as the product does."""
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        copy = shutil.copytree(decoder_folder, folder / decoder_folder.name)
        options = CoreMLOptions(prompt_lengths=(4,), cache="explicit")
        job = quantized_job(folder / "quantized", copy, options, INT4, max_tokens=8)
        (folder / "coreml").mkdir()
        load_target("coreml").build(job, folder / "coreml", silent)
    first, second = (folder / "coreml" for folder in folders)
    files = [p.relative_to(first) for p in first.rglob("*") if p.is_file()]
    assert len(files) >= 4
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    assert not list(first.rglob("executorch_debug_handle_mapping.json"))
