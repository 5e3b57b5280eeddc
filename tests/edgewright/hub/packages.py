"""Small packages with a real manifest, as far as publishing looks at them."""

from __future__ import annotations

from pathlib import Path

from artifacts import Check, Manifest, ManifestDraft, ValidationRecord, read_manifest, record_validation, write_manifest
from artifacts.manifest import CheckpointEntry, CheckpointFile, QuantizationGroup, RecipeEntry

BASE = "mistralai/Ministral-3-3B-Instruct-2512-BF16"
CARD = f"""\
---
license: apache-2.0
library_name: onnxruntime-genai
pipeline_tag: text-generation
base_model: {BASE}
base_model_relation: quantized
tags:
- onnx
- 4-bit
---

# small
"""
FILES = {
    "README.md": CARD.encode(),
    "model.onnx": b"\0graph" * 50,
    "model.onnx.data": b"\0weights" * 4000,
    "tokenizer/tokenizer.json": b'{"version": "1.0"}',
    "golden.safetensors": b"\0golden" * 20,
}
PAYLOAD = ("model.onnx", "model.onnx.data", "tokenizer/tokenizer.json")


def memory(phone: str, peak: float | None, limit: float = 2.0e9, *, label: str = "peak memory at 256 tokens") -> Check:
    """A phone's memory check: fits, does not fit, or (no peak) not for this platform."""
    verdict = "not for this platform" if peak is None else "fits" if peak <= limit else "does not fit"
    return Check(
        group=phone,
        name="peak_memory",
        label=label,
        value=peak,
        limit=limit if peak is not None else None,
        direction="at most",
        unit="bytes",
        obtained=None if peak is None else "emulated",
        stand_in=None if peak is None else "this machine without a limit",
        verdict=verdict,
    )


def parity(label: str = "same clear token", verdict: str = "passed") -> Check:
    return Check(
        group="parity",
        name="clear_top1",
        label=label,
        value=0.99,
        limit=0.97,
        direction="at least",
        unit="fraction",
        obtained="measured",
        verdict=verdict,
    )


PASSED = (parity(), memory("android-4gb", 3.1e8), memory("iphone-12", 2.9e8))


def package(
    folder: Path,
    *,
    target: str = "onnx",
    files: dict[str, bytes] = FILES,
    payload: dict[str, tuple[str, ...]] | None = None,
    checks: tuple[Check, ...] | None = PASSED,
    verdict: str = "passed",
    recipe: str = "small",
    checkpoint: str = "c" * 64,
    bits: int = 4,
    licence: str | None = None,
) -> Path:
    """Write one; `checks` None: never validated."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    shipped = payload if payload is not None else dict.fromkeys(("android", "ios"), PAYLOAD)
    group = QuantizationGroup(bits=bits, group=64, symmetric=True, method="gptq", tensors=3, parameters=900, bytes=500)
    draft = ManifestDraft(
        created_by={"edgewright": "0.1.0"},
        recipe=RecipeEntry(name=recipe, digest="d" * 64),
        target=target,
        family="ministral3",
        checkpoint=CheckpointEntry(
            source=BASE,
            revision="a" * 40,
            license=licence,
            files=(CheckpointFile(path="m.safetensors", size=1, sha256=checkpoint),),
        ),
        quantization=(group,),
        runtime={"payload": {platform: list(names) for platform, names in shipped.items()}},
        weights_digest="e" * 64,
    )
    manifest = write_manifest(folder, draft)
    if checks is not None:
        validated(folder, manifest, checks, verdict)
    return folder


def validated(folder: Path, manifest: Manifest, checks: tuple[Check, ...], verdict: str = "passed") -> None:
    record = ValidationRecord(
        verdict=verdict,
        created="2026-11-22T04:13:41+00:00",
        host="a machine, Linux",
        edgewright="0.1.0",
        limits=manifest.recipe,
        checks=checks,
    )
    record_validation(folder, manifest, record)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def listed(folder: Path) -> set[str]:
    """The files of a package, its manifest among them."""
    return {entry.path for entry in read_manifest(folder).files} | {"edgewright.json"}
