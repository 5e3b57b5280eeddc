"""The process in which an artifact runs: ``python -m runtime_tests.child job.json``.

What lives here: the jobs and their protocol. What must not: judgement, and anything that has to survive a crash of
the runtime.

It writes JSON, one object per line, on stdout; whatever a runtime prints goes to stderr. ``{"progress": [stage, done,
total]}``, ``{"result": …}`` (last), ``{"error": message}`` for an EdgewrightError, whose exit code follows. The job
"memory" speaks the protocol of ``device_farm.sandbox``: a phase "baseline" with the runtime imported and nothing
loaded, then the phases "load", "prefill" and "steady" with seconds and tokens; after each of them it waits for a line
on stdin, so that what is read then is of that phase.
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
from runtime_tests.quality import QualityLimits

Emit = Callable[[dict[str, Any]], None]


class Job(BaseModel):
    """What to do with an artifact whose digests the parent has checked.

    prompt_tokens: of a "memory" job; None: as many as leave room for decode_tokens in the context. limits: of a
    "quality" job. prompt (tokens) and text, which they were encoded from if there is a tokenizer: of a "genai" job.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["quality", "memory", "genai", "model_memory"]
    artifact: Path
    threads: int = Field(2, gt=0)
    prompt_tokens: int | None = Field(512, gt=0)
    decode_tokens: int = Field(32, gt=0)
    limits: QualityLimits = QualityLimits()
    prompt: tuple[int, ...] = ()
    text: str | None = None


def context_tokens(artifact: Path, manifest: Manifest) -> int:
    """The context that an artifact promises. EdgewrightError where its manifest gives none."""
    return _positive(artifact, manifest, "max_tokens")


def run_quality(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: figures, checks, what the held-out text is, a prompt with its greedy continuation, the warnings.

    A runner that reads text itself adds "own": what its tokenizer and its generation made of the prompt's text.
    """
    from runtime_tests.from_text import read_prompt
    from runtime_tests.golden import GOLDEN, read_golden
    from runtime_tests.parity import Ran, observe, observe_decode, parity
    from runtime_tests.quality import quality
    from runtime_tests.runners import greedy, make_runner

    def progress(stage: str, done: int, total: int) -> None:
        emit({"progress": [stage, done, total]})

    golden = read_golden(payload_file(job.artifact, GOLDEN))
    runner = make_runner(job.artifact, manifest)
    runner.load(exact=True, threads=job.threads)
    exact_stand_in = getattr(runner, "stand_in", None)
    exact_decode = observe_decode(runner, golden, progress, "decoding exactly")
    exact = observe(runner, golden, progress, "comparing exact logits")
    runner.load(exact=False, threads=job.threads)
    ran = Ran(exact_stand_in, getattr(runner, "stand_in", None))
    shipped_decode = observe_decode(runner, golden, progress, "decoding as shipped")
    room = context_tokens(job.artifact, manifest) - 1
    prompt = read_prompt(job.artifact, golden, room)
    count = min(job.decode_tokens, room + 1 - len(prompt.ids))
    continuation = greedy(runner, prompt.array(), count)
    own = runner.generate(prompt.text, count) if prompt.text is not None and hasattr(runner, "generate") else None
    shipped = observe(runner, golden, progress, "comparing shipped logits")
    figures, checks = parity(golden, exact, shipped, exact_decode, shipped_decode, ran)
    more_figures, more_checks = quality(golden, shipped, job.limits, ran.shipped)
    result = {
        "figures": [figure.model_dump(mode="json") for figure in (*figures, *more_figures)],
        "checks": [check.model_dump(mode="json") for check in (*checks, *more_checks)],
        "held_out_text": golden.text,
        "prompt": prompt.ids,
        "text": prompt.text,
        "greedy": continuation,
        "own": own,
        "stand_in": ran.shipped,
        "warnings": list(getattr(runner, "warnings", ())),
    }
    emit({"result": result})


def run_memory(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Load, prefill and decode once, announcing each phase; the prompt is any tokens, its length is what counts."""
    import numpy as np

    from runtime_tests.runners import make_runner

    def phase(name: str, **payload: Any) -> None:
        emit({"phase": name, "wait": True, **payload})
        if not sys.stdin.readline():
            raise EdgewrightError("the parent is gone")

    context, vocabulary = context_tokens(job.artifact, manifest), _positive(job.artifact, manifest, "vocab_size")
    decode = min(job.decode_tokens, context - 1)
    room = context - decode
    prompt = np.arange(min(job.prompt_tokens or room, room), dtype=np.int64) % vocabulary
    runner = make_runner(job.artifact, manifest)
    phase("baseline")
    begin = time.perf_counter()
    runner.load(threads=job.threads)
    phase("load", seconds=time.perf_counter() - begin, stand_in=getattr(runner, "stand_in", None))
    begin = time.perf_counter()
    token = int(runner.prefill(prompt).argmax())
    phase("prefill", tokens=len(prompt), seconds=time.perf_counter() - begin)
    seconds = []
    for _ in range(decode):
        begin = time.perf_counter()
        token = int(runner.decode(token).argmax())
        seconds.append(time.perf_counter() - begin)
    phase("steady", tokens=decode, seconds=sum(seconds), median_seconds=statistics.median(seconds))


def run_genai(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: what onnxruntime-genai makes of the text, or of the prompt where there is none (`genai.generate`)."""
    from runtime_tests.genai import generate

    options = manifest.runtime.get("genai_tokenizer_options")
    asked = {str(key): str(value) for key, value in options.items()} if isinstance(options, dict) else {}
    emit({"result": generate(job.artifact, job.text, job.prompt, asked, job.decode_tokens, threads=job.threads)})


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
