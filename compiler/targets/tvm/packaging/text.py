"""Text decoders: a C API over TVM's runtime, with a program that uses it and what builds them.

The C API knows its functions and their state by name: `native/edgewright.cc` reads what `described` says.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts.formats.interface import Dimension
from artifacts.formats.tvm import SCORE, SCORED, Function, TvmRuntime
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About
from compiler.targets.text_card import text_about, tokens_section
from compiler.targets.tvm.captured import Captured
from compiler.targets.tvm.triples import Triple

_NATIVE = Path(__file__).parents[1] / "native"
_COMPONENT, _TOKENS = "decoder", "tokens"
_FILES = (("edgewright.h", "include"), ("edgewright.cc", "src"), ("example.cc", "example"))
_BUILD = "CMakeLists.txt"
SOURCES = (_BUILD, *(folder for _, folder in _FILES))


def functions(job: Job) -> list[Function]:
    """Also `score`, by which the C API gives the logits of every token."""
    names = ("decode", SCORED, SCORE)
    return [Function(component=_COMPONENT, entry=name, name=name, exact=f"{name}_exact") for name in names]


def narrowed(job: Job) -> dict[tuple[str, str, str], Dimension]:
    """A prompt goes in chunks."""
    bounds = job.model.component(_COMPONENT).entry(SCORED).dimensions[_TOKENS]
    chunk = Dimension(low=1, high=min(bounds[1], job.options.chunk))
    return {(_COMPONENT, entry, _TOKENS): chunk for entry in (SCORED, SCORE)}


def described(job: Job, captured: Captured) -> Mapping[str, Any]:
    constants, caches = job.model.constants, captured.in_place(_COMPONENT)
    keys, values = (cache.shape for cache in caches[:2])
    return {
        "params": "params.bin",
        "max_tokens": constants["max_tokens"],
        "vocab_size": constants["vocab_size"],
        "layers": len(caches) // 2,
        "kv_heads": values[0],
        "head_dim": values[2],
        "key_shape": list(keys),
        "value_shape": list(values),
        "chunk": job.options.chunk,
    }


def write(job: BuildJob, folder: Path, machines: Sequence[Triple]) -> None:
    """The sources that an app builds, and what they need."""
    for name, to in _FILES:
        (folder / to).mkdir(exist_ok=True)
        shutil.copyfile(_NATIVE / name, folder / to / name)
    (folder / _BUILD).write_text(_filled(job, machines, _BUILD), encoding="utf-8")


def about(job: BuildJob) -> About:
    return text_about(job)


def sections(job: BuildJob, machines: Sequence[Triple], runtime: TvmRuntime) -> list[str]:
    return [tokens_section(job), _filled(job, machines, "README.md").rstrip()]


def _filled(job: Job, machines: Sequence[Triple], name: str) -> str:
    names = ", ".join(machine.name for machine in machines)
    values = {"NAME": job.name, "TVM_VERSION": version("apache-tvm"), "TRIPLES": names}
    text = (_NATIVE / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text.rstrip() + "\n"
