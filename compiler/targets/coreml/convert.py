"""The conversion itself: from a decoder and its packed weights to a complete .mlpackage.

To be called through `compiler.apart`: coremltools iterates over sets of strings, so that only a fixed PYTHONHASHSEED
gives the same program twice, and what it leaves in memory is gone with its process.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import Progress
from compiler.models.decoder import DecoderSpec
from compiler.slots import Schemes
from compiler.targets.coreml.options import CoreMLOptions

if TYPE_CHECKING:
    from compiler.quantize.packed import PackedWeights
    from compiler.targets.base import Job
    from compiler.targets.coreml.bind import Converted

PREFILL, DECODE, ONLY = "prefill", "decode", "main"


def lengths(options: CoreMLOptions, max_tokens: int) -> tuple[int, ...]:
    """The prompt lengths that a call takes, ascending; without any: every length up to max_tokens."""
    if options.prompt == "range":
        return ()
    fitting = tuple(n for n in options.prompt_lengths if n <= max_tokens)
    return fitting if options.multifunction else tuple(sorted({1, *fitting}))


def make_package(
    job: Job, packed: Path, folder: Path, metadata: dict[str, str], user: dict[str, str], progress: Progress
) -> None:
    """Write the package of a job into `folder`. packed: its quantized weights; metadata, user: `package.describe`."""
    from compiler.quantize.packed import PackedWeights
    from compiler.targets.coreml.bind import bind
    from compiler.targets.coreml.package import WEIGHTS, describe, merge_functions, write_package

    weights = PackedWeights(packed)
    (folder / WEIGHTS).parent.mkdir(parents=True)
    wanted = {PREFILL: False, DECODE: True} if job.options.multifunction else {ONLY: False}
    with contextlib.ExitStack() as scratch:
        converted = {}
        for done, (name, one) in enumerate(wanted.items()):
            progress("converting", done, len(wanted))
            converted[name] = convert(job.spec, job.schemes, job.max_tokens, job.options, weights, one, scratch)
        total = sum(_matrix_sizes(job.spec))
        written = 0

        def advance(count: int) -> None:
            nonlocal written
            written += count
            progress("writing weights", min(written, total), total)

        bind(converted, weights, folder / WEIGHTS, advance)
        model = merge_functions({name: c.spec for name, c in converted.items()}, next(iter(wanted)))
    describe(model, FEATURES, metadata, user)
    write_package(folder, model)


def _matrix_sizes(spec: DecoderSpec) -> Iterator[int]:
    from compiler.models import decoder

    return (s.rows * s.columns for s in decoder.slots(spec) if not s.is_vector)


def convert(
    spec: DecoderSpec,
    schemes: Schemes,
    max_tokens: int,
    options: CoreMLOptions,
    weights: PackedWeights,
    one: bool,
    scratch: contextlib.ExitStack,
) -> Converted:
    """One function: one token per call, or a prompt of flexible length. Its files live as long as `scratch`."""
    import coremltools as ct
    import numpy as np

    from compiler.targets.coreml import guards, lower
    from compiler.targets.coreml.bind import Converted
    from compiler.targets.coreml.capture import cache_names, capture
    from compiler.targets.coreml.placeholders import Placeholders, recording

    counts = lengths(options, max_tokens)
    fixed = 1 if one else counts[0] if len(counts) == 1 else None
    program = capture(spec, schemes, max_tokens, length=fixed, stateful=options.stateful)
    half = options.compute == "fp16"
    ios18 = options.minimum == "iOS18"
    ids: Any = (1, fixed)
    if fixed is None and counts:
        ids = ct.EnumeratedShapes([(1, n) for n in counts], default=(1, counts[0]))
    elif fixed is None:
        ids = (1, ct.RangeDim(1, max_tokens, default=1))
    kind = np.float16 if half else np.float32
    inputs = [
        ct.TensorType("input_ids", shape=ids, dtype=np.int32),
        ct.TensorType("position", shape=(1,), dtype=np.int32),
    ]
    outputs = [ct.TensorType("logits", dtype=kind)]
    if not options.stateful:
        shape = (1, spec.kv_heads, max_tokens, spec.head_dim)
        inputs += [ct.TensorType(name, shape=shape, dtype=kind) for name in cache_names(spec.layers)]
        outputs += [ct.TensorType(f"new_{name}", dtype=kind) for name in cache_names(spec.layers)]
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(["common::add_int16_cast"])  # it also narrows lengths, which then overflow
    precision = ct.transform.FP16ComputePrecision(op_selector=lower.is_half) if half else ct.precision.FLOAT32
    placeholders = Placeholders()
    settings = lower.Lowering(weights, max_tokens, half, ios18)
    with guards.mended(), lower.lowering(settings), recording(placeholders):
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
    model._mil_program = None
    scratch.callback(lambda: model)  # its temporary folder goes with it
    gc.collect()
    return found


FEATURES = {
    "input_ids": "Token ids of this call, [1, length].",
    "position": "Position of the first of these tokens: how many tokens the cache holds.",
    "logits": "Logits of the last position, [1, 1, vocabulary].",
    "key_cache": "Rotated keys of one layer, [1, key-value heads, context, head size].",
    "value_cache": "Values of one layer, [1, key-value heads, context, head size].",
    "new_key_cache": "key_cache after this call: the next call's input.",
    "new_value_cache": "value_cache after this call: the next call's input.",
}
