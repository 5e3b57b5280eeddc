"""The process in which an artifact runs: ``python -m runtime_tests.child job.json``.

What lives here: the jobs and their protocol. What must not: judgement, and anything that has to survive a crash of
the runtime.

It writes JSON, one object per line, on stdout; whatever a runtime prints goes to stderr. ``{"progress": [stage, done,
total]}``, ``{"result": …}`` (last), ``{"error": message}`` for an EdgewrightError, whose exit code follows. The job
"memory" speaks the protocol of ``device_farm.sandbox``: a phase "baseline" with the runtime imported and nothing
loaded, a line on stdin to go on, then the phases "load", "prefill" and "steady" with seconds and tokens.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from artifacts import MANIFEST, EdgewrightError, Figure, Manifest, read_manifest
from artifacts.manifest import payload_file

Emit = Callable[[dict[str, Any]], None]


class Job(BaseModel):
    """What to do with an artifact whose digests the parent has checked. ``prompt`` is for "genai" only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["quality", "memory", "genai", "model_memory"]
    artifact: Path
    threads: int = Field(2, gt=0)
    prompt_tokens: int = Field(512, gt=0)
    decode_tokens: int = Field(32, gt=0)
    prompt: tuple[int, ...] = ()


def run_quality(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: figures, the golden file's tolerances, a prompt with its greedy continuation, the runner's warnings."""
    from runtime_tests.golden import GOLDEN, read_golden
    from runtime_tests.parity import decode_span, observe, observe_decode, parity_figures
    from runtime_tests.quality import quality_figures
    from runtime_tests.runners import greedy, make_runner

    def progress(stage: str, done: int, total: int) -> None:
        emit({"progress": [stage, done, total]})

    golden = read_golden(payload_file(job.artifact, GOLDEN))
    runner = make_runner(job.artifact, manifest)
    runner.load(exact=True, threads=job.threads)
    exact_decode = observe_decode(runner, golden, progress, "decoding exactly")
    exact = observe(runner, golden, progress, "comparing exact logits")
    runner.load(exact=False, threads=job.threads)
    shipped_decode = observe_decode(runner, golden, progress, "decoding as shipped")
    prompt = golden.tokens[0, : decode_span(golden)[0]]
    continuation = greedy(runner, prompt.astype("int64"), min(job.decode_tokens, golden.length - len(prompt)))
    shipped = observe(runner, golden, progress, "comparing shipped logits")
    figures = parity_figures(golden, exact, shipped, exact_decode, shipped_decode) + quality_figures(golden, shipped)
    result = {
        "figures": [figure.model_dump(mode="json") for figure in figures],
        "tolerances": golden.tolerances.model_dump(),
        "prompt": prompt.tolist(),
        "greedy": continuation,
        "warnings": list(getattr(runner, "warnings", ())),
    }
    emit({"result": result})


def run_memory(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Load, prefill and decode once, announcing each phase; the prompt is any tokens, its length is what counts."""
    import numpy as np

    from runtime_tests.runners import make_runner

    context, vocabulary = (_positive(job.artifact, manifest, key) for key in ("max_tokens", "vocab_size"))
    decode = min(job.decode_tokens, context - 1)
    prompt = np.arange(min(job.prompt_tokens, context - decode), dtype=np.int64) % vocabulary
    runner = make_runner(job.artifact, manifest)
    emit({"phase": "baseline"})
    if not sys.stdin.readline():
        raise EdgewrightError("the parent is gone")
    begin = time.perf_counter()
    runner.load(threads=job.threads)
    emit({"phase": "load", "seconds": time.perf_counter() - begin})
    begin = time.perf_counter()
    token = int(runner.prefill(prompt).argmax())
    emit({"phase": "prefill", "tokens": len(prompt), "seconds": time.perf_counter() - begin})
    seconds = []
    for _ in range(decode):
        begin = time.perf_counter()
        token = int(runner.decode(token).argmax())
        seconds.append(time.perf_counter() - begin)
    emit({"phase": "steady", "tokens": decode, "seconds": sum(seconds), "median_seconds": statistics.median(seconds)})


def run_genai(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: the tokens with which onnxruntime-genai continues the prompt."""
    from runtime_tests.genai import generate_greedy

    emit({"result": generate_greedy(job.artifact, list(job.prompt), job.decode_tokens, threads=job.threads)})


def run_model_memory(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: figures of a package whose memory is counted from its program (``runtime.memory``: "modelled")."""
    from runtime_tests.runners import make_runner

    runner = make_runner(job.artifact, manifest)
    figures: list[Figure] = getattr(runner, "model_memory", list)()
    emit({"result": [figure.model_dump(mode="json") for figure in figures]})


_KINDS = {"quality": run_quality, "memory": run_memory, "genai": run_genai, "model_memory": run_model_memory}


def _positive(artifact: Path, manifest: Manifest, key: str) -> int:
    value = manifest.runtime.get(key)
    if not isinstance(value, int) or value < 2:
        raise EdgewrightError(f"{artifact / MANIFEST}: runtime.{key} is {value!r}, not a number above 1")
    return value


def _take_stdout() -> Emit:
    """Keep the real stdout for events; what anything else writes there, native code too, goes to stderr."""
    sys.stdout.flush()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event, allow_nan=False) + "\n")
        events.flush()

    return emit


def main(path: str) -> int:
    """Run the job of a file and return the exit code; an exception that is not ours ends in a traceback and 1."""
    emit = _take_stdout()
    try:
        job = Job.model_validate_json(Path(path).read_bytes())
        _KINDS[job.kind](job, read_manifest(job.artifact), emit)
    except EdgewrightError as error:
        emit({"error": str(error)})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
