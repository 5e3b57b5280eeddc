"""An artifact on an attached Android phone: answers, memory by phase, and times, by the jobs of every other run.

What lives here: bringing the tier and the artifact there, the order of runs, and what becomes of their events. What
must not: adb's formats (``device_farm/adb.py``).

What runs there is the ARM64 tier: the runtime's build for Linux, with Debian's C library beside it, started through its
own loader by adb's shell. Its kernels are those of the Android build; its allocator, and all that Android does to apps
alone (lmkd's scores, the Memory Limiter, core sets), are not. So its figures are "emulated", and say by what.
"""

from __future__ import annotations

import hashlib
import shlex
import statistics
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import MANIFEST, Check, Figure, Manifest, Progress, ran_here, scratch_folder
from device_farm import adb, arm64_tier
from runtime_tests.drivers import driver_of
from runtime_tests.emulated import Emulated
from runtime_tests.jobs import Job
from runtime_tests.process import Ended, child_environment, failure_of, forward, run_child
from runtime_tests.vectors import PARITY

CONTEXTS = (512, 1024, 4096)
WARM_UPS, RUNS = 1, 3
_PACKAGES = ("artifacts", "device_farm", "runtime_tests")
_ROOT = Path(__file__).resolve().parents[1]
_HOT = ("none", "light", "not known")
_NOT_AN_APP = (
    "{model}: a Linux build of the runtime ran in adb's shell, not an app: Android's limits for apps did not apply. "
    "This way of testing was developed against a scripted adb; treat its first figures from a phone as unproven"
)


@dataclass(frozen=True)
class _Phone:
    device: adb.Device
    stand_in: str

    def start(self, job: Job, folder: Path) -> tuple[list[str], dict[str, str]]:
        """See `process.Start`: the job's file goes to the phone, which says the process's number first."""
        place = adb.PLACE
        path = folder / f"{job.kind}.json"
        path.write_text(job.model_copy(update={"artifact": Path("artifact")}).model_dump_json(), encoding="utf-8")
        self.device.shell(f"rm -rf {place}/job && mkdir -p {place}/job")
        self.device.push(path, f"{place}/job/{path.name}")
        debian = f"{place}/root"
        libraries = f"{debian}/lib/aarch64-linux-gnu:{debian}/usr/lib/aarch64-linux-gnu"
        environment = {
            "PYTHONHOME": f"{debian}/usr",
            "PYTHONPATH": f"{place}/code:{place}/site",
            "PYTHONNOUSERSITE": "1",
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "ORT_DISABLE_TELEMETRY": "1",
            "HOME": f"{place}/job",
            "LC_ALL": "C.UTF-8",
        }
        words = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
        loader = f"{debian}/lib/ld-linux-aarch64.so.1 --library-path {libraries} {debian}/usr/bin/python3.11"
        script = f'cd {place} && echo "{{\\"pid\\": $$}}" && export {words} && exec {loader} -m runtime_tests.child '
        return self.device.command(f"{script}{place}/job/{path.name}"), child_environment()

    def run(self, job: Job, on_event: Callable[[dict[str, Any]], None]) -> Ended:
        """One job. Raises EdgewrightError where the phone is gone afterwards."""
        ended = run_child(job, on_event, self.start)
        if ended.exit_code:
            self.device.require()
        return ended


def on_device(job: Job, manifest: Manifest, serial: str, progress: Progress) -> Emulated:
    """Parity over the golden vectors, memory by phase, and times at each context, on the phone.

    job: of kind "memory". Raises MissingTool without adb or the tier, EdgewrightError for a phone that cannot be used.
    """
    device = adb.connect(serial)
    stand_in = (
        f"the runtime's build for Linux on a {device.model} with Android {device.android} ({device.build}), through adb"
    )
    found = Emulated(warnings=[_NOT_AN_APP.format(model=device.model)])
    group = f"device {device.model}"
    with _brought(device, job.artifact, manifest, progress):
        phone = _Phone(device, stand_in)
        ended = phone.run(job.model_copy(update={"kind": "quality", "film": None}), forward(progress))
        if (failure := failure_of(f"answers on {device.model}", ended)) is not None:
            found.failures.append(failure)
            return found
        for item in map(Check.model_validate, ended.result["checks"]):
            if item.group == PARITY:
                about = {"group": group, "name": f"device_{item.name}", "obtained": "emulated", "stand_in": stand_in}
                found.checks.append(Check.model_validate({**item.model_dump(), **about}))
        found.figures.append(
            Figure(name="device_limiter", value=device.limiter(), unit="", obtained="emulated", stand_in=stand_in)
        )
        for context in _contexts(manifest):
            _timed(phone, job, manifest, context, found, progress)
            if found.failures:
                break
    return found


def _timed(phone: _Phone, job: Job, manifest: Manifest, context: int, found: Emulated, progress: Progress) -> None:
    """One warm-up and three runs, whose median counts; the highest memory of all of them does."""
    device, at = phone.device, f"{context:,} tokens"
    asked = job.model_copy(update={"kind": "memory", "prompt_tokens": max(1, context - job.steps)})
    samples: dict[str, list[Figure]] = {}
    held: list[tuple[int, adb.Meminfo]] = []
    before = device.thermal()
    for number in range(WARM_UPS + RUNS):
        progress(f"{device.model}, {at}", number, WARM_UPS + RUNS)
        ended = phone.run(asked, _reader(device, held))
        if (failure := failure_of(f"{at} on {device.model}", ended)) is not None:
            found.failures.append(failure)
            return
        if number >= WARM_UPS:
            events = {event["phase"]: event for event in ended.events if "phase" in event}
            events["load"]["stand_in"] = phone.stand_in
            load = ran_here("host_load", events["load"]["seconds"], "s", phone.stand_in, at=at)
            for figure in (load, *driver_of(job.artifact, manifest).speed(events)):
                samples.setdefault(figure.name, []).append(figure)
    progress(f"{device.model}, {at}", WARM_UPS + RUNS, WARM_UPS + RUNS)
    for name, figures in samples.items():
        if figures[0].stand_in is not None:
            value = statistics.median(float(figure.value) for figure in figures)
            named = f"device_{name.removeprefix('host_')}_{context}"
            found.figures.append(figures[0].model_copy(update={"name": named, "value": value}))
    peaks: Mapping[str, int] = {
        "anonymous_shared_swap": max((anonymous for anonymous, _ in held), default=0),
        "pss": max((info.pss for _, info in held), default=0),
        "swap": max((info.swap for _, info in held), default=0),
    }
    for name, size in peaks.items():
        found.figures.append(ran_here(f"device_peak_{name}_{context}", size, "bytes", phone.stand_in, at=at))
    if (after := device.thermal()) not in _HOT or before not in _HOT:
        found.warnings.append(
            f"{device.model}, {at}: the phone held its speed back (thermal status {before} before, {after} after): its "
            "times are those of a hot phone; let it cool and test again"
        )


def _reader(device: adb.Device, held: list[tuple[int, adb.Meminfo]]) -> Callable[[dict[str, Any]], None]:
    """Reads the process's memory at the end of each phase, while it waits."""
    pid = 0

    def on_event(event: dict[str, Any]) -> None:
        nonlocal pid
        pid = event.get("pid", pid)
        if "phase" in event:
            held.append((device.held(pid), device.meminfo(pid)))

    return on_event


def _contexts(manifest: Manifest) -> tuple[int, ...]:
    """Those that the artifact has room for; of a smaller one, its own; of one without tokens, one run."""
    most = manifest.driver.constants.get("max_tokens") if manifest.driver else None
    if not isinstance(most, int):
        return CONTEXTS[:1]
    return tuple(context for context in CONTEXTS if context <= most) or (most,)


@contextmanager
def _brought(device: adb.Device, artifact: Path, manifest: Manifest, progress: Progress) -> Iterator[None]:
    """The artifact's folder on the phone, gone afterwards; the tier and our code, which stay for the next time."""
    place, tier = adb.PLACE, arm64_tier.installed(emulated=False)
    wanted = hashlib.sha256((tier / "tier.json").read_bytes()).hexdigest()
    remote = f"{place}/artifact"
    with scratch_folder() as folder:
        if device.says(f"cat {place}/tier 2>/dev/null").strip() != wanted:
            device.shell(f"rm -rf {place} && mkdir -p {place}")
            _unpacked(device, folder / "tier.tar", {name: tier / name for name in ("root", "site")}, place, progress)
            device.shell(f"echo {wanted} > {place}/tier")
        device.shell(f"rm -rf {remote} {place}/code && mkdir -p {remote} {place}/code {place}/job")
        code = {name: _ROOT / name for name in _PACKAGES}
        _unpacked(device, folder / "code.tar", code, f"{place}/code", progress)
        files = {entry.path: artifact / entry.path for entry in manifest.files}
        try:
            manifest_file = {MANIFEST: artifact / MANIFEST}
            _unpacked(device, folder / "artifact.tar", files | manifest_file, remote, progress)
            yield
        finally:
            device.says(f"rm -rf {remote} {place}/job")


def _unpacked(device: adb.Device, archive: Path, members: Mapping[str, Path], place: str, progress: Progress) -> None:
    """Bring files there in one archive, which keeps links and rights as they are."""
    stage = f"copying to {device.model}: {archive.stem}"
    progress(stage, 0, 1)
    with tarfile.open(archive, "w") as tar:
        for name, path in members.items():
            tar.add(path, name, filter=lambda item: None if item.name.endswith((".pyc", "__pycache__")) else item)
    device.push(archive, f"{adb.PLACE}/{archive.name}")
    archive.unlink()
    device.shell(f"tar -xf {adb.PLACE}/{archive.name} -C {place} && rm {adb.PLACE}/{archive.name}")
    progress(stage, 1, 1)
