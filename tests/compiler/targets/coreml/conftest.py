"""Core ML packages of small checkpoints: the trained one that ships, and random ones of odd geometries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime_tests.runners.coreml import CoreMLRunner
from tokenizers import Tokenizer

from artifacts import silent
from compiler import dialect
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights
from compiler.quantize.stream import quantize_checkpoint
from compiler.slots import Scheme
from compiler.targets import load_target
from compiler.targets.base import Job
from compiler.targets.coreml.options import CoreMLOptions
from recipes.corpus import stdlib_texts
from tests.compiler.conftest import MINISTRAL3, random_tensors, save

torch.set_num_threads(1)  # small matrices: a second thread only waits
TINY = Path(__file__).parents[4] / "recipes" / "checkpoints" / "tiny-ministral3"
INT4, INT8 = Scheme(4, 32), Scheme(8, 32)


@dataclass(frozen=True)
class Built:
    """A package with all that it was made from."""

    folder: Path
    job: Job
    runtime: dict[str, Any]

    def runner(self, *, exact: bool = False) -> CoreMLRunner:
        runner = CoreMLRunner(self.folder, self.runtime)
        runner.load(exact=exact, threads=1)
        return runner


Builder = Callable[..., Built]


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Ministral 3 with every feature of the real one, random weights."""
    return save(tmp_path_factory.mktemp("checkpoint") / "ministral", MINISTRAL3, random_tensors(MINISTRAL3))


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head of its own."""
    config = MINISTRAL3 | {"tie_word_embeddings": False}
    return save(tmp_path_factory.mktemp("checkpoint") / "untied", config, random_tensors(config))


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """build(checkpoint, scheme, max_tokens, others={slot: scheme}, **options); the same call gives the same package."""
    made: dict[str, Built] = {}

    def make(
        source: Path,
        scheme: Scheme,
        max_tokens: int,
        others: Mapping[str, Scheme] | None = None,
        **options: Any,
    ) -> Built:
        key = repr((source, scheme, max_tokens, sorted((others or {}).items()), sorted(options.items())))
        if key not in made:
            made[key] = _make(tmp_path_factory.mktemp("coreml"), source, scheme, max_tokens, others or {}, options)
        return made[key]

    return make


def _make(
    folder: Path, source: Path, scheme: Scheme, max_tokens: int, others: Mapping[str, Scheme], options: dict[str, Any]
) -> Built:
    checkpoint = Checkpoint(source)
    spec = decoder.read_spec(checkpoint.config)
    slots = decoder.slots(spec, list(checkpoint.tensors.names()))
    schemes = {s.name: scheme for s in slots if not s.is_vector} | dict(others)
    quantized = folder / "quantized"
    quantized.mkdir()
    rounders = dict.fromkeys(schemes, rtn.quantize)
    quantize_checkpoint(checkpoint, slots, schemes, rounders, quantized, checkpoint.config, silent)
    job = Job(source.name, spec, slots, schemes, max_tokens, PackedWeights(quantized), source, CoreMLOptions(**options))
    target = load_target("coreml")
    assert target.refusals(spec, slots, schemes, job.options) == []
    package = folder / "coreml"
    package.mkdir()
    return Built(package, job, target.build(job, package, silent))


def reference(job: Job, ids: np.ndarray[Any, Any]) -> torch.Tensor:
    """Logits [length, vocab] of the dialect's reference with the same dequantized weights; computed once."""
    key = (job.weights.path, ids.tobytes())
    if key not in _REFERENCES:
        _REFERENCES[key] = _reference(job, ids)
    return _REFERENCES[key]


_REFERENCES: dict[tuple[Path, bytes], torch.Tensor] = {}


def _reference(job: Job, ids: np.ndarray[Any, Any]) -> torch.Tensor:
    tokens = torch.from_numpy(ids[None])
    positions = torch.arange(len(ids))[None]
    with torch.no_grad(), dialect.weights(job.weights):
        logits, _ = decoder.build(job.spec, job.schemes)(tokens, positions, decoder.empty_caches(job.spec, len(ids)))
    return logits[0]


@pytest.fixture(scope="session")
def text() -> np.ndarray[Any, Any]:
    """164 token ids of held-out text for the shipped checkpoint: a 100-token prompt and 64 tokens after it."""
    encoder = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ids = encoder.encode(next(iter(stdlib_texts("held-out")))).ids[:164]
    assert len(ids) == 164
    return np.asarray(ids, np.int64)
