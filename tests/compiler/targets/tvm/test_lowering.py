"""The lowered modules: no full-precision weight anywhere, caches in place, mixed schemes, a flipped bit that shows."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EdgewrightError
from compiler.models import decoder
from compiler.slots import HALF, Scheme
from compiler.targets.base import BuildJob
from compiler.targets.tensors import Tensor
from compiler.targets.tvm import link, triples, weights
from compiler.targets.tvm.captured import Captured, PlainNode, Reference, capture_functions
from compiler.targets.tvm.packaging import text
from tests.compiler.conftest import MINISTRAL3, random_tensors, save
from tests.compiler.targets.tvm.conftest import TABLE, host_variants, reference_logits, small_job, tensor

SCHEMES: dict[str, tuple[Scheme, dict[str, Scheme]]] = {
    "int4": (Scheme(4, 32), {}),
    "int8": (Scheme(8, 32), {}),
    "per channel": (Scheme(4, 0), {}),
    "half": (HALF, {}),
    "mixed": (
        Scheme(4, 32),
        {
            TABLE: Scheme(8, 64),
            "model.layers.1.self_attn.v_proj": Scheme(8, 32),
            "model.layers.0.mlp.gate_proj": Scheme(8, 32),
        },
    ),
    "untied": (Scheme(4, 32), {"lm_head": Scheme(8, 32)}),
}
MIXED = {"int4", "int8"}  # what "mixed" has both of


class Machine:
    """One variant compiled for this machine, its parameters in memory."""

    def __init__(self, job: BuildJob, folder: Path) -> None:
        import tvm
        from tvm import relax

        from compiler.targets.tvm.compilation import compile_module

        host, captured, library = triples.host(), capture(job), folder / "model.so"
        objects = compile_module(module_of(job, captured), host.target(host_variants()[0]), folder / "kernels")
        link.shared_library(library, objects, host)
        self.machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
        caches = [np.zeros(state.shape, np.float32) for state in captured.states]
        self.parameters = parameters(job, captured)
        values = [np.concatenate([np.asarray(b) for b in t.blocks()]) for t in self.parameters]
        typed = [v.astype(t.dtype).reshape(t.shape) for v, t in zip(values, self.parameters, strict=True)]
        self.state = [tensor(a) for a in (*caches, *typed)]

    def run(self, name: str, ids: Any, start: int = 0) -> Any:
        ids = np.asarray(ids, np.int64)[None]
        positions = np.arange(start, start + ids.shape[1])[None]
        return self.machine[name](tensor(ids), tensor(positions), self.state).numpy()[0]


Made = Callable[[str], tuple[BuildJob, Machine]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A job and its machine, each compiled once."""

    @cache
    def make(name: str) -> tuple[BuildJob, Machine]:
        folder = tmp_path_factory.mktemp("lowered")
        job = make_job(folder, name)
        return job, Machine(job, folder)

    return make


def capture(job: BuildJob) -> Captured:
    return capture_functions(job.model, job.schemes, text.functions(job), text.narrowed(job))


def parameters(job: BuildJob, captured: Captured) -> list[Tensor]:
    return weights.tensors(job, weights.tables_of(captured))


def module_of(job: BuildJob, captured: Captured) -> Any:
    from compiler.targets.tvm.module import library_module

    isa = host_variants()[0].isa
    return library_module(text.functions(job), isa, captured, parameters(job, captured), "{}")


def make_job(folder: Path, name: str) -> BuildJob:
    config = {**MINISTRAL3, "tie_word_embeddings": name != "untied"}
    scheme, others = SCHEMES[name]
    return small_job(folder, save(folder / "checkpoint", config, random_tensors(config)), others, scheme, chunk=16)


def test_ops_without_a_lowering_are_refused_by_name() -> None:
    from compiler.targets.tvm.aten import refuse_unlowered

    def call(target: str, *args: Any) -> PlainNode:
        return PlainNode("call_function", target, target, args)

    x, table = Reference("x"), ("edge.linear.default", "slice.Tensor", "getitem")
    known = [
        call("edge.linear.default", x),
        call("aten.slice.Tensor", x, 1, -1, 1 << 62),
        call("operator.getitem", x, 0),
    ]
    refuse_unlowered([PlainNode("placeholder", "x", "x", ()), *known], table)
    with pytest.raises(EdgewrightError, match=r"tvm: no lowering for aten\.cumsum\.default, aten\.sort\.default$"):
        refuse_unlowered([*known, call("aten.sort.default", x), call("aten.cumsum.default", x, 1)], table)
    # an op of ours never passes for one of PyTorch's that goes by the same name
    with pytest.raises(EdgewrightError, match=r"tvm: no lowering for edge\.slice\.Tensor$"):
        refuse_unlowered([*known, call("edge.slice.Tensor", x)], table)


def test_captured_graphs_travel_without_pytorch(tmp_path: Path) -> None:
    """What goes from process to process names no class of PyTorch, which would import it there: 130 MB."""
    from compiler.targets.tvm.workers import capture_graphs

    job = make_job(tmp_path, "mixed")
    captured = capture_graphs(job, text.functions(job), text.narrowed(job))
    assert set(captured.graphs) == {"prefill", "decode", "score"}
    ((inverse, _, positions),) = weights.tables_of(captured).rotary
    assert len(inverse) == MINISTRAL3["head_dim"] // 2 and positions == 96
    assert b"torch" not in pickle.dumps(captured)


def test_rotary_tables_are_the_dialects_at_far_positions() -> None:
    """Computed by NumPy, for the memory's sake, and within a rounding of the reference's: also far out, where angles
    are large."""
    import torch

    from compiler.dialect import edge

    inverse, factor = decoder.rotary_frequencies(decoder.read_spec(MINISTRAL3))
    table = (tuple(inverse), factor, 100_000)
    names = weights.Tables((table,), ()).rotary_names(table)
    assert names == ("rotary.cos", "rotary.sin")
    expected = edge.rotary(torch.arange(100_000)[None], inverse, factor)
    for made, reference in zip(weights.rotary(table, names), expected, strict=True):
        np.testing.assert_allclose(np.concatenate(list(made.blocks())), reference[0].numpy(), atol=2.5e-7, rtol=0)


@pytest.mark.parametrize(
    "name", [name if name not in MIXED else pytest.param(name, marks=pytest.mark.nightly) for name in SCHEMES]
)
def test_parity_on_lengths_it_was_not_traced_with(made: Made, name: str) -> None:
    job, machine = made(name)
    ids = np.random.default_rng(1).integers(0, 160, 40)
    reference = reference_logits(job, ids)
    prefilled = np.concatenate([machine.run("score_exact", ids[i : i + 13], i) for i in range(0, 39, 13)])
    np.testing.assert_allclose(prefilled, reference[:39], atol=1e-4)
    np.testing.assert_allclose(machine.run("decode_exact", ids[39:], 39)[0], reference[39], atol=1e-4)
    np.testing.assert_allclose(machine.run("prefill_exact", ids[:16])[0], reference[15], atol=1e-4)
    assert np.abs(machine.run("score", ids[:16]) - reference[:16]).max() < 0.5


def test_a_flipped_bit_shows(made: Made) -> None:
    job, machine = made("mixed")
    ids = np.arange(10)
    reference = reference_logits(job, ids)
    at = len(job.model.component("decoder").states) + [t.name for t in machine.parameters].index(
        "model.layers.0.self_attn.o_proj.codes"
    )
    whole = machine.state[at]
    codes = whole.numpy().copy()
    codes[3, 5] ^= 0x08
    machine.state[at] = tensor(codes)
    assert np.abs(machine.run("score_exact", ids) - reference).max() > 1e-3
    machine.state[at] = whole
    np.testing.assert_allclose(machine.run("score_exact", ids), reference, atol=1e-4)


def test_no_weight_in_full_precision(tmp_path: Path) -> None:
    """Of a decode step, no tensor between kernels and no buffer inside one is as large as the smallest matrix."""
    from tvm import relax, tirx

    job = make_job(tmp_path, "int4")
    module = module_of(job, capture(job))
    smallest = min(s.rows * s.columns for s in job.model.slots if s.kind == "linear") * 4
    for entry in ("decode", "decode_exact"):
        for block in module[entry].body.blocks:
            for binding in block.bindings:
                types = binding.var.ty.fields if isinstance(binding.var.ty, relax.TupleType) else [binding.var.ty]
                # the caches pass through, in place; parameters are read out of the tuple that brings them
                if isinstance(binding.value, relax.TupleGetItem) or "inplace" in str(binding.value):
                    continue
                for ty in types:
                    size = int(np.prod([int(d) for d in ty.shape])) * 4
                    assert size < smallest, f"{entry}: {binding.var.name_hint} {ty}"
    sizes: list[int] = []
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and not variable.name_hint.startswith("attend"):
            shapes = re.findall(r"= T\.alloc\w*\(\((.*?),?\)", function.script())
            sizes += [4 * int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes]
    assert len(sizes) > 20 and max(sizes) <= 256
