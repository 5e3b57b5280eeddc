"""Components in the generic layout: ops of PyTorch's own, ranks and sizes that no decoder has, caches in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import EdgewrightError, read_manifest
from compiler.models.base import Model
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights, PackedWriter
from compiler.slots import HALF, Scheme
from compiler.targets import load_target
from compiler.targets.base import BuildJob, Job
from compiler.targets.tvm.options import TvmOptions
from runtime_tests.sessions import Session, make_session
from tests.compiler.conftest import MINISTRAL3, Jobs, Reference, packed, random_tensors, save
from tests.compiler.targets.tvm import probes

HERE = TvmOptions(triples=())
SCHEMES: dict[str, tuple[Scheme, dict[str, Scheme]]] = {
    "int4": (Scheme(4, 8), {"p.letters": Scheme(8, 32), "p.space": Scheme(4, 0)}),
    "half": (HALF, {"p.line": Scheme(8, 0)}),
}


def random_job(model: Model, folder: Path, scheme: Scheme, others: Mapping[str, Scheme]) -> BuildJob:
    """Random weights, rounded to nearest."""
    schemes = {slot.name: scheme for slot in model.slots if not slot.is_vector} | dict(others)
    folder.mkdir()
    kinds = {slot.name: "F32" if slot.is_vector else "BF16" for slot in model.slots}
    writer = PackedWriter(folder, model.slots, schemes, kinds)
    generator = torch.Generator().manual_seed(0)
    for slot in model.slots:
        values = torch.randn(slot.rows, slot.columns, generator=generator) / slot.columns**0.5
        if slot.is_vector or schemes[slot.name].bits == 16:
            writer.write_half(slot.name, 0, values[0].numpy() if slot.is_vector else values.numpy())
        else:
            writer.write(slot.name, 0, rtn.quantize(values, schemes[slot.name]))
    writer.close({"model_type": model.family})
    return BuildJob("random", model, schemes, HERE, PackedWeights(folder), folder)


def opened(job: BuildJob, folder: Path) -> Session:
    session = make_session(folder, packed(job, "tvm", folder))
    session.load(exact=True)
    return session


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", SCHEMES)
def test_ops_ranks_and_sizes_that_no_decoder_has(tmp_path: Path, name: str) -> None:
    """Convolutions of one to three dimensions, grouped and strided; a free dimension; two embeddings; a table of the
    graph's own; slices that are not the last token."""
    job = random_job(probes.model(), tmp_path / "weights", *SCHEMES[name])
    session, reference = opened(job, tmp_path / "tvm"), Reference(job)
    random = np.random.default_rng(0)
    for frames in (5, 1, probes.FRAMES):
        given = {
            "x": random.standard_normal((1, frames, 32), np.float32),
            "image": random.standard_normal((1, 4, 8, 8), np.float32),
            "ids": random.integers(0, 7, 5),
        }
        found, expected = (side.call("probe", "run", **given) for side in (session, reference))
        assert found.keys() == expected.keys()
        for port, value in expected.items():
            np.testing.assert_allclose(found[port], value, atol=1e-5 * np.abs(value).max(), rtol=0)
    given["x"] = np.zeros((1, probes.FRAMES + 1, 32), np.float32)
    with pytest.raises(EdgewrightError, match=r"probe\.run: frames is 10; it takes 1 to 9"):
        session.call("probe", "run", **given)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("op", ["lgamma", "erfinv"])
def test_an_op_without_a_lowering_is_refused_by_name_before_a_weight_is_read(op: str) -> None:
    """The job has no weights that could be read."""
    model = probes.model(refused=op)
    job = Job("refused", model, {}, HERE)
    with pytest.raises(EdgewrightError, match=rf"^tvm: no lowering for aten\.{op}\.default$"):
        load_target("tvm").check(job)
    assert load_target("tvm").refusals(job) == []


@pytest.mark.usefixtures("here")
def test_a_decoder_that_nobody_drives_by_name_keeps_its_caches_in_place(jobs: Jobs, tmp_path: Path) -> None:
    source = save(tmp_path / "source", MINISTRAL3, random_tensors(MINISTRAL3))
    made = jobs(source, HERE, Scheme(4, 32), max_tokens=40)
    job = replace(made, model=replace(made.model, driver="plain"))
    session, reference = opened(job, tmp_path / "tvm"), Reference(job)
    ids = np.random.default_rng(1).integers(0, 160, 20)
    for entry, start, stop in (("prefill", 0, 13), ("decode", 13, 14), ("prefill", 14, 20)):
        given: dict[str, Any] = {"input_ids": ids[None, start:stop], "positions": np.arange(start, stop)[None]}
        found, expected = (side.call("decoder", entry, **given)["logits"] for side in (session, reference))
        np.testing.assert_allclose(found, expected, atol=1e-4)
    states: Any = read_manifest(tmp_path / "tvm").runtime["states"]
    assert [state["in_place"] for state in states] == [True] * 4
    assert {tuple(state["shape"]) for state in states} == {(2, 3, 32, 16), (2, 48, 32)}


@pytest.mark.usefixtures("here")
def test_what_a_package_of_components_holds(toy: Path, jobs: Jobs, tmp_path: Path) -> None:
    """Libraries for phones too: nothing that TOPI's kernels need is missing when they are linked."""
    options = TvmOptions(features=("dotprod",))
    job, folder = jobs(toy, options, Scheme(4, 32), {"cell.input": HALF}), tmp_path / "tvm"
    manifest = packed(job, "tvm", folder)
    libraries = {f"host/libmodel-{name}.so" for name in ("avx512vnni", "avx2", "i8mm", "dotprod", "neon")}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    android, ios = "aarch64-linux-android24/libmodel-dotprod.so", "arm64-apple-ios16.0/libmodel.a"
    assert files - libraries == {"params.bin", "README.md", "edgewright.json", android, ios}
    text = (folder / "README.md").read_text()
    assert "| `cell.step` | `image`, `hidden` | none | `features`, `hidden` |" in text
    assert "| `head.render` | `features` | none | `picture` |" in text
    assert manifest.runtime["payload"] == {"android": [android, "params.bin"], "ios": [ios, "params.bin"]}
    # every slot is stored once, as it is packed; beside them there are headers and padding
    estimates = load_target("tvm").estimate(job)
    weights = sum(part.weight_bytes for part in estimates)
    assert 0 <= (folder / "params.bin").stat().st_size - weights < 2 * 16384 + 64 * 32
    assert [part.state_bytes for part in estimates] == [64 * 4, 0]
