"""Runs a command under a phone's memory limit, watches what it holds, and tells why it ended.

What lives here: the child process, its events, the limit, the samples. What must not: profiles of phones
(``profile.py``) and the judgement over what was seen (``verdict.py``).

**How the child must behave.** It talks JSON, one object per line, on stdout, and listens on stdin:

1. It imports its runtime, loads nothing of the model, writes ``{"phase": "baseline"}``, flushes, and **waits for a line
   on stdin** (an empty line; end of file means that the parent is gone: exit). Everything it holds at that moment is
   the baseline: the budget and all figures are over it. The limit starts with the answer. Exactly one baseline.
2. After each phase it writes ``{"phase": "load"}``, ``{"phase": "prefill"}``, ``{"phase": "steady"}`` (any name; other
   keys are payload, kept beside the figures) and flushes. The split of its memory is read when the line arrives. With
   ``"wait": true`` it waits for a line again before it goes on, so that the figure is that of this very moment. The
   last phase must wait: a process that is about to end has begun to give its memory back, and what is read then is of
   no phase. A phase whose process has ended before it could be read has no figures.
3. Any other JSON object on a line (progress, results) is passed to ``on_event`` and kept. Lines that are no JSON
   objects count as stderr.
4. It exits with 0. Of several processes only the first is measured (a control group limits all of them).

In Python::

    def announce(phase, **payload):
        print(json.dumps({"phase": phase, **payload}), flush=True)
    import onnxruntime
    announce("baseline"); sys.stdin.readline() or sys.exit(1)
    session = ...; announce("load"); ...
    announce("steady", wait=True, tokens_per_second=12.5); sys.stdin.readline()

**Rules.** ``ios``: jetsam charges the footprint, anonymous plus compressed memory; clean file pages are free. A
watchdog reads the split every 5 ms and kills. ``android``: anonymous *and* file pages live in the budget. A control
group holds them in it: file pages are dropped and read again (refaults, compared by ``verdict.py`` with lmkd's
thrashing limit), and when that does not make room the kernel kills. The watchdog stands beside it, because the group
would let anonymous memory take the room of the baseline's file pages. Without a usable group only the watchdog remains,
and file pages are measured but not limited.

**Android 17.** Given the limits of its Memory Limiter, a watch over the samples kills by its rule (``limiter.py``). A
control group of version 2 has ``memory.high`` and evicts file pages beyond it, as the phone does; version 1 and the
watchdog do not, and ``weakened`` says so.

**Background.** With ``background_bytes`` another process reads a file of that size again and again, within the same
limit: what other apps do to the page cache while this one runs, and how much of the budget they want for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from artifacts.errors import EdgewrightError, MissingTool
from device_farm import cgroup
from device_farm.background import Background
from device_farm.host import NOTHING_MAPPED, Mapped, read_host, weaknesses
from device_farm.limiter import LimiterLimits, MemoryLimiter
from device_farm.memory import CacheDrop, Split, drop_page_cache
from device_farm.thrash import Source
from device_farm.timeline import Held
from device_farm.watch import Event, Outcome, PhaseMemory, Rule, Watch

Mechanism = Literal["cgroup2", "cgroup1", "watchdog"]

_VERSIONS: dict[Mechanism, int] = {"cgroup2": 2, "cgroup1": 1}


@dataclass(frozen=True)
class SandboxResult:
    """What a run held and how it ended; every size in bytes over the baseline, all of it measured.

    ``outcome``: ``ok`` (exit code 0), ``over_budget`` (killed by the group's out-of-memory killer or by the watchdog),
    ``crashed`` (ended by any other signal), ``error`` (other exit code, timeout, no baseline); ``detail`` says it in a
    sentence. The peaks of the kinds need not fall together: ``peak_charged_bytes`` is the largest that the rule charges
    at one moment (ios: anonymous + swap; android: anonymous + swap + file). ``thrash_percent`` is the worst second,
    refaulted bytes in percent of the file cache of the run; None where no control group counts them. ``longest_gap_ms``
    is the longest time without a sample after the baseline. ``mapped`` is what it mapped of the cold paths. ``others``:
    it started processes whose memory is in no figure. ``weakened`` says what of this machine takes from the figures.
    """

    mechanism: Mechanism
    rule: Rule
    limit_bytes: int | None
    outcome: Outcome
    detail: str
    exit_code: int | None
    baseline: Split | None
    phases: tuple[PhaseMemory, ...]
    peak_anonymous_bytes: int
    peak_unreclaimable_bytes: int
    peak_file_bytes: int
    peak_swap_bytes: int
    peak_charged_bytes: int
    thrash_percent: float | None
    thrash_source: Source | None
    cache: CacheDrop
    wall_s: float
    samples: int
    longest_gap_ms: float
    stderr_tail: str
    events: tuple[Event, ...]
    time_line: tuple[Held, ...] = ()
    mapped: Mapped = NOTHING_MAPPED
    others: bool = False
    weakened: tuple[str, ...] = ()


def available_mechanisms(root: Path = cgroup.CGROUP_ROOT, own: str | None = None) -> tuple[Mechanism, ...]:
    """The mechanisms that a probe shows to work here, best first; the watchdog is always the last.

    ``root`` and ``own`` (the content of ``/proc/self/cgroup``) are there for tests.
    """
    groups: list[Mechanism] = [name for name, version in _VERSIONS.items() if cgroup.usable_parent(version, root, own)]
    return (*groups, "watchdog")


def run(
    command: Sequence[str],
    *,
    limit_bytes: int | None,
    rule: Rule,
    swap_bytes: int = 0,
    cold_paths: Iterable[Path] = (),
    on_event: Callable[[Event], None] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 900.0,
    mechanism: Mechanism | None = None,
    period_s: float = 0.005,
    limiter: LimiterLimits | None = None,
    background_bytes: int = 0,
) -> SandboxResult:
    """Runs ``command`` under ``limit_bytes`` (None: only measured) by a platform's rule; it must behave as said above.

    ``cold_paths`` (files or folders) are dropped from the page cache first; give every file that the child maps.
    ``swap_bytes`` is how much the group may swap (0: none; a phone's zram). ``limiter`` and ``background_bytes`` are
    said above; a background needs a group. ``mechanism`` insists on one; otherwise the
    first of ``available_mechanisms`` for android, always the watchdog for ios. ``on_event`` gets every JSON event as it
    comes, in between two samples: it must be quick.

    Raises MissingTool when the command is not found or this is not Linux, EdgewrightError for a mechanism that does not
    work here and for cold paths that cannot be read. On any exception, Ctrl-C too, the child is killed and its group
    removed.
    """
    if not sys.platform.startswith("linux"):
        raise MissingTool("the memory sandbox reads /proc: run it on Linux")
    if limit_bytes is not None and limit_bytes <= 0:
        raise EdgewrightError(f"memory limit of {limit_bytes} bytes: must be more than 0, or none at all")
    if limit_bytes is not None and background_bytes >= limit_bytes:
        raise EdgewrightError(
            f"{background_bytes:,} bytes of background leave nothing of a limit of {limit_bytes:,}; lower the former"
        )
    if shutil.which(command[0], path=(env or os.environ).get("PATH")) is None:
        raise MissingTool(f"{command[0]}: no such program to run in the memory sandbox")
    chosen, parent = _choose(rule, mechanism)
    cold = tuple(path.resolve() for path in cold_paths)
    cache, before = drop_page_cache(cold), read_host()
    group = cgroup.make_group(parent, _VERSIONS[chosen]) if parent else None
    try:
        with Background(group, background_bytes):
            watch = Watch(
                rule,
                limit_bytes,
                swap_bytes,
                group,
                on_event,
                folders=cold,
                limiter=MemoryLimiter(limiter) if limiter else None,
                background_bytes=background_bytes,
            )
            process = subprocess.Popen(
                group.entering(command) if group else list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=env,
                start_new_session=True,  # Ctrl-C reaches us alone, and the child's own children die with it
            )
            try:
                watch.follow(process, timeout_s, period_s)
            finally:
                _kill(process)
        limited = limit_bytes is not None or limiter is not None
        weakened = (
            *_missing(rule, chosen, limit_bytes, limiter),
            *weaknesses(before, read_host(), watch.wall_s, limited=limited),
            *(["it started other processes, and what they held is in no figure"] if watch.others else []),
        )
        return _result(watch, chosen, cache, process.returncode, weakened)
    finally:
        if group:
            group.remove()


def _missing(
    rule: Rule, mechanism: Mechanism, limit_bytes: int | None, limiter: LimiterLimits | None
) -> tuple[str, ...]:
    """What the mechanism cannot do of what was asked."""
    found = []
    if rule == "android" and limit_bytes is not None and mechanism == "watchdog":
        found.append(
            "no control group can be used here (it takes a writable memory controller below /sys/fs/cgroup): the "
            "watchdog limits anonymous memory alone, and what dropping file pages costs is not seen"
        )
    if limiter is not None and mechanism != "cgroup2":
        found.append(
            "no control group of version 2 with the memory controller can be used here: the Memory Limiter's kill is "
            "made by its rule over samples, and nothing evicts file pages beyond memory.high"
        )
    return tuple(found)


def _choose(rule: Rule, mechanism: Mechanism | None) -> tuple[Mechanism, Path | None]:
    if rule == "ios":
        if mechanism not in (None, "watchdog"):
            raise EdgewrightError(f"{mechanism} cannot enforce the ios rule: it charges file pages; use the watchdog")
        return "watchdog", None
    for name in _VERSIONS if mechanism is None else (mechanism,):
        if name != "watchdog" and (parent := cgroup.usable_parent(_VERSIONS[name])):
            return name, parent
    if mechanism not in (None, "watchdog"):
        raise EdgewrightError(f"{mechanism} does not work here; available: {', '.join(available_mechanisms())}")
    return "watchdog", None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def _outcome(watch: Watch, exit_code: int) -> tuple[Outcome, str]:
    if watch.decided:
        return watch.decided
    if watch.oom_kills:
        return "over_budget", f"killed by its group's out-of-memory killer {watch.where()}"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        other = " (not for its budget: by somebody else, or this machine ran out)" if name == "SIGKILL" else ""
        return "crashed", f"ended by {name} {watch.where()}{other}"
    if exit_code > 0:
        return "error", f"ended with exit code {exit_code} {watch.where()}"
    if watch.baseline is None:
        return "error", "ended without announcing its baseline"
    if (phase := watch.unsampled) is not None:
        return "error", f"did not wait for the sample of its last phase {phase!r}"
    return "ok", "ended with exit code 0"


def _result(
    watch: Watch, mechanism: Mechanism, cache: CacheDrop, exit_code: int, weakened: tuple[str, ...]
) -> SandboxResult:
    outcome, detail = _outcome(watch, exit_code)
    return SandboxResult(
        mechanism=mechanism,
        rule=watch.rule,
        limit_bytes=watch.limit_bytes,
        outcome=outcome,
        detail=detail,
        exit_code=exit_code,
        baseline=watch.baseline,
        phases=tuple(watch.phases),
        peak_anonymous_bytes=watch.total.anonymous,
        peak_unreclaimable_bytes=watch.total.unreclaimable,
        peak_file_bytes=watch.total.file,
        peak_swap_bytes=watch.total.swap,
        peak_charged_bytes=watch.total.charged,
        thrash_percent=watch.thrash.percent,
        thrash_source=watch.thrash.source,
        cache=cache,
        wall_s=watch.wall_s,
        samples=watch.samples,
        longest_gap_ms=watch.longest_gap_s * 1e3,
        stderr_tail=watch.stderr.decode(errors="replace"),
        events=tuple(watch.events),
        time_line=watch.time_line.samples(),
        mapped=watch.mapped,
        others=watch.others,
        weakened=weakened,
    )
