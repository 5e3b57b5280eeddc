"""The conversion itself: from captured functions and packed weights to complete .mlpackages.

To be called through `compiler.apart`: coremltools iterates over sets of strings, so that only a fixed PYTHONHASHSEED
gives the same program twice, and what it leaves in memory is gone with its process.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import EdgewrightError, Progress
from artifacts.formats.coreml import NEW_STATE
from compiler.targets.base import Job
from compiler.targets.coreml.capture import NARROW, Call, Sizes, capture
from compiler.targets.coreml.options import CoreMLOptions

if TYPE_CHECKING:
    from compiler.quantize.packed import PackedWeights
    from compiler.targets.coreml.bind import Converted


def make_packages(
    job: Job,
    packed: Path,
    folder: Path,
    packages: Mapping[str, Sequence[Call]],
    features: Mapping[str, str],
    metadata: dict[str, str],
    user: dict[str, str],
    progress: Progress,
) -> None:
    """Write every package of a job into `folder`.

    packed: its quantized weights; packages: their functions by the package's name; features: descriptions by name;
    metadata, user: see `package.describe`.
    """
    from compiler.quantize.packed import PackedWeights
    from compiler.targets.coreml.bind import bind
    from compiler.targets.coreml.package import WEIGHTS, describe, merge_functions, write_package

    weights = PackedWeights(packed)
    total = sum(s.rows * s.columns for s in job.model.slots if not s.is_vector)
    functions = sum(len(calls) for calls in packages.values())
    written = converted_count = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        progress("writing weights", min(written, total), total)

    for name, calls in packages.items():
        path = folder / name
        (path / WEIGHTS).parent.mkdir(parents=True)
        with contextlib.ExitStack() as scratch:
            converted = {}
            for call in calls:
                progress("converting", converted_count, functions)
                converted[call.function] = convert(job, call, weights, scratch)
                converted_count += 1
            progress("converting", converted_count, functions)
            bind(converted, weights, path / WEIGHTS, advance)
            model = merge_functions({function: c.spec for function, c in converted.items()}, calls[0].function)
        describe(model, features, metadata, user)
        write_package(path, model)


def convert(job: Job, call: Call, weights: PackedWeights, scratch: contextlib.ExitStack) -> Converted:
    """One function. Its files live as long as `scratch`."""
    import coremltools as ct
    import numpy as np

    from compiler.targets.coreml import guards, lower, sampling
    from compiler.targets.coreml.bind import Converted
    from compiler.targets.coreml.placeholders import Placeholders, recording

    options: CoreMLOptions = job.options
    program = capture(call, job.schemes, stateful=options.stateful)
    half = options.compute == "fp16"
    kind = np.float16 if half else np.float32
    ports = {port.name: port for port in (*call.inputs, *(() if options.stateful else call.component.states))}
    inputs = [
        ct.ImageType(name, shape=_shape(port.shape, call.sizes), color_layout=ct.colorlayout.RGB)
        if call.image is not None and name == call.image.feature
        else ct.TensorType(
            name,
            shape=_shape(port.shape, call.sizes),
            dtype=kind if port.dtype == "float32" else getattr(np, NARROW.get(port.dtype, port.dtype)),
        )
        for name, port in ports.items()
    ]
    outputs = [ct.TensorType(port.name, dtype=kind) for port in call.entry.outputs]
    if not options.stateful:
        outputs += [ct.TensorType(NEW_STATE + state.name, dtype=kind) for state in call.component.states]
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(["common::add_int16_cast"])  # it also narrows lengths, which then overflow
    precision = ct.transform.FP16ComputePrecision(op_selector=lower.is_half) if half else ct.precision.FLOAT32
    placeholders = Placeholders()
    # the context that positions are for: what a cache holds
    context = call.component.states[0].sized({})[2] if call.component.attention else 0
    settings = lower.Lowering(weights, context, half, options.minimum == "iOS18")
    with guards.mended(), sampling.volumes(), lower.lowering(settings), recording(placeholders):
        guards.check_program(program)
        model = ct.convert(
            program,
            inputs=inputs,
            outputs=outputs,
            minimum_deployment_target=getattr(ct.target, options.minimum),
            compute_precision=precision,
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    found = Converted(model.get_spec(), placeholders, Path(model.weights_dir) / "weight.bin")
    written = {feature.name for feature in found.spec.description.output}
    if lost := [output.name for output in outputs if output.name not in written]:
        raise EdgewrightError(
            f"coreml: {call.component.name}.{call.entry.name}: the output {lost[0]!r} is the same value as another, "
            "which the converter made one of"
        )
    model._mil_program = None
    scratch.callback(lambda: model)  # its temporary folder goes with it
    gc.collect()
    return found


def _shape(shape: tuple[int | str, ...], sizes: Mapping[str, Sizes]) -> Any:
    """A feature's shape: numbers, every listed combination, or a range."""
    import coremltools as ct

    fixed = {name: found[0] for name, found in sizes.items() if len(found) == 1}
    shape = tuple(fixed.get(d, d) if isinstance(d, str) else d for d in shape)
    named = [d for d in shape if isinstance(d, str)]
    if not named:
        return shape
    if any(sizes[d][0] is None for d in named):
        return tuple(
            ct.RangeDim(sizes[d][1], sizes[d][2], default=sizes[d][1]) if isinstance(d, str) else d for d in shape
        )
    listed = [tuple(n if isinstance(d, str) else d for d in shape) for n in sizes[named[0]]]
    return ct.EnumeratedShapes(listed, default=listed[0])


def check(job: Job, packages: Mapping[str, Sequence[Call]], progress: Progress) -> None:
    """Capture every function and raise EdgewrightError naming the nodes that Core ML cannot express."""
    from compiler.targets.coreml import guards, lower

    # registering the dialect's ops needs settings, which only a conversion reads
    nothing: Any = None
    settings = lower.Lowering(nothing, 0, job.options.compute == "fp16", job.options.minimum == "iOS18")
    with lower.lowering(settings):
        for calls in packages.values():
            for call in calls:
                guards.check_program(capture(call, job.schemes, stateful=job.options.stateful))
