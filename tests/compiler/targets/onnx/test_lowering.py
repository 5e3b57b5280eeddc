"""The lowering of single ops in the generic layout, run by onnxruntime against the dialect's reference."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from artifacts import EdgewrightError
from compiler.dialect import edge
from compiler.models.base import Component, Entry, Heads, Model, Port
from compiler.slots import HALF, Scheme, Slot
from compiler.targets import load_target
from compiler.targets.base import bare
from tests.compiler.conftest import Reference, packed

from .packages import TOLERANCE, make_job, opened

HEADS, KV_HEADS, HEAD_DIM, LENGTH = 4, 2, 16, 64
SCHEME = (4, 16, True)


class Body(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


def body(function: Callable[..., Any], entry: Entry, schemes: Any) -> torch.nn.Module:
    return Body(function)


def one(
    function: Callable[..., Any],
    slots: tuple[Slot, ...],
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    states: tuple[Port, ...] = (),
    attention: Heads | None = None,
    dimensions: Any = None,
) -> Model:
    """A model of one component "part" with the entry "run"."""
    entry = Entry("run", inputs, outputs, dimensions or {})
    part = Component("part", slots, (entry,), partial(body, function), lambda *_: 1, states, attention=attention)
    return Model("test", (part,), "none", {}, {}, {})


def frequencies(base: float, head_dim: int = HEAD_DIM) -> list[float]:
    return [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]


def attentions(*layers: tuple[list[float], float], beta: float = 0.0, head_dim: int = HEAD_DIM) -> Model:
    """Attention after attention, each with frequencies and a factor of its own."""
    width, columns = (HEADS + 2 * KV_HEADS) * head_dim, HEADS * head_dim

    def function(x: torch.Tensor, positions: torch.Tensor, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        written: list[torch.Tensor] = []
        for at, (inverse, factor) in enumerate(layers):
            cos, sin = edge.rotary(positions, inverse, factor)
            qkv = edge.linear(x, [f"in.{at}"], [width], columns, 16, 0, True)
            pair = caches[2 * at : 2 * at + 2]
            x, key, value = edge.attention(
                qkv, cos, sin, positions, *pair, HEADS, KV_HEADS, head_dim, head_dim**-0.5, beta, 16
            )
            written += [key, value]
        return x, *written

    tokens = (1, "tokens", columns)
    return one(
        function,
        tuple(Slot(f"in.{at}", f"in.{at}.weight", width, columns, "linear") for at in range(len(layers))),
        (Port("x", "float32", tokens), Port("positions", "int64", (1, "tokens"), LENGTH, True)),
        (Port("y", "float32", tokens),),
        tuple(Port(f"cache_{at}", "float32", (1, KV_HEADS, LENGTH, head_dim)) for at in range(2 * len(layers))),
        Heads(HEADS, KV_HEADS, head_dim),
        {"tokens": (1, LENGTH)},
    )


def test_layers_may_turn_by_other_frequencies_or_not_at_all(tmp_path: Path) -> None:
    zeros = [0.0] * (HEAD_DIM // 2)
    model = attentions((frequencies(100.0), 1.5), (zeros, 1.0), (frequencies(1e4), 1.0), (frequencies(100.0), 1.5))
    job = make_job(model, tmp_path / "weights", HALF)
    package = tmp_path / "package"
    packed(job, "onnx", package)
    graph = onnx.load(package / "part.run.onnx", load_external_data=False).graph
    turning = [
        a.i for n in graph.node if n.op_type == "GroupQueryAttention" for a in n.attribute if a.name == "do_rotary"
    ]
    assert turning == [1, 0, 1, 1]
    assert sum("rotary" in t.name for t in graph.initializer) == 2 * 2
    _same_answers(job, package, (10, 1, 1, 7, 1))


def test_queries_are_scaled_by_their_positions(tmp_path: Path) -> None:
    job = make_job(attentions((frequencies(100.0), 1.0), beta=0.5), tmp_path / "weights", HALF)
    packed(job, "onnx", tmp_path / "package")
    _same_answers(job, tmp_path / "package", (20, 1, 30))


@pytest.mark.parametrize("head_dim", [2, 20, 24])
def test_heads_of_a_size_that_the_kernel_does_not_take_are_filled_with_zeros(tmp_path: Path, head_dim: int) -> None:
    layers = (frequencies(100.0, head_dim), 1.0), ([0.0] * (head_dim // 2), 1.0)
    job = make_job(attentions(*layers, beta=0.5, head_dim=head_dim), tmp_path / "weights", HALF)
    states = packed(job, "onnx", tmp_path / "package").runtime["graphs"][0]["states"]  # type: ignore[index, call-overload]
    padded = 16 if head_dim < 16 else 32
    assert {tuple(state["shape"]) for state in states.values()} == {(1, KV_HEADS, LENGTH, padded)}
    _same_answers(job, tmp_path / "package", (20, 1, 30))
    (estimate,) = load_target("onnx").estimate(job)
    assert estimate.state_bytes == 4 * KV_HEADS * LENGTH * padded * 4


@pytest.mark.parametrize("biased", [True, False])
def test_rows_of_8_bits_in_an_encoder_round_activations_as_they_come(tmp_path: Path, biased: bool) -> None:
    """Two matrices in one kernel, over the codes of every other target; exactly, the same weights in float32."""
    columns, rows = 72, (40, 24)
    names = ["a", "b"]

    def function(x: torch.Tensor) -> tuple[torch.Tensor]:
        y = edge.linear(x, names, list(rows), columns, 8, 0, True)
        return (edge.bias(y, ["bias"], [sum(rows)], -1) if biased else y,)

    slots = [Slot(name, f"{name}.weight", count, columns, "linear") for name, count in zip(names, rows, strict=True)]
    bias = [Slot("bias", "bias", 1, sum(rows), "bias")] if biased else []
    x, y = (Port(name, "float32", (2, "n", width)) for name, width in (("x", columns), ("y", sum(rows))))
    model = one(function, (*slots, *bias), (x,), (y,), dimensions={"n": (1, 50)})
    job = make_job(model, tmp_path / "weights", Scheme(8, 0))
    packed(job, "onnx", tmp_path / "package")
    loaded = onnx.load(tmp_path / "package" / "part.run.onnx")
    assert [node.op_type for node in loaded.graph.node] == ["DynamicQuantizeMatMul"]
    stored = onnx.numpy_helper.to_array(
        next(t for t in loaded.graph.initializer if t.data_type == onnx.TensorProto.INT8)
    )
    codes = np.concatenate([job.weights.packed(slot.name) for slot in slots])
    np.testing.assert_array_equal(stored.T.astype(np.int16), codes.astype(np.int16) - 128)
    given = np.random.default_rng(0).standard_normal((2, 30, columns)).astype(np.float32)
    expected = Reference(job).call("part", "run", x=given)["y"]
    exact, shipped = (
        opened(tmp_path / "package", exact=way).call("part", "run", x=given)["y"] for way in (True, False)
    )
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    assert 1e-4 < np.abs(shipped - expected).max() / np.abs(expected).max() < 3e-2
    (estimate,) = load_target("onnx").estimate(job)
    assert estimate.weight_bytes == sum(rows) * (columns + 4 + 4 * biased)


@pytest.mark.parametrize("scheme", [Scheme(4, 0), Scheme(8, 0, False), Scheme(4, 48, False)], ids=str)
def test_groups_that_the_kernel_does_not_have_become_blocks_that_it_has(tmp_path: Path, scheme: Scheme) -> None:
    rows, columns = 24, 96
    form = (scheme.bits, scheme.group, scheme.symmetric)

    def function(ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (edge.linear(edge.embedding(ids, "w", rows, columns, *form), ["w"], [rows], columns, *form),)

    model = one(
        function,
        (Slot("w", "w", rows, columns, "embedding"),),
        (Port("ids", "int64", (1, 5), below=rows),),
        (Port("y", "float32", (1, 5, rows)),),
    )
    job = make_job(model, tmp_path / "weights", scheme)
    package = tmp_path / "package"
    packed(job, "onnx", package)
    ids = np.array([[0, 5, 23, 5, 11]])
    found = opened(package).call("part", "run", ids=ids)["y"]
    np.testing.assert_allclose(found, Reference(job).call("part", "run", ids=ids)["y"], atol=TOLERANCE)
    tensors = onnx.load(package / "part.run.onnx", load_external_data=False).graph.initializer
    (estimate,) = load_target("onnx").estimate(job)
    stored = {t.name: int(e.value) for t in tensors for e in t.external_data if e.key == "length"}
    assert estimate.weight_bytes == sum(size for name, size in stored.items() if not name.endswith(".rows"))


def _same_answers(job: Any, package: Path, lengths: tuple[int, ...]) -> None:
    session, reference = opened(package), Reference(job)
    columns = job.model.slots[0].columns
    random, done = np.random.default_rng(3), 0
    for count in lengths:
        x = random.standard_normal((1, count, columns)).astype(np.float32)
        given = {"x": x, "positions": np.arange(done, done + count)[None]}
        expected = reference.call("part", "run", **given)["y"]
        np.testing.assert_allclose(session.call("part", "run", **given)["y"], expected, atol=TOLERANCE)
        done += count


def test_a_cache_has_an_end_and_positions_count_on(tmp_path: Path) -> None:
    job = make_job(attentions((frequencies(100.0), 1.0)), tmp_path / "weights", HALF)
    packed(job, "onnx", tmp_path / "package")
    session = opened(tmp_path / "package")
    x = np.zeros((1, 2, HEADS * HEAD_DIM), np.float32)
    with pytest.raises(EdgewrightError, match=f"2 tokens after {LENGTH - 1} do not fit the context of {LENGTH}"):
        session.call("part", "run", x=x, positions=np.array([[LENGTH - 1, LENGTH]]))
    with pytest.raises(EdgewrightError, match="positions do not count on by one from 3"):
        session.call("part", "run", x=x, positions=np.array([[3, 5]]))


def test_a_bias_joins_a_quantized_matmul_and_is_an_addition_elsewhere(tmp_path: Path) -> None:
    columns, rows = 32, 48

    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        quantized = edge.bias(edge.linear(x, ["a"], [rows], columns, *SCHEME), ["one", "two"], [rows - 8, 8], -1)
        plain = edge.linear(x, ["b"], [rows], columns, 16, 0, True)
        return quantized, edge.bias(edge.bias(plain, ["tokens"], [5], 1), ["one", "two"], [rows - 8, 8], 2)

    outputs = tuple(Port(name, "float32", (1, 5, rows)) for name in ("quantized", "plain"))
    slots = [Slot(name, name, rows, columns, "linear") for name in "ab"]
    slots += [Slot(name, name, 1, count, "bias") for name, count in (("one", rows - 8), ("two", 8), ("tokens", 5))]
    model = one(function, tuple(slots), (Port("x", "float32", (1, 5, columns)),), outputs)
    job = make_job(model, tmp_path / "weights", Scheme(*SCHEME), {"b": Scheme(16, 0)}, accuracy_level=0)
    package = tmp_path / "package"
    packed(job, "onnx", package)
    kinds = [node.op_type for node in onnx.load(package / "part.run.onnx", load_external_data=False).graph.node]
    assert kinds == ["MatMulNBits", "FusedMatMul", "Add", "Add"]
    x = np.random.default_rng(0).standard_normal((1, 5, columns)).astype(np.float32)
    expected, found = Reference(job).call("part", "run", x=x), opened(package).call("part", "run", x=x)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=TOLERANCE)


@pytest.mark.parametrize("kernel", [(3,), (2, 3)])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_convolutions_of_any_rank_with_steps_gaps_and_groups(
    tmp_path: Path, kernel: tuple[int, ...], bits: int
) -> None:
    outputs, inputs, groups, size = 8, 32, 2, 11
    columns = inputs // groups * int(np.prod(kernel))
    rank = len(kernel)
    shape = [outputs, inputs // groups, *kernel]
    settings = ([2] * rank, [1] * rank, [2] * rank, groups)

    def function(x: torch.Tensor) -> tuple[torch.Tensor]:
        return (edge.convolution(x, "w", shape, bits, 16 if bits < 16 else 0, True, *settings),)

    sizes = [(size + 2 - 2 * (k - 1) - 1) // 2 + 1 for k in kernel]
    model = one(
        function,
        (Slot("w", "w", outputs, columns, "convolution", kernel),),
        (Port("x", "float32", (1, inputs, *[size] * rank)),),
        (Port("y", "float32", (1, outputs, *sizes)),),
    )
    job = make_job(model, tmp_path / "weights", Scheme(bits, 16 if bits < 16 else 0))
    x = np.random.default_rng(0).standard_normal((1, inputs, *[size] * rank)).astype(np.float32)
    packed(job, "onnx", tmp_path / "package")
    found = opened(tmp_path / "package").call("part", "run", x=x)["y"]
    np.testing.assert_allclose(found, Reference(job).call("part", "run", x=x)["y"], atol=TOLERANCE)


def test_ports_may_be_called_like_values_inside_and_leave_a_graph_twice(tmp_path: Path) -> None:
    """A state that an entry leaves as it is is no output; one value under two names is."""

    def function(linear: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        new = torch.tanh(edge.linear(linear, ["w"], [32], 32, *SCHEME) + states[0])
        return new, linear, new, states[1], new + states[2]

    ports = {name: Port(name, "float32", (1, 32)) for name in ("linear", "tanh", "add", "moves", "stays", "val_0")}
    model = one(
        function,
        (Slot("w", "w", 32, 32, "linear"),),
        (ports["linear"],),
        (ports["tanh"], ports["add"]),
        (ports["moves"], ports["stays"], ports["val_0"]),
    )
    job = make_job(model, tmp_path / "weights", Scheme(*SCHEME), accuracy_level=0)
    package = tmp_path / "package"
    packed(job, "onnx", package)
    names = {value.name for value in onnx.load(package / "part.run.onnx", load_external_data=False).graph.input}
    assert names == {"linear", "moves", "val_0"}
    session, reference = opened(package), Reference(job)
    for seed in range(3):
        given = {"linear": np.random.default_rng(seed).standard_normal((1, 32)).astype(np.float32)}
        expected = reference.call("part", "run", **given)
        for name, values in session.call("part", "run", **given).items():
            np.testing.assert_allclose(values, expected[name], atol=TOLERANCE)


def test_every_op_without_a_lowering_is_named(tmp_path: Path) -> None:
    library = torch.library.Library("test_onnx_unknown", "FRAGMENT")
    for name in ("first", "second"):
        library.define(f"{name}(Tensor x) -> (Tensor, Tensor)")
        torch.library.register_fake(f"test_onnx_unknown::{name}", lambda x: (x.clone(), x.clone()), lib=library)

    own = torch.library.Library("edge", "FRAGMENT")
    own.define("test_onnx_third(Tensor x) -> Tensor")
    torch.library.register_fake("edge::test_onnx_third", torch.Tensor.clone, lib=own)

    def function(x: torch.Tensor) -> tuple[torch.Tensor]:
        y = edge.linear(x, ["w"], [32], 32, *SCHEME)
        a, b = torch.ops.test_onnx_unknown.first(y)
        b = torch.ops.edge.test_onnx_third(torch.linalg.qr(b)[0])
        c, d = torch.ops.test_onnx_unknown.second(torch.linalg.det(a[None] * b)[0] + b)
        return (c + d,)

    port = Port("x", "float32", (32, 32))
    model = one(function, (Slot("w", "w", 32, 32, "linear"),), (port,), (port,))
    job = make_job(model, tmp_path / "weights", Scheme(*SCHEME))
    unknown = "test_onnx_unknown.first.default, aten.linalg_qr.default, edge.test_onnx_third.default"
    with pytest.raises(EdgewrightError) as caught:
        load_target("onnx").check(bare(job))
    assert str(caught.value) == f"onnx: part.run: no lowering for {unknown}, test_onnx_unknown.second.default"


def test_rotary_angles_for_anything_but_attention_are_refused(tmp_path: Path) -> None:
    def function(positions: torch.Tensor) -> tuple[torch.Tensor]:
        return (edge.rotary(positions, frequencies(10.0), 1.0)[0] * 2,)

    ports = Port("positions", "int64", (1, 4)), Port("y", "float32", (1, 4, HEAD_DIM // 2))
    job = make_job(one(function, (), ports[:1], ports[1:]), tmp_path / "weights", Scheme(*SCHEME))
    with pytest.raises(EdgewrightError, match=r"onnx: part\.run: edge\.rotary is lowered for edge\.attention only"):
        load_target("onnx").check(job)


def test_the_exporter_says_nothing_of_its_own(tmp_path: Path) -> None:
    """Not of torchvision, which nothing here needs, nor of what PyTorch will change."""
    code = """
import sys
sys.path[:0] = [".", "tests/plugins"]
from pathlib import Path
from compiler.models.base import read_model
from compiler.slots import Scheme
from compiler.targets import load_target
from compiler.targets.base import bare
from tests.compiler.targets.onnx.packages import make_job
config = {"model_type": "toy_renderer", "image_size": 8, "hidden_size": 32, "channels": 32}
load_target("onnx").check(make_job(read_model(config, None, 2), Path(sys.argv[1]), Scheme(4, 32)))
"""
    root = Path(__file__).parents[4]
    command = [sys.executable, "-c", code, str(tmp_path / "weights")]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert ended.stdout == ended.stderr == ""
