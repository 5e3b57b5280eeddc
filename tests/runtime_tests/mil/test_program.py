"""Running saved programs: rounding, control flow, lists, states, flexible shapes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime_tests.mil import PackageError
from runtime_tests.mil.package import Package
from runtime_tests.mil.program import Function
from tests.runtime_tests.mil.conftest import save, two_layers

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
X = np.random.default_rng(1).uniform(-1, 1, (2, 8)).astype(np.float32)
WEIGHT = np.random.default_rng(0).uniform(-1, 1, (5, 8)).astype(np.float32)


def run(path: Path, inputs: dict[str, Any], **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    outputs = Function(Package(path), **options)(inputs)
    return {name: value.float().numpy() for name, value in outputs.items()}


def test_a_saved_program_computes_what_it_says(small: Path) -> None:
    np.testing.assert_allclose(run(small, {"x": X})["y"], np.maximum(X @ WEIGHT.T, 0) + 1, rtol=1e-6)


def test_half_precision_rounds_after_every_operation(small_half: Path) -> None:
    half = np.float16
    hidden = (X.astype(half).astype(np.float32) @ WEIGHT.astype(half).astype(np.float32).T).astype(half)
    expected = (np.maximum(hidden, 0).astype(np.float32) + 1).astype(half)
    np.testing.assert_array_equal(run(small_half, {"x": X})["y"], expected.astype(np.float32))


def test_exact_keeps_single_precision(small_half: Path) -> None:
    weight = WEIGHT.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(run(small_half, {"x": X}, exact=True)["y"], np.maximum(X @ weight.T, 0) + 1, rtol=1e-6)


def test_branches(tmp_path: Path) -> None:
    def make(mb: Any) -> Any:
        @mb.program(input_specs=[mb.TensorSpec(shape=(1,)), mb.TensorSpec(shape=(3,))])
        def program(flag: Any, x: Any) -> Any:
            pred = mb.greater(x=mb.squeeze(x=flag), y=np.float32(0))
            return mb.cond(pred=pred, _true_fn=lambda: mb.mul(x=x, y=2.0), _false_fn=lambda: mb.add(x=x, y=1.0))

        return program

    path = save(tmp_path / "cond.mlpackage", make)
    x = np.asarray([1, 2, 3], np.float32)
    for flag, expected in ((1, x * 2), (-1, x + 1)):
        (found,) = run(path, {"flag": np.asarray([flag], np.float32), "x": x}).values()
        np.testing.assert_array_equal(found, expected)


def test_loops(tmp_path: Path) -> None:
    def make(mb: Any) -> Any:
        @mb.program(input_specs=[mb.TensorSpec(shape=(1,)), mb.TensorSpec(shape=(3,))])
        def program(limit: Any, x: Any) -> Any:
            top = mb.squeeze(x=limit)
            _, y = mb.while_loop(
                _cond=lambda i, y: mb.less(x=i, y=top),
                _body=lambda i, y: (mb.add(x=i, y=np.float32(1)), mb.mul(x=y, y=np.float32(2))),
                loop_vars=(np.float32(0), x),
            )
            return y

        return program

    path = save(tmp_path / "while.mlpackage", make)
    x = np.asarray([1, 2, 3], np.float32)
    for count in (0, 1, 5):
        (found,) = run(path, {"limit": np.asarray([count], np.float32), "x": x}).values()
        np.testing.assert_array_equal(found, x * 2**count)


def test_lists(tmp_path: Path) -> None:
    def make(mb: Any) -> Any:
        @mb.program(input_specs=[mb.TensorSpec(shape=(3,))])
        def program(x: Any) -> Any:
            ls = mb.make_list(init_length=2, elem_shape=(3,), dtype="fp32", dynamic_length=True)
            ls = mb.list_write(ls=ls, index=0, value=x)
            ls = mb.list_write(ls=ls, index=1, value=mb.mul(x=x, y=np.float32(3)))
            both = mb.list_gather(ls=ls, indices=np.asarray([1, 0], np.int32))
            one = mb.list_read(ls=ls, index=1)
            spread = mb.list_scatter(ls=ls, indices=np.asarray([1, 0], np.int32), value=both)
            return mb.add(x=mb.add(x=both, y=one), y=mb.list_read(ls=spread, index=0)), mb.list_length(ls=ls)

        return program

    x = np.asarray([1, 2, 3], np.float32)
    path = save(tmp_path / "lists.mlpackage", make)
    found, length = run(path, {"x": x}).values()
    np.testing.assert_array_equal(found, np.stack([3 * x, x]) + 3 * x + x)
    assert int(length) == 2


class Counter(torch.nn.Module):
    """Adds x into a state and returns the total."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3, dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.copy_(self.total + x)
        return self.total * 2


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import coremltools as ct

    program = torch.export.export(Counter(), (torch.zeros(3, dtype=torch.float16),)).run_decompositions({})
    path = tmp_path_factory.mktemp("state") / "counter.mlpackage"
    ct.convert(
        program,
        inputs=[ct.TensorType("x", shape=(3,), dtype=np.float16)],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    ).save(str(path))
    return path


def test_a_state_lives_between_calls_and_begins_at_zero(counter: Path) -> None:
    function = Function(Package(counter))
    state = function.make_state()
    for turn in (1, 2, 3):
        (found,) = function({"x": torch.tensor([1.0, 2.0, 3.0])}, state).values()
        assert found.tolist() == [2 * turn, 4 * turn, 6 * turn]
    assert state["total"].dtype == torch.float16
    (fresh,) = function({"x": torch.zeros(3)}, function.make_state()).values()
    assert fresh.tolist() == [0, 0, 0]


def test_a_missing_state_is_an_error(counter: Path) -> None:
    with pytest.raises(PackageError, match="state 'total' is missing"):
        Function(Package(counter))({"x": torch.zeros(3)}, {})


def edited(source: Path, tmp_path: Path, change: Any) -> Path:
    """A copy whose model specification went through `change(spec)`."""
    from coremltools.proto import Model_pb2

    copy = tmp_path / "copy.mlpackage"
    shutil.copytree(source, copy)
    spec = Model_pb2.Model()
    spec.ParseFromString((copy / MODEL).read_bytes())
    change(spec)
    (copy / MODEL).write_bytes(spec.SerializeToString())
    return copy


def block(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def operation(spec: Any, kind: str) -> Any:
    return next(o for o in block(spec).operations if o.type == kind)


def weight_value(spec: Any) -> Any:
    return next(
        o.attributes["val"].blobFileValue
        for o in block(spec).operations
        if o.type == "const" and o.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: setattr(operation(s, "relu"), "type", "frobnicate"), "operation 'frobnicate' .* is unknown"),
        (lambda s: setattr(weight_value(s), "offset", weight_value(s).offset + 64), "does not begin with a record"),
        (lambda s: setattr(weight_value(s), "offset", 1 << 50), "cut short, or an offset was edited"),
        (lambda s: setattr(weight_value(s), "fileName", "@model_path/../../x"), "no file of the package"),
        (lambda s: s.description.input[0].__setattr__("name", "z"), "different inputs"),
        (lambda s: s.description.ClearField("output"), "different outputs"),
        (lambda s: s.mlProgram.functions["main"].__setattr__("opset", "CoreML99"), "no code for its opset"),
        (lambda s: s.neuralNetwork.SetInParent(), "not an ML Program"),
        (lambda s: block(s).outputs.__setitem__(0, "nowhere"), "different outputs"),
        (lambda s: operation(s, "relu").inputs["x"].arguments[0].__setattr__("name", "gone"), "reads 'gone' before"),
        (
            lambda s: operation(s, "relu").outputs[0].type.tensorType.dimensions[1].constant.__setattr__("size", 6),
            r"shape \[2, 5\], declared \[2, 6\]",
        ),
        (
            lambda s: operation(s, "relu").outputs[0].type.tensorType.__setattr__("dataType", 23),
            "came out as torch.float32, declared int32",
        ),
    ],
)
def test_a_damaged_program_is_reported_and_not_run(small: Path, tmp_path: Path, change: Any, message: str) -> None:
    copy = edited(small, tmp_path, change)
    with pytest.raises(PackageError, match=message):
        Function(Package(copy))({"x": X})


def test_a_state_without_description_is_reported(counter: Path, tmp_path: Path) -> None:
    copy = edited(counter, tmp_path, lambda spec: spec.description.ClearField("state"))
    with pytest.raises(PackageError, match=r"different states \(total\)"):
        Function(Package(copy))


@pytest.mark.parametrize("length", [0, 63, 100, 200])
def test_a_truncated_weight_file_is_reported(small: Path, tmp_path: Path, length: int) -> None:
    copy = tmp_path / "cut.mlpackage"
    shutil.copytree(small, copy)
    with (copy / WEIGHTS).open("r+b") as file:
        file.truncate(length)
    with pytest.raises(PackageError):
        Function(Package(copy))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        json.dumps({"itemInfoEntries": {"a": {"path": "../../outside"}}, "rootModelIdentifier": "a"}),
        json.dumps({"itemInfoEntries": {"a": {"path": "com.apple.CoreML/none"}}, "rootModelIdentifier": "a"}),
    ],
)
def test_a_manifest_that_names_no_model_is_reported(small: Path, tmp_path: Path, content: str) -> None:
    copy = tmp_path / "copy.mlpackage"
    shutil.copytree(small, copy)
    (copy / "Manifest.json").write_text(content)
    with pytest.raises(PackageError, match=r"Manifest\.json"):
        Package(copy)


def test_a_model_file_that_is_none_is_reported(small: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mlpackage"
    shutil.copytree(small, copy)
    (copy / MODEL).write_bytes(b"\xff" * 50)
    with pytest.raises(PackageError, match="not a Core ML model"):
        Package(copy)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": X[:1]}, r"shape \[1, 8\] is not described"),
        ({"x": X.astype(np.int32)}, "input 'x' is fp32, not torch.int32"),
    ],
)
def test_inputs_outside_of_the_description_are_refused(small: Path, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        Function(Package(small))(inputs)


@pytest.mark.parametrize(
    ("flexible", "taken", "refused"),
    [("range", (1, 4, 6), (7, 9)), ("enumerated", (2, 4), (3, 6))],
)
def test_flexible_shapes(tmp_path: Path, flexible: str, taken: tuple[int, ...], refused: tuple[int, ...]) -> None:
    import coremltools as ct

    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    dims = {"x": {0: torch.export.Dim("n", min=1, max=6)}}
    program = torch.export.export(Double(), (torch.zeros(4, 3),), dynamic_shapes=dims).run_decompositions({})
    shape = (ct.RangeDim(1, 6), 3) if flexible == "range" else ct.EnumeratedShapes([(2, 3), (4, 3)], default=(2, 3))
    path = tmp_path / "flexible.mlpackage"
    ct.convert(
        program,
        inputs=[ct.TensorType("x", shape=shape)],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    function = Function(Package(path))
    for n in taken:
        (found,) = function({"x": torch.ones(n, 3)}).values()
        assert found.tolist() == [[2.0] * 3] * n
    for n in refused:
        with pytest.raises(PackageError, match="is not described"):
            function({"x": torch.ones(n, 3)})


def test_an_error_inside_an_operation_names_it(small: Path, tmp_path: Path) -> None:
    def shrink(spec: Any) -> None:
        axes = operation(spec, "linear").inputs
        axes["weight"].arguments[0].name = "y_y_0"

    copy = edited(small, tmp_path, shrink)
    with pytest.raises(PackageError, match=r"operation linear hidden|before anything gives it"):
        Function(Package(copy))({"x": X})


def test_the_default_function_and_an_unknown_one(small: Path) -> None:
    assert Function(Package(small)).name == "main"
    with pytest.raises(PackageError, match="no function 'decode'; it has main"):
        Function(Package(small), "decode")


def test_two_layers_is_what_the_fixture_says(tmp_path: Path) -> None:
    """The executor agrees with coremltools' own inference over the same program, constants in place of inputs."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function as MilFunction

    with MilFunction({}, opset_version=ct.target.iOS18):
        hidden = mb.linear(x=X, weight=WEIGHT)
        expected = mb.add(x=mb.relu(x=hidden), y=np.float32(1)).val
    np.testing.assert_allclose(run(save(tmp_path / "p.mlpackage", two_layers), {"x": X})["y"], expected, rtol=1e-6)
