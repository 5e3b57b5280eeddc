"""Late binding: what each guard keeps from happening, shown by taking the guard away."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EdgewrightError
from compiler.quantize.packed import PackedWeights
from compiler.slots import HALF, Scheme
from compiler.targets.base import BuildJob
from compiler.targets.coreml import convert as conversion
from compiler.targets.coreml import placeholders
from compiler.targets.coreml.bind import Converted, bind, file_values
from compiler.targets.coreml.options import CoreMLOptions
from compiler.targets.coreml.packaging.text import PACKAGE, packages
from compiler.targets.coreml.placeholders import FIRST_MARKER
from tests.compiler.conftest import MINISTRAL3, Jobs, random_tensors, save


def decode(job: BuildJob, scratch: contextlib.ExitStack) -> Converted:
    """The decode function of a job, in this process."""
    return conversion.convert(job, packages(job)[PACKAGE][-1], job.weights, scratch)


@pytest.fixture
def convert(ministral: Path, jobs: Jobs) -> Any:
    """convert(): the decode function of a two-layer model, not yet bound, in this process."""

    def make() -> tuple[Converted, PackedWeights]:
        job = jobs(ministral, CoreMLOptions(), Scheme(4, 32), max_tokens=32)
        with contextlib.ExitStack() as scratch:
            found = decode(job, scratch)
            content = found.weight_file.read_bytes()
        kept = ministral / "small.bin"
        kept.write_bytes(content)
        return Converted(found.spec, found.placeholders, kept), job.weights

    return make


def markers(converted: Converted) -> set[int]:
    values = file_values(converted.spec.mlProgram.functions["main"])
    return {value.offset for value in values if value.offset >= FIRST_MARKER}


# the table, and four matrices a layer, each with codes and scales
EXPECTED = 2 * (1 + 2 * 4)


def test_every_weight_has_its_own_placeholder(convert: Any) -> None:
    assert len(markers(convert()[0])) == EXPECTED


def test_without_keys_of_their_own_equal_zeros_would_be_merged(convert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = placeholders.constant

    def without_key(part: Any, shape: Any) -> Any:
        var = original(part, shape)
        del var.op.weight_key
        return var

    monkeypatch.setattr("compiler.targets.coreml.lower.constant", without_key)
    with pytest.raises((AssertionError, AttributeError)):
        assert len(markers(convert()[0])) == EXPECTED


@pytest.mark.nightly
def test_without_frozen_values_placeholders_would_be_computed_with(
    convert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes would fold casts of them into real zeros: the markers go, or the memory that they save."""
    inferences = 0
    from coremltools.converters.mil.mil.operation import Operation

    original = Operation.type_value_inference

    def counted(self: Any, overwrite_output: bool = False) -> Any:
        nonlocal inferences
        if overwrite_output and getattr(self, "marker", None) is not None:
            inferences += 1
        return original(self, overwrite_output)

    monkeypatch.setattr(Operation, "type_value_inference", counted)
    assert len(markers(convert()[0])) == EXPECTED and inferences == 0
    tracemalloc.start()
    convert()
    guarded = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    monkeypatch.setattr(placeholders, "freeze", lambda op: None)
    try:
        found = convert()[0]
    except Exception:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert inferences > 0 or len(markers(found)) < EXPECTED or peak > 2 * guarded


def test_norms_of_one_and_others_both_survive(tmp_path: Path, jobs: Jobs) -> None:
    """A multiplication by ones may go; any other gain must be in the program, each layer's its own."""
    config = MINISTRAL3 | {"tie_word_embeddings": True}
    tensors = random_tensors(config)
    tensors["model.norm.weight"][:] = 1
    job = jobs(save(tmp_path / "ones", config, tensors), CoreMLOptions(), Scheme(4, 32), max_tokens=32)
    with contextlib.ExitStack() as scratch:
        found = decode(job, scratch)
        content = found.weight_file.read_bytes()
    gains = [s for s in job.model.slots if s.is_vector and s.name != "model.norm"]
    for slot in gains:
        assert job.weights.rows(slot.name).astype(np.float32).tobytes() in content, slot.name


def test_equal_small_constants_of_functions_are_stored_once(convert: Any, tmp_path: Path) -> None:
    first, weights = convert()
    second, _ = convert()
    one, two = tmp_path / "one.bin", tmp_path / "two.bin"
    bind({"a": first}, weights, one, lambda _: None)
    first, weights = convert()
    bind({"a": first, "b": second}, weights, two, lambda _: None)
    assert one.read_bytes() == two.read_bytes()
    offsets = [[v.offset for v in file_values(c.spec.mlProgram.functions["main"])] for c in (first, second)]
    assert offsets[0] == offsets[1]


def test_a_weight_beyond_half_precision_is_refused_by_name(tmp_path: Path, jobs: Jobs) -> None:
    config = dict(MINISTRAL3)
    tensors = random_tensors(config)
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 4] = 1e30
    job = jobs(save(tmp_path / "huge", config, tensors), CoreMLOptions(), HALF, max_tokens=32)
    with contextlib.ExitStack() as scratch:
        found = decode(job, scratch)
        with pytest.raises(EdgewrightError, match=r"layers\.1\.self_attn\.o_proj.*beyond float16"):
            bind({"main": found}, job.weights, tmp_path / "weight.bin", lambda _: None)
