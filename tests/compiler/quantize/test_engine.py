"""Calibration over graphs that are no decoders: what is gathered where, what is folded, what lies in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import EdgewrightError
from compiler.drivers import text
from compiler.graph import op_name, operations
from compiler.models.base import read_model
from compiler.quantize.calibrated.folding import place_of
from compiler.quantize.calibrated.segments import Program
from tests.compiler.conftest import MINISTRAL3

from .toys import Toy, linear, module, norm, samples, treatment

SAMPLES = samples(3, 1, 40, 32)


def matmul(toy: Toy, x: torch.Tensor, slot: str) -> torch.Tensor:
    return x @ toy.weights.tensors[slot].t()


def hessian(parts: list[torch.Tensor]) -> torch.Tensor:
    rows = torch.cat([part.flatten(0, -2) for part in parts])
    return rows.t() @ rows / len(rows)


# -- what a matrix is quantized from -------------------------------------------------------------------------------


def residual(x: torch.Tensor) -> torch.Tensor:
    """Two blocks behind an input projection; the first one's state is added again at the end: a skip over two cuts."""
    x = linear(x, 32, stem=32)
    y = x + linear(torch.relu(linear(norm(x, "a.norm"), 32, a__up=48)), 48, a__down=32)
    z = y + linear(torch.relu(linear(norm(y, "b.norm"), 32, b__up=48)), 48, b__down=32)
    return linear(norm(z + x, "head.norm"), 32, head__out=16)


RESIDUAL = {"stem": (32, 32), "a.norm": (32,), "a.up": (48, 32), "a.down": (32, 48)} | {
    "b.norm": (32,),
    "b.up": (48, 32),
    "b.down": (32, 48),
    "head.norm": (32,),
    "head.out": (16, 32),
}


def residual_toy(method: str = "gptq", cuts: tuple[str, ...] = ("a.", "b.", "head."), **options: Any) -> Toy:
    treatments = {name: treatment(method, **options) for name, shape in RESIDUAL.items() if len(shape) == 2}
    return Toy(module(residual), RESIDUAL, SAMPLES, treatments, cuts)


def test_inputs_are_those_of_the_quantized_model_and_drift_is_from_the_unquantized_one(tmp_path: Path) -> None:
    toy = residual_toy()
    quantized = toy.quantized(toy.run(tmp_path / "work"))
    stem = [x @ quantized.tensors["stem"].t() for (x,) in SAMPLES]
    full = [x @ toy.weights.tensors["stem"].t() for (x,) in SAMPLES]
    normed = [torch.nn.functional.rms_norm(x, (32,), toy.weights.tensors["a.norm"], 1e-5) for x in (*stem, *full)]
    found = toy.seen["a.up"]
    assert torch.allclose(found.hessian, hessian(normed[:3]), atol=1e-4)
    rows, drift = torch.cat(normed[:3], 1)[0], torch.cat(normed[3:], 1)[0] - torch.cat(normed[:3], 1)[0]
    assert found.drift is not None
    assert torch.allclose(found.drift, rows.t() @ drift / len(rows), atol=1e-4)
    first = toy.seen["stem"]
    assert first.drift is not None and not first.drift.any()  # nothing before it is quantized
    assert torch.allclose(first.hessian, hessian([x for (x,) in SAMPLES]), atol=1e-4)


def test_cuts_change_nothing_but_where_a_run_goes_on(tmp_path: Path) -> None:
    whole, cut = residual_toy(cuts=()), residual_toy()
    ends = [toy.run(tmp_path / name) for toy, name in ((whole, "whole"), (cut, "cut"))]
    assert [len(files) for files in ends] == [1, 4]
    one, four = (toy.quantized(files).tensors for toy, files in zip((whole, cut), ends, strict=True))
    assert all(torch.equal(one[name], four[name]) for name in RESIDUAL)
    layers = [file.evidence()[1] for file in ends[1]]
    assert [layer and layer.layer for layer in layers] == [None, 0, 1, None]  # the last hands nothing on
    assert all(0 < layer.output_error < 0.3 for layer in layers if layer)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", range(1, 60, 4))
def test_a_run_killed_anywhere_goes_on_across_a_skip(tmp_path: Path, after: int) -> None:
    expected = residual_toy().quantized(residual_toy().run(tmp_path / "whole")).tensors

    def kill(stage: str, done: int, total: int) -> None:
        assert total == 60  # 3 samples: 2 passes of each of 4 segments, and 2 of each of 6 points
        if done >= after:
            raise Killed

    toy, work = residual_toy(), tmp_path / "work"
    with pytest.raises(Killed):
        toy.run(work, kill)
    finished = len(list(work.glob("segment-*.safetensors")))
    seen: list[int] = []
    files = toy.run(work, lambda stage, done, total: seen.append(done))
    assert seen[0] == 1 + [0, 12, 30, 48][finished] and seen[-1] == 60
    assert all(torch.equal(rows, expected[name]) for name, rows in toy.quantized(files).tensors.items())
    assert not list(work.glob("*.values"))


def test_a_work_folder_that_lost_a_file_is_an_error(tmp_path: Path) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        if done == 20:
            raise Killed

    with pytest.raises(Killed):
        residual_toy().run(tmp_path, kill)
    (tmp_path / "full-linear.values").unlink()  # what the first segment handed on
    with pytest.raises(EdgewrightError, match="not complete; delete it"):
        residual_toy().run(tmp_path)


def test_ops_that_share_their_input_share_what_is_gathered(tmp_path: Path) -> None:
    """One Hessian for two linears beside each other, and one for a fused one."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        both = linear(x, 32, a=16, b=16) * linear(x, 32, c=32)
        return linear(both, 32, d=8)

    shapes = {"a": (16, 32), "b": (16, 32), "c": (32, 32), "d": (8, 32)}
    toy = Toy(module(forward), shapes, SAMPLES, {name: treatment() for name in shapes})
    files = toy.run(tmp_path)
    assert set(toy.seen) == {"a", "d"}
    assert {e.slot for e in files[0].evidence()[0]} == set(shapes)


def test_a_slot_that_is_read_again_and_again_is_quantized_from_all_its_inputs(tmp_path: Path) -> None:
    """A recurrent cell over five steps: its state's matrix gets a state of zeros first, and real ones later."""

    def cell(x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros_like(x[:, :1])
        for step in range(5):
            state = torch.tanh(linear(x[:, step : step + 1], 32, cell__input=32) + linear(state, 32, cell__state=32))
        return linear(state, 32, head=8)

    shapes = {"cell.input": (32, 32), "cell.state": (32, 32), "head": (8, 32)}
    toy = Toy(module(cell), shapes, samples(40, 1, 5, 32), {name: treatment() for name in shapes}, ("cell.", "head"))
    stages: set[str] = set()
    quantized = toy.quantized(toy.run(tmp_path, lambda stage, done, total: stages.add(stage)))
    states = [torch.zeros(40, 32)]
    xs = torch.cat([x for (x,) in toy.samples])
    for step in range(5):
        states.append(torch.tanh(matmul(toy, xs[:, step], "cell.input") + matmul(toy, states[-1], "cell.state")))
    assert torch.allclose(toy.seen["cell.state"].hessian, hessian(states[:5]), atol=1e-4)
    assert torch.allclose(toy.seen["cell.input"].hessian, hessian([xs]), atol=1e-4)
    assert toy.seen["cell.state"].drift is None and toy.seen["head"].drift is not None
    assert "looking ahead" in stages and not list(tmp_path.glob("*.values"))
    # the head gets what the quantized cell gives it, at every step
    state = torch.zeros(40, 32)
    for step in range(5):
        driven = xs[:, step] @ quantized.tensors["cell.input"].t()
        state = torch.tanh(driven + state @ quantized.tensors["cell.state"].t())
    assert torch.allclose(toy.seen["head"].hessian, hessian([state]), atol=1e-4)


def test_positions_count_as_their_weighting_says(tmp_path: Path) -> None:
    """For one op by its slot: here only the first ten positions count."""
    asked: list[tuple[int, torch.Size]] = []

    def first_ten(read: Any, count: int) -> list[torch.Tensor]:
        asked.append((count, read(2).shape))
        return [(torch.arange(40) < 10).float()] * count

    toy = residual_toy("awq", fold=False)
    toy.weightings = {"b.down": first_ten}
    toy.run(tmp_path / "weighted")
    plain = residual_toy("awq", fold=False)
    plain.run(tmp_path / "plain")
    assert asked == [(3, torch.Size([40, 48]))]
    assert torch.equal(toy.seen["b.up"].hessian, plain.seen["b.up"].hessian)
    weighed, alike = toy.seen["b.down"].hessian, plain.seen["b.down"].hessian
    assert not torch.allclose(weighed, alike, rtol=0.1) and 0.1 < float(weighed.trace() / alike.trace()) < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuts": ("c.",)}, "no operation of the graph reads a slot of c., where"),
        ({"treatments": {"a.norm": treatment()}}, r"edge\.rms_norm.* reads a\.norm, and nobody said"),
        ({"treatments": {"z": treatment()}}, "no operation of the graph reads z, which is to be quantized"),
    ],
)
def test_what_does_not_fit_the_graph_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    toy = residual_toy()
    for name, value in change.items():
        setattr(toy, name, value)
    with pytest.raises(EdgewrightError, match=message):
        toy.run(tmp_path)


# -- what lies in files --------------------------------------------------------------------------------------------


def test_of_a_decoder_one_state_crosses_a_cut_and_little_else_is_kept() -> None:
    """Angles, masks and empty caches are computed again, and so is a norm from its state."""
    model = read_model(MINISTRAL3, None, 64)
    ids = torch.zeros((1, 12), dtype=torch.int64).numpy()
    (found,) = text.samples(model, None, ids)  # type: ignore[arg-type]  # nothing is read
    captured = operations(found.module, found.inputs[0])
    matrices = {slot.name for slot in model.slots if not slot.is_vector}
    program = Program(captured, found.component.cuts, matrices)
    assert [len(segment.points) for segment in program.segments] == [1, 4, 4, 0]
    for segment in program.segments[1:3]:
        start, qkv, o, both, down, end = ([op_name(n) or "part" for n in nodes] for nodes in segment.kept)
        assert start == qkv == ["edge::embedding" if segment.index == 1 else "aten::add"]
        assert o == [*start, "part"]  # the state and what attention gives
        assert both == ["aten::add"] and down == ["aten::add", "aten::mul"] and end == ["aten::add"]
    assert not program.needs(program.readers["model.embed_tokens"][1])  # the head never runs


# -- folding ------------------------------------------------------------------------------------------------------


def after_norm(x: torch.Tensor) -> torch.Tensor:
    return linear(norm(x, "n"), 32, out=8)


def norm_is_read_twice(x: torch.Tensor) -> torch.Tensor:
    y = norm(x, "n")
    return linear(y, 32, out=8) + y[..., :8]


def after_product(x: torch.Tensor) -> torch.Tensor:
    gate, up = linear(x, 32, both=64).split(32, -1)
    return linear(torch.sigmoid(gate) * up, 32, out=8)


def after_square(x: torch.Tensor) -> torch.Tensor:
    y = linear(x, 32, both=32)
    return linear(y * y, 32, out=8)


def after_self_gate(x: torch.Tensor) -> torch.Tensor:
    y = linear(x, 32, both=32)
    return linear(torch.sigmoid(y) * y, 32, out=8)


def after_nonlinearity(x: torch.Tensor) -> torch.Tensor:
    return linear(torch.relu(linear(x, 32, both=32)), 32, out=8)


def after_sum(x: torch.Tensor) -> torch.Tensor:
    return linear(x + linear(x, 32, both=32), 32, out=8)


def after_two_matrices(x: torch.Tensor) -> torch.Tensor:
    return linear(linear(x, 32, both=16, more=16), 32, out=8)


def after_split_by_rows(x: torch.Tensor) -> torch.Tensor:
    first, _ = linear(x, 32, both=32).split(20, 1)
    return linear(first, 32, out=8)


def attended(x: torch.Tensor, *, caches: bool = False) -> torch.Tensor:
    positions = torch.arange(x.shape[1])[None]
    cos, sin = torch.ops.edge.rotary(positions, [1.0, 0.1, 0.01, 0.001], 1.0)
    cache = torch.zeros(1, 2, x.shape[1], 8)
    qkv = linear(x, 32, q=32, k=16, v=16)
    out, _, values = torch.ops.edge.attention(qkv, cos, sin, positions, cache, cache, 4, 2, 8, 0.3, 0.0, 1)
    y = linear(out, 32, out=8)
    return y + values[:, 0] if caches else y


def attended_and_cached(x: torch.Tensor) -> torch.Tensor:
    return attended(x, caches=True)


@pytest.mark.parametrize(
    ("forward", "slot", "rows"),
    [
        (after_norm, "n", [*range(32)]),
        (norm_is_read_twice, None, None),
        (after_product, "both", [*range(32, 64)]),
        (after_square, None, None),
        (after_self_gate, None, None),
        (after_nonlinearity, None, None),
        (after_sum, None, None),
        (after_two_matrices, None, None),
        (after_split_by_rows, None, None),
        (attended, "v", [*range(8), *range(8), *range(8, 16), *range(8, 16)]),  # two query heads share a value head
        (attended_and_cached, None, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_where_factors_can_go(forward: Any, slot: str | None, rows: list[int] | None) -> None:
    captured = operations(module(forward), SAMPLES[0])
    program = Program(captured, (), ["out"])
    (point,) = program.segments[0].points
    found = place_of(point.value, point.ops)
    assert (None if found is None else found.slot, None if found is None else found.rows.tolist()) == (slot, rows)
    if found is None or slot is None:
        return
    # dividing there and multiplying the columns leaves the function as it was
    shapes = {"n": (32,), "both": (64, 32), "q": (32, 32), "k": (16, 32), "v": (16, 32), "out": (8, 32)}
    toy = Toy(module(forward), shapes, SAMPLES, {})
    before = toy.call(toy.weights)
    factors = 0.5 + torch.rand(len(toy.weights.tensors[slot]), generator=torch.Generator().manual_seed(1))
    toy.weights.tensors["out"] = toy.weights.tensors["out"] * factors[found.rows]
    rescaled = toy.weights.tensors[slot].clone()
    used = found.rows.unique()
    rescaled[used] /= factors[used] if found.norm else factors[used, None]
    toy.weights.tensors[slot] = rescaled
    assert torch.allclose(toy.call(toy.weights), before, atol=1e-5)


def test_awq_folds_what_the_graph_allows_and_the_function_stays(tmp_path: Path) -> None:
    toy = residual_toy("awq", bits=8)
    generator = torch.Generator().manual_seed(3)
    for block in "ab":  # outlier channels, so that there is something to fold
        toy.weights.tensors[f"{block}.norm"][torch.randperm(32, generator=generator)[:2]] *= 30
    quantized = toy.quantized(toy.run(tmp_path))
    folded = {
        n for n in RESIDUAL if n.endswith("norm") and not torch.equal(quantized.tensors[n], toy.weights.tensors[n])
    }
    assert {"a.norm", "b.norm"} <= folded
    expected = toy.call(toy.weights)
    assert float((toy.call(quantized) - expected).norm() / expected.norm()) < 0.02


def test_awq_tries_as_many_powers_as_it_is_told(tmp_path: Path) -> None:
    ends = []
    for powers in (1, 20):
        toy = residual_toy("awq", powers=powers)
        toy.weights.tensors["a.norm"][[3, 9]] *= 30
        ends.append(toy.quantized(toy.run(tmp_path / str(powers))).tensors["a.norm"])
    assert not torch.equal(*ends)
