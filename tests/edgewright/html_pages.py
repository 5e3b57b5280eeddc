"""Reports for the page's tests: twelve phones on four targets, with the names that somebody chose for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from artifacts import Check
from artifacts.figures import Verdict
from device_farm.timeline import Held
from edgewright.report import FailedStep, PhoneReport, Report
from tests.edgewright.test_matrix import RUN, Contributor

MB = 1_000_000
HOSTILE = "\"'><script>alert(1)</script><!--<img src=//evil.example/x onerror=alert(1)>{{ 7 * 7 }}${1}|\x1b[31m\u202e"
_SPEED = {"time_to_first_token": ("time to first token", "s", 2.0), "decode": ("decode", "tok/s", 11.0)}


def many(real: Report, folder: Path, *, phones: int = 12, said: str = "") -> Report:
    """A report like a real one, of four targets and so many phones, every second of which has a run of its own; said is
    put behind every name and sentence of it, and into the names of the tensors. Its packages lie in the folder."""
    (source,) = [target for target in real.targets if target.target == "onnx"]
    targets = []
    for name in ("onnx", "coreml", "mlx", "tvm"):
        artifact = folder / name
        artifact.mkdir()
        shutil.copy(Path(source.artifact) / "edgewright.json", artifact)
        evidence = json.loads((Path(source.artifact) / "quantization.json").read_text())
        for tensor in evidence["tensors"]:
            tensor["slot"] += said
        (artifact / "quantization.json").write_text(json.dumps(evidence))
        found = {
            "target": name + said,
            "artifact": str(artifact),
            "phones": tuple(_phone(at, name, said) for at in range(phones)),
            "warnings": (f"a warning{said}",),
            "failed_steps": (FailedStep(step=f"load{said}", detail=f"died{said}", stderr_tail=said),),
            "checks": tuple(check.model_copy(update={"label": check.label + said}) for check in source.checks),
            "verdict": "failed",
        }
        targets.append(source.model_copy(update=found))
    recipe = real.recipe.model_copy(update={"name": real.recipe.name + said})
    update = {"targets": tuple(targets), "recipe": recipe, "folder": str(folder), "verdict": "failed"}
    return real.model_copy(update={**update, "warnings": (f"another{said}",), "tools": {f"tool{said}": f"1{said}"}})


def _phone(at: int, target: str, said: str) -> PhoneReport:
    name = f"{'android' if at % 2 else 'iphone'}-{at}{said}"
    if target in ("coreml", "mlx") and at % 2:
        nothing = _check(name, "peak_memory", None, None, "not for this platform", f"It runs on ios alone{said}.")
        return PhoneReport(
            profile=name, platform="android", verdict="not for this platform", checks=(nothing,), figures=(), run=None
        )
    limit = (600 + 300 * at) * MB
    word: Verdict = "does not fit" if limit < 1000 * MB else "tight" if limit < 1700 * MB else "fits"
    run = RUN.model_copy(
        update={
            "rule": "android" if at % 2 else "ios",
            "limit_bytes": limit if at % 2 else None,
            "time_line": tuple(Held(0.025 * i, 50 * MB + 2 * MB * i, 350 * MB, i * 100_000) for i in range(400)),
        }
    )
    memory = _check(name, "peak_memory", 1250.0 * MB, float(limit), word, f"Its memory peaks at 1,250 MB{said}.")
    return PhoneReport(
        profile=name,
        platform="android" if at % 2 else "ios",
        verdict="failed" if word == "does not fit" else "passed",
        checks=(memory, *_speeds(name, at)),
        figures=(),
        run=run,
        phase=f"long conversation{said}",
        largest=(Contributor(f"weights, mapped{said}", 600 * MB, "measured"),),
        warnings=(f"Play asks for less{said}",),
        safe_bytes=limit * 8 // 10,
    )


def _speeds(phone: str, at: int) -> list[Check]:
    return [
        Check(
            group=phone,
            name=name,
            label=label,
            value=value + at / 3,
            limit=value if at % 3 else None,
            direction="at least" if unit == "tok/s" else "at most",
            unit=unit,
            obtained="modelled",
            band=(0.7 * (value + at / 3), 1.4 * (value + at / 3)),
            verdict="tight" if at % 3 else None,
            reason="Modelled for PocketPal: 40 phones of other chips.",
        )
        for name, (label, unit, value) in _SPEED.items()
    ]


def _check(phone: str, name: str, value: float | None, limit: float | None, verdict: Verdict, reason: str) -> Check:
    return Check(
        group=phone,
        name=name,
        label="peak memory",
        value=value,
        limit=limit,
        direction="at most",
        unit="bytes",
        obtained=None if value is None else "emulated",
        stand_in=None if value is None else "this machine",
        verdict=verdict,
        reason=reason,
    )
