"""One artifact of a small random Ministral 3 for every triple, and kernels compiled alone for this machine."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_tests.runners.tvm import cpu_features

from artifacts import silent
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights
from compiler.quantize.stream import quantize_checkpoint
from compiler.slots import Scheme
from compiler.targets import load_target
from compiler.targets.base import Job
from compiler.targets.tvm import triples
from compiler.targets.tvm.options import TvmOptions
from compiler.targets.tvm.triples import Variant
from tests.compiler.conftest import MINISTRAL3, random_tensors, save

TABLE = "model.embed_tokens"
# few distinct shapes, so that eleven libraries of it compile in half the time; odd shapes are test_geometries.py's. The
# vocabulary is odd: i8mm multiplies rows in pairs, and has to leave the pairs where they do not come out even
SQUARE = {**MINISTRAL3, "hidden_size": 128, "intermediate_size": 128, "vocab_size": 161}
EVERYWHERE = ("aarch64-linux-android24", "arm64-apple-ios16.0", "aarch64-linux-gnu")


def host_variants() -> list[Variant]:
    """The variants that this machine runs."""
    return [v for v in triples.host().variants if cpu_features().issuperset(v.features)]


@pytest.fixture
def compiled() -> Callable[[Variant, dict[str, Any]], Any]:
    """compiled(variant, {name: PrimFunc}): a loaded module of those functions."""
    import tvm

    def make(variant: Variant, functions: dict[str, Any]) -> Any:
        module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
        executable = tvm.compile(module, target=tvm.target.Target(triples.host().target(variant)))
        return getattr(executable, "mod", executable)

    return make


@dataclass(frozen=True)
class Artifact:
    """A built artifact with what it was built from."""

    folder: Path
    runtime: dict[str, Any]
    job: Job


def small_job(folder: Path, source: Path, others: dict[str, Scheme], scheme: Scheme, **options: Any) -> Job:
    """The job of a checkpoint, rounded to nearest into `folder` the first time."""
    checkpoint = Checkpoint(source)
    spec = decoder.read_spec(checkpoint.config)
    slots = decoder.slots(spec, list(checkpoint.tensors.names()))
    schemes = {s.name: others.get(s.name, scheme) for s in slots if not s.is_vector}
    quantized = folder / "quantized"
    if not quantized.exists():
        quantized.mkdir(parents=True)
        rounders = dict.fromkeys(schemes, rtn.quantize)
        quantize_checkpoint(checkpoint, slots, schemes, rounders, quantized, checkpoint.config, silent)
    return Job("small", spec, slots, schemes, 96, PackedWeights(quantized), source, TvmOptions(**options))


def build(folder: Path, source: Path, others: dict[str, Scheme], scheme: Scheme, **options: Any) -> Artifact:
    """Quantize a checkpoint and build it for this machine and the triples of `options`."""
    job = small_job(folder, source, others, scheme, **options)
    (folder / "artifact").mkdir()
    return Artifact(folder / "artifact", load_target("tvm").build(job, folder / "artifact", silent), job)


@contextmanager
def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder of this test run that parallel workers share, held by one of them at a time."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """INT4 with an INT8 table, for every triple and variant; chunks of 16 tokens."""
    with shared_folder(tmp_path_factory, "tvm-everywhere") as folder:
        done = folder / "runtime.json"
        if not done.exists():
            source = save(folder / "checkpoint", SQUARE, random_tensors(SQUARE))
            made = build(folder, source, {TABLE: Scheme(8, 32)}, Scheme(4, 32), triples=EVERYWHERE, chunk=16)
            done.write_text(json.dumps(made.runtime))
    job = small_job(folder, folder / "checkpoint", {TABLE: Scheme(8, 32)}, Scheme(4, 32), triples=EVERYWHERE, chunk=16)
    return Artifact(folder / "artifact", json.loads(done.read_text()), job)


def tensor(array: np.ndarray[Any, Any]) -> Any:
    """A copy in TVM's memory."""
    import tvm

    return tvm.runtime.tensor(array)
