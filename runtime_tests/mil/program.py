"""Running one function of a package: operations in order, declared types honoured, states, branches and loops.

Every 16-bit result is rounded as the program declares it (computed in float32, as accelerators accumulate); `exact`
keeps float32 instead, which tells a wrong program from a rounded one. A result whose kind, rank or size differs from
its declaration, an operation that is not known and an input outside the described shapes are errors that name it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from runtime_tests.mil import PackageError, ops
from runtime_tests.mil.ops.lists import TensorList
from runtime_tests.mil.package import Package
from runtime_tests.mil.values import DTYPES, LazyTensor, decode, tensor_type

Watch = Callable[[str, str, Tensor], None]
State = dict[str, Tensor]
_KEEP_DECODED_BYTES = 1 << 29
_WRAPPED = {"uint8": (8, False), "int8": (8, True), "uint16": (16, False), "int16": (16, True), "uint32": (32, False)}


class Function:
    """One function, ready to run: `inputs` and `states` give dtype and shape (None: flexible) by name."""

    def __init__(
        self, package: Package, name: str | None = None, *, exact: bool = False, shapes_only: bool = False
    ) -> None:
        """name: the package's default function when None. Decodes small weights; others when they are used.

        exact: keep 16-bit floats in 32. shapes_only: floats have shapes but no values (torch's meta device).
        """
        self.package = package
        functions = package.spec.mlProgram.functions
        self.name = name or package.spec.description.defaultFunctionName or "main"
        if self.name not in functions:
            raise PackageError(f"{package.path}: no function {self.name!r}; it has {', '.join(functions)}")
        self._exact = exact
        self._shapes_only = shapes_only
        self._operations = ops.table()
        function = functions[self.name]
        if function.opset not in function.block_specializations:
            raise PackageError(f"{package.path}: function {self.name!r} has no code for its opset {function.opset!r}")
        self.block = function.block_specializations[function.opset]
        self.inputs: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        self.states: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        for value in function.inputs:
            if value.type.WhichOneof("type") == "stateType":
                self.states[value.name] = tensor_type(value.type.stateType.wrappedType)
            else:
                self.inputs[value.name] = tensor_type(value.type)
        self._described = self._check_description()
        self._check_known(self.block)
        self.constants: dict[str, Any] = {}
        self._kept = 0
        self._load(self.block)

    # -- loading ----------------------------------------------------------------------------------------------

    def _check_description(self) -> dict[str, Any]:
        """The described inputs by name. Raises PackageError where description and program disagree."""
        described = self.package.description(self.name)
        where = f"{self.package.path}: function {self.name!r}"
        for what, program, features in (
            ("input", set(self.inputs), described.input),
            ("state", set(self.states), described.state),
            ("output", set(self.block.outputs), described.output),
        ):
            names = {feature.name for feature in features}
            if names != program:
                odd = ", ".join(sorted(names ^ program))
                raise PackageError(f"{where}: description and program have different {what}s ({odd}): it is damaged")
        return {feature.name: feature for feature in described.input}

    def _check_known(self, block: Any) -> None:
        for operation in block.operations:
            if operation.type not in self._operations and operation.type not in _CONTROL:
                raise PackageError(
                    f"{self.package.path}: operation {operation.type!r} ({_name(operation)}) is unknown to this "
                    "executor; add it to runtime_tests/mil/ops with a test"
                )
            for inner in operation.blocks:
                self._check_known(inner)

    def _load(self, block: Any) -> None:
        for operation in block.operations:
            if operation.type == "const":
                self.constants[operation.outputs[0].name] = self._constant(operation.attributes["val"])
            elif operation.type.startswith("constexpr_"):
                name = operation.outputs[0].name
                self.constants[name] = self._weight(operation, name)
            for inner in operation.blocks:
                self._load(inner)

    def _constant(self, value: Any) -> Any:
        found = decode(value, self.package.blob)
        if self._shapes_only and isinstance(found, (Tensor, LazyTensor)):
            dtype = DTYPES[tensor_type(value.type)[0]]
            if dtype.is_floating_point and found.shape:  # a single number may decide a shape, as a scale does
                return torch.empty(found.shape, dtype=dtype, device="meta")
        if self._exact and isinstance(found, Tensor) and found.dtype == torch.float16:
            return found.float()
        return found

    def _weight(self, operation: Any, name: str) -> Any:
        """A constexpr's value in its declared type; kept decoded while weights are small."""
        arguments = {key: self._argument(argument) for key, argument in operation.inputs.items()}
        arguments |= {k: self._constant(v) for k, v in operation.attributes.items() if k != "name"}
        dtype, sizes = tensor_type(operation.outputs[0].type)
        if self._shapes_only:
            return torch.empty([size or 0 for size in sizes], dtype=self._torch(dtype), device="meta")
        value = self._operations[operation.type](**arguments)
        if isinstance(value, Tensor):
            return self._declared(operation, name, dtype, value)
        source = value
        rounded = LazyTensor(
            source.shape, lambda start, stop: self._declared(operation, name, dtype, source.rows(start, stop))
        )
        if self._kept + rounded.numel * 4 <= _KEEP_DECODED_BYTES:
            self._kept += rounded.numel * 4
            rounded.keep()
        return rounded

    def _argument(self, argument: Any) -> Any:
        values = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                values.append(self.constants[binding.name])
            else:
                values.append(self._constant(binding.value))
        return values[0] if len(values) == 1 else values

    # -- running ----------------------------------------------------------------------------------------------

    def make_state(self) -> State:
        """Zeroed states, as Core ML makes them; functions of one package share them by name."""
        device = "meta" if self._shapes_only else "cpu"
        return {
            name: torch.zeros([size or 0 for size in shape], dtype=self._torch(dtype), device=device)
            for name, (dtype, shape) in self.states.items()
        }

    @torch.no_grad()
    def __call__(
        self,
        inputs: Mapping[str, Any],
        state: State | None = None,
        *,
        watch: Watch | None = None,
        bypass: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Run once and return the outputs by name; `state` is changed in place.

        watch(type, name, value) is called with every result. bypass: names of operations that pass their input `x`
        on unchanged (sizes are not checked then); all of them must be there.
        """
        env: dict[str, Any] = {}
        for name in self.inputs:
            if name not in inputs:
                raise PackageError(f"{self.package.path}: input {name!r} is missing")
            env[name] = self._checked_input(name, torch.as_tensor(inputs[name]))
        state = self.make_state() if state is None else state
        for name in self.states:
            if name not in state:
                raise PackageError(f"{self.package.path}: state {name!r} is missing")
        run = _Run(state, watch, set(bypass), not bypass)
        self._run(self.block, env, run)
        if run.bypass:
            raise PackageError(f"{self.package.path}: no operation {', '.join(run.bypass)} to bypass")
        return {name: env[name] for name in self.block.outputs}

    def _torch(self, dtype: str) -> torch.dtype:
        return torch.float32 if self._exact and dtype == "fp16" else DTYPES[dtype]

    def _checked_input(self, name: str, value: Tensor) -> Tensor:
        dtype, _ = self.inputs[name]
        wanted = self._torch(dtype)
        if value.is_floating_point() != wanted.is_floating_point:
            raise PackageError(f"{self.package.path}: input {name!r} is {dtype}, not {value.dtype}")
        if not _allowed(self._described[name].type, list(value.shape)):
            raise PackageError(f"{self.package.path}: input {name!r} of shape {list(value.shape)} is not described")
        return value.to("meta", wanted) if self._shapes_only and wanted.is_floating_point else value.to(wanted)

    def _run(self, block: Any, env: dict[str, Any], run: _Run) -> None:
        for operation in block.operations:
            kind = operation.type
            if kind == "const" or kind.startswith("constexpr_"):
                continue
            outputs = self._bypassed(operation, env, run) or self._results(operation, env, run)
            if len(outputs) != len(operation.outputs):
                raise PackageError(
                    f"{self._where(operation)}: {len(outputs)} results, {len(operation.outputs)} declared"
                )
            for declared, value in zip(operation.outputs, outputs, strict=True):
                if isinstance(value, Tensor):
                    dtype, shape = tensor_type(declared.type)
                    value = self._declared(operation, declared.name, dtype, value)
                    if run.check_sizes and not _fits(shape, value):
                        raise PackageError(
                            f"{self._where(operation)}: a result of shape {list(value.shape)}, declared {list(shape)}"
                        )
                    if run.watch is not None:
                        run.watch(kind, declared.name, value)
                env[declared.name] = value

    def _results(self, operation: Any, env: dict[str, Any], run: _Run) -> list[Any]:
        kind = operation.type
        if kind == "read_state":
            return [run.state[_bound(operation, "input")]]
        if kind == "write_state":
            run.state[_bound(operation, "input")] = self._value(operation, "data", env)
            return []
        if kind == "cond":
            chosen = operation.blocks[0 if bool(self._value(operation, "pred", env)) else 1]
            return self._inner(chosen, [], env, run)
        if kind == "while_loop":
            return self._loop(operation, env, run)
        arguments = {key: self._operand(kind, key, argument, env) for key, argument in operation.inputs.items()}
        arguments |= {k: self._constant(v) for k, v in operation.attributes.items() if k != "name"}
        try:
            result = self._operations[kind](**arguments)
        except PackageError:
            raise
        except Exception as error:
            raise PackageError(f"{self._where(operation)}: {type(error).__name__}: {error}") from error
        return result if isinstance(result, list) and not isinstance(result, TensorList) else [result]

    def _loop(self, operation: Any, env: dict[str, Any], run: _Run) -> list[Any]:
        condition, body = operation.blocks
        values = [self._lookup(binding, env) for binding in operation.inputs["loop_vars"].arguments]
        while bool(self._inner(condition, values, env, run)[0]):
            values = self._inner(body, values, env, run)
        return values

    def _inner(self, block: Any, values: list[Any], env: dict[str, Any], run: _Run) -> list[Any]:
        scope = {**env, **{declared.name: value for declared, value in zip(block.inputs, values, strict=True)}}
        self._run(block, scope, run)
        return [self._named(name, scope) for name in block.outputs]

    def _bypassed(self, operation: Any, env: dict[str, Any], run: _Run) -> list[Any]:
        for name in run.bypass:
            if operation.outputs and operation.outputs[0].name.startswith(name):
                run.bypass.discard(name)
                return [self._value(operation, "x", env)]
        return []

    def _operand(self, kind: str, key: str, argument: Any, env: dict[str, Any]) -> Any:
        values = [self._lookup(binding, env) for binding in argument.arguments]
        if kind not in ops.ROWWISE:
            values = [value.tensor() if isinstance(value, LazyTensor) else value for value in values]
        if self._shapes_only:
            values = [v.to("meta") if isinstance(v, Tensor) and v.is_floating_point() and v.ndim else v for v in values]
        if kind not in ops.MOVES:
            half = torch.float16
            values = [v.float() if isinstance(v, Tensor) and v.dtype == half else v for v in values]
        return values if key in _LISTS else values[0]

    def _value(self, operation: Any, key: str, env: dict[str, Any]) -> Any:
        return self._lookup(operation.inputs[key].arguments[0], env)

    def _lookup(self, binding: Any, env: dict[str, Any]) -> Any:
        if binding.WhichOneof("binding") == "name":
            return self._named(binding.name, env)
        return self._constant(binding.value)

    def _named(self, name: str, env: dict[str, Any]) -> Any:
        if name in env:
            return env[name]
        if name in self.constants:
            return self.constants[name]
        raise PackageError(f"{self.package.path}: the program reads {name!r} before anything gives it: it is damaged")

    def _declared(self, operation: Any, name: str, dtype: str, value: Tensor) -> Tensor:
        """A result in its declared dtype: rounded, or wrapped as integers wrap; another kind of value is an error."""
        wanted = self._torch(dtype)
        if wanted.is_floating_point != value.is_floating_point() or (wanted == torch.bool) != (
            value.dtype == torch.bool
        ):
            raise PackageError(f"{self._where(operation)}: {name} came out as {value.dtype}, declared {dtype}")
        if dtype in _WRAPPED and value.dtype != wanted:
            bits, signed = _WRAPPED[dtype]
            half = 1 << (bits - 1) if signed else 0
            value = torch.remainder(value.to(torch.int64) + half, 1 << bits) - half
        return value.to("meta", wanted) if self._shapes_only and wanted.is_floating_point else value.to(wanted)

    def _where(self, operation: Any) -> str:
        return f"{self.package.path}: {self.name}: operation {operation.type} {_name(operation)}"


class _Run:
    """What one call carries along."""

    def __init__(self, state: State, watch: Watch | None, bypass: set[str], check_sizes: bool) -> None:
        self.state = state
        self.watch = watch
        self.bypass = bypass
        self.check_sizes = check_sizes


_CONTROL = frozenset({"const", "read_state", "write_state", "cond", "while_loop"})
_LISTS = frozenset({"values", "ref_tensors"})


def _name(operation: Any) -> str:
    return str(operation.outputs[0].name) if operation.outputs else "without result"


def _bound(operation: Any, key: str) -> str:
    return str(operation.inputs[key].arguments[0].name)


def _fits(shape: tuple[int | None, ...], value: Tensor) -> bool:
    return len(shape) == value.ndim and all(want in (None, have) for want, have in zip(shape, value.shape, strict=True))


def _allowed(feature: Any, shape: list[int]) -> bool:
    """Whether a feature takes a shape: an array's enumerated ones, its ranges, or the one it has; an image's RGB."""
    if feature.WhichOneof("Type") == "imageType":
        image = feature.imageType
        return image.colorSpace == image.RGB and shape == [1, 3, image.height, image.width]
    described = feature.multiArrayType
    flexibility = described.WhichOneof("ShapeFlexibility")
    if flexibility == "enumeratedShapes":
        return shape in [list(option.shape) for option in described.enumeratedShapes.shapes]
    if flexibility == "shapeRange":
        ranges = described.shapeRange.sizeRanges
        return len(ranges) == len(shape) and all(
            r.lowerBound <= size and (r.upperBound < 0 or size <= r.upperBound)
            for r, size in zip(ranges, shape, strict=True)
        )
    return shape == list(described.shape)
