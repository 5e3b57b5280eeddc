"""Sides measured beside each other on this machine: the same golden text, the same phones, speed in interleaved rounds.

What lives here: which child runs when, for artifacts of ours and folders of other tools alike. What must not: what the
values are compared with (`compare.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from artifacts import EdgewrightError, Figure, Progress, prefixed, require_intact
from device_farm import Profile
from edgewright.compare import Measured
from edgewright.compare_sides import HOST, Side, host_checks, no_speed, platforms
from runtime_tests import foreign
from runtime_tests.drivers import driver_of, positive
from runtime_tests.jobs import Job
from runtime_tests.phones import Limits, MemoryRuns, Rules, on_phones
from runtime_tests.process import Failure, failure_of, forward, run_child
from runtime_tests.scores import Scores

ROUNDS = 5
_PROMPT, _STEPS = 512, 32
_TEXT = "text"


def measure(sides: Sequence[Side], phones: Sequence[Profile], progress: Progress) -> tuple[list[Measured], bool]:
    """What is measured of each side, its checks put in place of those that were recorded; and whether all of it was.

    Raises EdgewrightError where no artifact of ours has a golden text for a foreign folder, for an artifact that is
    damaged, and for a folder whose tokenizer is another or which cannot hold our context; MissingTool.
    """
    for side in sides:
        if side.kind is None:
            if side.folder is None:
                raise EdgewrightError(f"{side.path}: holds a report alone; to measure, name the folder of the artifact")
            side.manifest = require_intact(side.folder, progress)
    base = _base(sides)
    jobs = [_job(side, base) for side in sides]
    failures: list[list[Failure]] = [[] for _ in sides]
    found = [_scored(*each, base, progress) for each in zip(sides, jobs, failures, strict=True)]
    rounds = _speeds(sides, jobs, found, failures, progress)
    for side, job, failed in zip(sides, jobs, failures, strict=True):
        _memory(side, job, phones, failed, progress)
        side.notes += [f"{item.step}: {item.detail}" for item in failed]
    measured = [Measured(scores=scores, rounds=speed) for scores, speed in zip(found, rounds, strict=True)]
    return measured, not any(failures)


def _base(sides: Sequence[Side]) -> Side | None:
    """Whose golden text is run: that of the smallest context, which all of ours can hold. None: nobody has one."""
    ours = [side for side in sides if side.golden is not None]
    if not ours and any(side.kind for side in sides):
        raise EdgewrightError(
            "none of these is an artifact of Edgewright with golden vectors, whose text and unquantized logits the "
            "others are measured by; name one"
        )
    return min(ours, key=_context, default=None)


def _context(side: Side) -> int:
    assert side.folder is not None and side.manifest is not None
    return positive(side.folder, side.manifest, "max_tokens")


def _job(side: Side, base: Side | None) -> Job:
    """What all of a side's children are told. Raises EdgewrightError for a folder that cannot be held beside ours."""
    assert side.folder is not None
    folder, of = side.folder.resolve(), base.folder.resolve() if base and base.folder else None
    if side.kind is None:
        return Job(kind="score", artifact=folder, golden=of, steps=_STEPS)
    assert base is not None and base.folder is not None and base.golden is not None
    context = _context(base)
    side.manifest = foreign.manifest_of(side.folder, side.kind, context)
    tokens = base.golden.tokens[0].tolist()
    if (why := foreign.other_tokenizer(base.folder, side.folder, tokens)) is not None:
        raise EdgewrightError(f"{side.folder}: {why}; compare folders of one checkpoint")
    side.notes.append(f"does not say which checkpoint it is of: quality is its distance to {base.checkpoint} of ours")
    return Job(kind="score", artifact=folder, golden=of, steps=_STEPS, foreign=(side.kind, context))


def _scored(side: Side, job: Job, failed: list[Failure], base: Side | None, progress: Progress) -> Scores | None:
    assert side.manifest is not None and side.manifest.driver is not None
    if base is None or side.manifest.driver.name != _TEXT or (side.identity and side.identity != base.identity):
        return None
    ended = run_child(job, forward(prefixed(progress, side.letter)))
    if (failure := failure_of("scoring the golden text", ended)) is not None:
        failed.append(failure)
        return None
    side.drop("quality")
    return Scores.model_validate(ended.result)


def _speeds(
    sides: Sequence[Side],
    jobs: Sequence[Job],
    found: Sequence[Scores | None],
    failures: Sequence[list[Failure]],
    progress: Progress,
) -> list[dict[str, list[float]]]:
    """Rounds of every side whose own runtime runs here, in turns that change their order."""
    rounds: list[dict[str, list[float]]] = [{} for _ in sides]
    running = []
    for at, (side, scores) in enumerate(zip(sides, found, strict=True)):
        assert side.manifest is not None
        side.drop(HOST)
        if side.manifest.runtime.get("memory") == "modelled" or (scores and scores.stand_in):
            side.notes.append(no_speed(scores.stand_in if scores and scores.stand_in else "counts of its program"))
        else:
            running.append(at)
    last: dict[int, list[Figure]] = {}
    for turn in range(ROUNDS):
        for at in running[:: -1 if turn % 2 else 1]:
            progress("measuring speed in rounds", turn * len(running) + running.index(at), ROUNDS * len(running))
            if failures[at]:
                continue
            side, job = sides[at], jobs[at].model_copy(update={"kind": "memory", "prompt_tokens": _PROMPT})
            ended = run_child(job, lambda event: None)
            if (failure := failure_of("speed", ended)) is not None:
                failures[at].append(failure)
                continue
            events = {event["phase"]: event for event in ended.events if "phase" in event}
            assert side.folder is not None and side.manifest is not None
            load = Figure(name="host_load", value=events["load"]["seconds"], unit="s", obtained="measured")
            last[at] = [load, *driver_of(side.folder, side.manifest).speed(events)]
            for figure in last[at]:
                rounds[at].setdefault(figure.name, []).append(float(figure.value))
    progress("measuring speed in rounds", ROUNDS, ROUNDS)
    for at, figures in last.items():
        means = [item.model_copy(update={"value": _middle(rounds[at][item.name])}) for item in figures]
        sides[at].put(host_checks(means))
    return [speed if not failed else {} for speed, failed in zip(rounds, failures, strict=True)]


def _memory(side: Side, job: Job, phones: Sequence[Profile], failed: list[Failure], progress: Progress) -> None:
    """The verdict of every phone, by its own limits."""
    assert side.folder is not None and side.manifest is not None
    manifest, named = side.manifest, prefixed(progress, side.letter)
    modelled: list[Figure] | None = None
    if phones and manifest.runtime.get("memory") == "modelled":
        ended = run_child(job.model_copy(update={"kind": "model_memory"}), forward(named))
        if (failure := failure_of("modelled memory", ended)) is not None:
            failed.append(failure)
            return
        modelled = [Figure.model_validate(item) for item in ended.result]
    load = partial(driver_of(side.folder, manifest).load, Path(job.artifact), manifest)
    wanted = job.model_copy(update={"kind": "memory", "prompt_tokens": None})
    runs = MemoryRuns(wanted, load, failed, named)
    asked = [(phone, Limits()) for phone in phones]
    results = on_phones(runs, asked, platforms(side), modelled, Rules(), manifest, lambda phone: {})
    for key in [key for key in side.checks if key[1] == "peak_memory"]:  # of another time, by other limits
        del side.checks[key]
    for result in results:
        side.put(result.checks)


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
