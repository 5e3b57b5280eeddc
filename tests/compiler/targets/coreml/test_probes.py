"""Models of the families to come, from torch.export to an executed package, and the guards on that way."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from artifacts import EdgewrightError
from compiler.targets.coreml import guards
from compiler.targets.coreml.trace import program_values
from runtime_tests.mil.bisect import Comparison, compare, relative_rms
from runtime_tests.mil.package import Package
from runtime_tests.mil.program import Function
from tests.compiler.targets.coreml.probes import probes

PROBES = probes()


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs).run_decompositions({})


def convert(program: Any, path: Path, inputs: tuple[Tensor, ...], *, half: bool) -> Path:
    import coremltools as ct

    ct.convert(
        program,
        inputs=[ct.TensorType(f"in{i}", shape=tuple(t.shape)) for i, t in enumerate(inputs)],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    return path


def package(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, half: bool = False) -> Path:
    """As this project converts: checked, with coremltools' faults mended."""
    program = exported(module, inputs)
    with guards.mended():
        guards.check_program(program)
        return convert(program, path, inputs, half=half)


def named(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"in{i}": t for i, t in enumerate(inputs)}


def runtimes(path: Path, inputs: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """What every runtime at hand gives: the executor everywhere, Core ML itself on macOS."""
    (found,) = Function(Package(path))(named(inputs)).values()
    yield found.float()
    if sys.platform == "darwin":
        import coremltools as ct

        arrays = {name: value.numpy() for name, value in named(inputs).items()}
        (native,) = ct.models.MLModel(str(path)).predict(arrays).values()
        yield torch.from_numpy(np.asarray(native)).float()


def fresh(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Other values than those the model was exported with."""
    generator = torch.Generator().manual_seed(9)
    return tuple(torch.rand(t.shape, generator=generator) * 2.4 - 1.2 for t in inputs)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", PROBES)
def test_a_probe_computes_what_torch_computes(name: str, half: bool, tmp_path: Path) -> None:
    module, example = PROBES[name]
    path = package(module, example, tmp_path / "probe.mlpackage", half=half)
    inputs = fresh(example)
    with torch.no_grad():
        expected = module(*inputs)
    for found in runtimes(path, inputs):
        assert relative_rms(found, expected) <= (1e-2 if half else 1e-5)


@pytest.mark.parametrize("name", PROBES)
def test_a_changed_weight_of_a_probe_is_seen_and_placed(name: str, tmp_path: Path) -> None:
    module, example = PROBES[name]
    path = package(module, example, tmp_path / "probe.mlpackage")
    inputs = fresh(example)
    program = exported(module, example)
    weights = [*program.parameters(), *program.buffers()]
    reference = program_values(program, (*weights, *inputs))
    whole = compare(Function(Package(path)), named(inputs), reference, 1e-4)
    assert whole.divergence is None and whole.compared >= 3
    if not weights:
        return
    file = path / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(file.read_bytes())
    content[128:1152] = np.float32(3).tobytes() * 256  # the first weight of the file
    file.write_bytes(content)
    found = compare(Function(Package(path)), named(inputs), reference, 1e-4).divergence
    assert found is not None


class TanhGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x * 2, approximate="tanh") + 1


def bisected(path: Path, module: nn.Module, x: Tensor) -> Comparison:
    reference = program_values(exported(module, (x,)), (x,))
    return compare(Function(Package(path)), {"in0": x}, reference, 1e-5)


def test_without_its_guard_the_tanh_of_gelu_is_lost_and_the_bisection_names_it(tmp_path: Path) -> None:
    """coremltools 9.0 drops the argument without a word; nothing but a parity test sees it."""
    x = torch.linspace(-2, 2, 64)[None]
    path = convert(exported(TanhGelu(), (x,)), tmp_path / "wrong.mlpackage", (x,), half=False)
    found = bisected(path, TanhGelu(), x).divergence
    assert found is not None
    assert (found.operation, found.name, found.after) == ("gelu", "gelu", "mul")


def test_with_its_guard_the_tanh_of_gelu_is_kept(tmp_path: Path) -> None:
    x = torch.linspace(-2, 2, 64)[None]
    path = package(TanhGelu(), (x,), tmp_path / "right.mlpackage")
    found = bisected(path, TanhGelu(), x)
    assert found.divergence is None and found.compared == 3


class OneElementCast(nn.Module):
    """int() of a constant tensor of shape [1], which the frontend folds."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1)


@contextmanager
def cast_of_one_element() -> Iterator[Any]:
    """coremltools' lowering of `int` on a one-element constant, as (context, node)."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.utils import TorchFrontend
    from coremltools.converters.mil.mil import Function as MilFunction

    class Node:
        name, kind, inputs, kwinputs = "cast", "int", ["x"], None

    class Context(dict[str, Any]):
        frontend = TorchFrontend.TORCHEXPORT

        def add(self, var: Any, name: str) -> None:
            self[name] = var

    with MilFunction({}, opset_version=ct.target.iOS18):
        context = Context(x=mb.const(val=np.asarray([3.7], np.float32)))
        yield context, Node()


def test_casts_of_one_element_arrays() -> None:
    """numpy 2.4 made int(array([3.7])) a TypeError, on which coremltools 9.0 relies."""
    from coremltools.converters.mil.frontend.torch import ops

    with cast_of_one_element() as (context, node):
        with pytest.raises(TypeError):
            ops._cast(context, node, int, "int32")
        with guards.mended():
            ops._cast(context, node, int, "int32")
        assert context["cast"].val == 3


def test_the_tables_of_coremltools_are_put_back() -> None:
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    before = (_TORCH_OPS_REGISTRY.name_to_func_mapping["gelu"], ops._cast)
    with pytest.raises(KeyError), guards.mended():
        raise KeyError
    assert (_TORCH_OPS_REGISTRY.name_to_func_mapping["gelu"], ops._cast) == before


class HighRank(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 2, 1, 2, 1, 4) * 2


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.double() * 2).float()


class NoCounterpart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x)


class Dropped(nn.Module):
    """An argument that the lowering of its operator never reads."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sub(x, x.flip(-1), alpha=3)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (HighRank(), "rank 6; Core ML takes 5"),
        (Complex(), "complex64|no counterpart"),
        (Double(), "float64"),
        (NoCounterpart(), "no counterpart of the operator aten.special_i0"),
    ],
)
def test_what_core_ml_cannot_express_is_refused_by_name(module: nn.Module, message: str) -> None:
    with pytest.raises(EdgewrightError, match=message):
        guards.check_program(exported(module, (torch.ones(16),)))


def test_an_argument_that_would_be_dropped_is_refused_or_honoured(tmp_path: Path) -> None:
    """sub(alpha=3) is refused if coremltools drops it; if it ever honours it, the numbers must say so."""
    x = torch.arange(6.0)
    program = exported(Dropped(), (x,))
    try:
        with guards.mended():
            guards.check_program(program)
            path = convert(program, tmp_path / "sub.mlpackage", (x,), half=False)
    except EdgewrightError as error:
        assert "drops the argument alpha=3" in str(error)
        return
    (found,) = runtimes(path, (x,)) if sys.platform != "darwin" else list(runtimes(path, (x,)))[:1]
    assert torch.equal(found, Dropped()(x))


def test_a_copy_of_a_package_without_its_weights_is_not_run(tmp_path: Path) -> None:
    module, example = PROBES["audio"]
    path = package(module, example, tmp_path / "probe.mlpackage")
    shutil.rmtree(path / "Data/com.apple.CoreML/weights")
    with pytest.raises(EdgewrightError, match="no file of the package"):
        Function(Package(path))
