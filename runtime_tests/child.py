"""The process in which an artifact runs: ``python -m runtime_tests.child job.json``.

What lives here: the jobs and their protocol. What must not: judgement, and anything that has to survive a crash of
the runtime.

It writes JSON, one object per line, on stdout; whatever a runtime prints goes to stderr. ``{"progress": [stage, done,
total]}``, ``{"result": …}`` (last), ``{"error": message}`` for an EdgewrightError, whose exit code follows. The job
"memory" speaks the protocol of ``device_farm.sandbox``: a phase "baseline" with the runtime imported and nothing
loaded, then "load" and the driver's own, with their seconds; after each of them it waits for a line on stdin, so that
what is read then is of that phase.

It writes to its own folder (the job's, temporary files too) and the artifact's alone, where the kernel can hold it to
that.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError, Manifest, read_manifest
from runtime_tests.confine import write_only_below
from runtime_tests.jobs import Job

Emit = Callable[[dict[str, Any]], None]


def run_quality(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: figures, checks, warnings, what the held-out text is, what the driver's `conclude` goes on with, and
    whether there is a film."""
    from runtime_tests import vectors
    from runtime_tests.drivers import driver_of
    from runtime_tests.sessions import make_session

    def progress(stage: str, done: int, total: int) -> None:
        emit({"progress": [stage, done, total]})

    session = make_session(job.artifact, manifest)
    checks = vectors.judge(session, job.artifact, manifest, job.threads, progress)
    judged = driver_of(job.artifact, manifest).judge(session, manifest, job, progress)
    checks += vectors.repeated(session)
    result = {
        "figures": [figure.model_dump(mode="json") for figure in judged.figures],
        "checks": [check.model_dump(mode="json") for check in (*checks, *judged.checks)],
        "held_out_text": judged.held_out_text,
        "warnings": judged.warnings,
        "more": judged.more,
        "film": judged.film,
    }
    emit({"result": result})


def run_task(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: the answers to the artifact's questions, as it ships, and what stood in."""
    from runtime_tests.drivers import driver_of
    from runtime_tests.sessions import make_session
    from runtime_tests.task import ask

    def progress(stage: str, done: int, total: int) -> None:
        emit({"progress": [stage, done, total]})

    session = make_session(job.artifact, manifest)
    exactly = session.exact_stand_in
    session.load(exact=exactly is not None, threads=job.threads)
    asker = driver_of(job.artifact, manifest).asker(session, job.artifact, manifest)
    slow = exactly is None and session.stand_in is not None
    answers = ask(asker, job.artifact, slow, progress)
    emit({"result": {"answers": answers, "stand_in": exactly or session.stand_in}})


def run_memory(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Load, and use once as the driver does, announcing each phase."""
    from runtime_tests.drivers import driver_of
    from runtime_tests.sessions import make_session

    phase = _phase(emit)
    driver = driver_of(job.artifact, manifest)
    session = make_session(job.artifact, manifest)
    phase("baseline")
    begin = time.perf_counter()
    session.load(threads=job.threads)
    phase("load", seconds=time.perf_counter() - begin, stand_in=session.stand_in)
    driver.run(session, manifest, job, phase)


def run_load(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: anonymous bytes that a loaded package of the ONNX target holds over the runtime's own, its states among
    them; None where it has no packed weights for this processor."""
    from device_farm.memory import read_split
    from runtime_tests.sessions.onnx import OnnxSession

    session = OnnxSession(job.artifact, manifest)
    before = read_split().anonymous
    session.load(threads=job.threads, plain=job.plain)
    emit({"result": read_split().anonymous - before if session.packed else None})


def run_try(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Talk with whoever asks, until there is nobody (`talk.py`)."""
    from runtime_tests.talk import serve

    serve(job, manifest, emit, _phase(emit))


def _phase(emit: Emit) -> Callable[..., None]:
    def phase(name: str, **payload: Any) -> None:
        emit({"phase": name, "wait": True, **payload})
        if not sys.stdin.readline():
            raise EdgewrightError("the parent is gone")

    return phase


def run_genai(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: what onnxruntime-genai makes of the text and the image, or of the prompt where there is no text
    (`genai.generate`)."""
    from runtime_tests.genai import generate

    options = manifest.runtime.get("genai_tokenizer_options")
    asked = {str(key): str(value) for key, value in options.items()} if isinstance(options, dict) else {}
    found = generate(job.artifact, job.text, job.prompt, asked, job.steps, image=job.image, threads=job.threads)
    emit({"result": found})


def run_score(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: what it says about every token of the job's golden text (`scores.Scores`), as it ships."""
    from artifacts.manifest import payload_file
    from runtime_tests.drivers import positive
    from runtime_tests.drivers.text import Decoder, component_of
    from runtime_tests.golden import GOLDEN, read_golden
    from runtime_tests.scores import scores
    from runtime_tests.sessions import make_session

    def progress(stage: str, done: int, total: int) -> None:
        emit({"progress": [stage, done, total]})

    assert job.golden is not None
    golden = read_golden(payload_file(job.golden, GOLDEN))
    session = make_session(job.artifact, manifest)
    exactly = session.exact_stand_in
    session.load(exact=exactly is not None, threads=job.threads)
    decoder = Decoder(session, component_of(job.artifact, manifest), positive(job.artifact, manifest, "max_tokens"))
    emit({"result": scores(decoder, golden, exactly or session.stand_in, progress).model_dump(mode="json")})


def run_count(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: the calls that were marked for an emulator that counts (`counting.py`), in order."""
    from runtime_tests.counting import mark_calls

    emit({"result": mark_calls(job, manifest)})


def run_model_memory(job: Job, manifest: Manifest, emit: Emit) -> None:
    """Result: figures of a package whose memory is counted from its program (``runtime.memory``: "modelled")."""
    from runtime_tests.sessions import make_session

    figures = make_session(job.artifact, manifest).footprint()
    emit({"result": [figure.model_dump(mode="json") for figure in figures]})


_KINDS = {
    "quality": run_quality,
    "task": run_task,
    "memory": run_memory,
    "load": run_load,
    "genai": run_genai,
    "model_memory": run_model_memory,
    "try": run_try,
    "score": run_score,
    "count": run_count,
}


def _manifest(job: Job) -> Manifest:
    if job.foreign is None:
        return read_manifest(job.artifact)
    from runtime_tests.foreign import manifest_of

    return manifest_of(job.artifact, *job.foreign)


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
        own = Path(path).resolve().parent
        os.environ["TMPDIR"] = str(own)
        film = [job.film] if job.film else []
        write_only_below([own, job.artifact, Path("/dev"), *film])
        _KINDS[job.kind](job, _manifest(job), emit)
    except EdgewrightError as error:
        emit({"error": str(error)})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
