"""Artifacts of a small random Ministral 3 for every triple, and kernels compiled alone for this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import Manifest, read_manifest, silent
from artifacts.formats.tvm import TvmRuntime
from compiler.checkpoint import Checkpoint
from compiler.models.base import read_model
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights
from compiler.quantize.stream import quantize_checkpoint
from compiler.slots import Scheme
from compiler.targets.base import BuildJob
from compiler.targets.tvm import triples
from compiler.targets.tvm.options import TvmOptions
from compiler.targets.tvm.triples import Variant
from runtime_tests.sessions.tvm import cpu_features
from tests.compiler.conftest import MINISTRAL3, converting_here, packed, random_tensors, save, shared_folder

TABLE = "model.embed_tokens"
# few distinct shapes, so that eight libraries of it compile in half the time; odd shapes are test_geometries.py's. The
# vocabulary is odd: i8mm multiplies rows in pairs, and has to leave the pairs where they do not come out even
SQUARE = {**MINISTRAL3, "hidden_size": 128, "intermediate_size": 128, "vocab_size": 161}
PHONES = ("aarch64-linux-android24", "arm64-apple-ios16.0")
LINUX = "aarch64-linux-gnu"


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
    manifest: Manifest
    job: BuildJob

    @property
    def runtime(self) -> TvmRuntime:
        return TvmRuntime.model_validate(self.manifest.runtime)


def small_job(folder: Path, source: Path, others: dict[str, Scheme], scheme: Scheme, **options: Any) -> BuildJob:
    """The job of a checkpoint, rounded to nearest into `folder` the first time."""
    checkpoint = Checkpoint(source)
    model = read_model(checkpoint.config, checkpoint.names(), 96)
    schemes = {s.name: others.get(s.name, scheme) for s in model.slots if not s.is_vector}
    quantized = folder / "quantized"
    if not quantized.exists():
        quantized.mkdir(parents=True)
        rounders = dict.fromkeys(schemes, rtn.quantize)
        quantize_checkpoint(checkpoint, model.slots, schemes, rounders, quantized, checkpoint.config, silent)
    return BuildJob("small", model, schemes, TvmOptions(**options), PackedWeights(quantized), source)


def reference_logits(job: BuildJob, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits [seq, vocab] of the dialect's reference, for one prefill."""
    import torch

    from compiler import dialect

    (decoder,) = job.model.components
    module = decoder.module(decoder.entry("score"), job.schemes)
    caches = [torch.zeros(state.sized({})) for state in decoder.states]
    given = torch.from_numpy(np.asarray(ids, np.int64))[None]
    with torch.no_grad(), dialect.weights(job.weights):
        return np.asarray(module(given, torch.arange(given.shape[1])[None], *caches)[0])[0]


@pytest.fixture(scope="session")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """INT4 with an INT8 table, for this machine and every variant of phones; chunks of 16 tokens."""
    return _built(tmp_path_factory, PHONES)


@pytest.fixture(scope="session")
def arm_linux(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same for ARM64 Linux."""
    return _built(tmp_path_factory, (LINUX,))


def _built(tmp_path_factory: pytest.TempPathFactory, machines: tuple[str, ...]) -> Artifact:
    schemes, options = ({TABLE: Scheme(8, 32)}, Scheme(4, 32)), {"triples": machines, "chunk": 16}
    with shared_folder(tmp_path_factory, f"tvm-{machines[0]}") as folder:
        source = folder / "checkpoint"
        if not source.exists():
            save(source, SQUARE, random_tensors(SQUARE))
        job = small_job(folder, source, *schemes, **options)
        if not (folder / "artifact").exists():
            with converting_here():
                packed(job, "tvm", folder / "artifact")
    return Artifact(folder / "artifact", read_manifest(folder / "artifact"), job)


def tensor(array: np.ndarray[Any, Any]) -> Any:
    """A copy in TVM's memory."""
    import tvm

    return tvm.runtime.tensor(array)
