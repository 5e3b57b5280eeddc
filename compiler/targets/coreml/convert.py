"""The conversion itself, run in a process of its own: `python -m compiler.targets.coreml.convert order.json`.

Alone because coremltools iterates over sets of strings, so that only a fixed PYTHONHASHSEED gives the same program
twice, and because what it leaves in memory is gone with it. It reads an order (the geometry, the schemes, where the
packed weights are), writes a complete .mlpackage, and reports on stdout, one JSON object per line: {"progress":
[stage, done, total]}, {"error": message}, or {"result": {…}} last.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import EdgewrightError, Progress
from compiler.models.decoder import DecoderSpec
from compiler.slots import Scheme
from compiler.targets.coreml.options import CoreMLOptions

if TYPE_CHECKING:
    from compiler.quantize.packed import PackedWeights
    from compiler.targets.base import Job
    from compiler.targets.coreml.bind import Converted

HASH_SEED = "0"
PREFILL, DECODE, ONLY = "prefill", "decode", "main"


def order(job: Job, package: Path, metadata: dict[str, str], user: dict[str, str]) -> dict[str, Any]:
    """What the process must know, as JSON values. metadata, user: see `package.describe`."""
    return {
        "name": job.name,
        "spec": asdict(job.spec),
        "schemes": {name: asdict(scheme) for name, scheme in job.schemes.items()},
        "max_tokens": job.max_tokens,
        "weights": str(job.weights.path),
        "options": job.options.model_dump(mode="json"),
        "package": str(package),
        "metadata": metadata,
        "user": user,
    }


def lengths(options: CoreMLOptions, max_tokens: int) -> tuple[int, ...]:
    """The prompt lengths that a call takes, ascending; without any: every length up to max_tokens."""
    if options.prompt == "range":
        return ()
    fitting = tuple(n for n in options.prompt_lengths if n <= max_tokens)
    return fitting if options.multifunction else tuple(sorted({1, *fitting}))


def main(path: Path) -> None:
    """Carry out the order in a JSON file."""
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        raise EdgewrightError(f"the conversion must run with PYTHONHASHSEED={HASH_SEED}: its result depends on it")
    content = json.loads(path.read_text(encoding="utf-8"))
    spec = content["spec"] | {"eos": tuple(content["spec"]["eos"])}
    schemes = {name: Scheme(**scheme) for name, scheme in content["schemes"].items()}
    options = CoreMLOptions.model_validate(content["options"])
    with contextlib.redirect_stdout(sys.stderr):  # stdout carries events only
        _package(content, DecoderSpec(**spec), schemes, options)


def _package(content: dict[str, Any], spec: DecoderSpec, schemes: dict[str, Scheme], options: CoreMLOptions) -> None:
    from compiler.quantize.packed import PackedWeights
    from compiler.targets.coreml.bind import bind
    from compiler.targets.coreml.package import WEIGHTS, describe, merge_functions, write_package

    weights = PackedWeights(Path(content["weights"]))
    folder = Path(content["package"])
    (folder / WEIGHTS).parent.mkdir(parents=True)
    wanted = {PREFILL: False, DECODE: True} if options.multifunction else {ONLY: False}
    with contextlib.ExitStack() as scratch:
        converted = {}
        for done, (name, one) in enumerate(wanted.items()):
            _emit({"progress": ["converting", done, len(wanted)]})
            converted[name] = convert(spec, schemes, content["max_tokens"], options, weights, one, scratch)
        total = sum(_matrix_sizes(spec))
        written = 0

        def advance(count: int) -> None:
            nonlocal written
            written += count
            _emit({"progress": ["writing weights", min(written, total), total]})

        bind(converted, weights, folder / WEIGHTS, advance)
        model = merge_functions({name: c.spec for name, c in converted.items()}, next(iter(wanted)))
    describe(model, FEATURES, content["metadata"], content["user"])
    write_package(folder, model)
    _emit({"result": {}})


def _matrix_sizes(spec: DecoderSpec) -> Iterator[int]:
    from compiler.models import decoder

    return (s.rows * s.columns for s in decoder.slots(spec) if not s.is_vector)


def convert(
    spec: DecoderSpec,
    schemes: dict[str, Scheme],
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


def _emit(event: dict[str, Any]) -> None:
    print(json.dumps(event), file=sys.__stdout__, flush=True)


def run(job: Job, package: Path, metadata: dict[str, str], user: dict[str, str], progress: Progress) -> None:
    """Convert in a child process and forward its progress. Raises EdgewrightError with what it said."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory(prefix="edgewright-coreml-") as scratch:
        path = Path(scratch) / "order.json"
        path.write_text(json.dumps(order(job, package, metadata, user)), encoding="utf-8")
        log = Path(scratch) / "log"
        search = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONHASHSEED": HASH_SEED,
            "PYTHONPATH": os.pathsep.join(search),
            "TMPDIR": scratch,
            "TQDM_DISABLE": "1",
        }
        command = [sys.executable, "-m", "compiler.targets.coreml.convert", str(path)]
        with log.open("wb") as errors:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
            try:
                message = _follow(child, progress)
            finally:
                child.kill()
                child.wait()
        if message is not None:
            tail = "" if message else log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise EdgewrightError(message or f"coreml: the conversion ended unexpectedly:\n{tail}")


def _follow(child: Any, progress: Callable[[str, int, int], None]) -> str | None:
    """None after a result; else the error, empty when the process said none."""
    for line in child.stdout:
        event = json.loads(line)
        if "progress" in event:
            progress(*event["progress"])
        if "error" in event:
            return str(event["error"])
        if "result" in event:
            return None
    return ""


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except EdgewrightError as error:
        _emit({"error": str(error)})
        sys.exit(error.exit_code)
