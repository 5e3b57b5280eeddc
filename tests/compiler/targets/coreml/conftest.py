"""Core ML packages of small checkpoints: the trained one that ships, and random ones of odd geometries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from artifacts import Manifest, read_manifest
from compiler.models.decoder import DecoderSpec, read_spec
from compiler.slots import Scheme
from compiler.targets.base import BuildJob
from compiler.targets.coreml.options import CoreMLOptions
from recipes.corpus import stdlib_texts
from runtime_tests.drivers.text import Decoder
from runtime_tests.sessions.coreml import CoreMLSession
from tests.compiler.conftest import (
    MINISTRAL3,
    converting_here,
    job_logits,
    packed,
    quantized_job,
    random_tensors,
    save,
    shared_folder,
)

torch.set_num_threads(1)  # small matrices: a second thread only waits
TINY = Path(__file__).parents[4] / "recipes" / "checkpoints" / "tiny-ministral3"
INT4, INT8 = Scheme(4, 32), Scheme(8, 32)


@dataclass(frozen=True)
class Built:
    """A package with all that it was made from."""

    folder: Path
    job: BuildJob
    manifest: Manifest

    @property
    def spec(self) -> DecoderSpec:
        return read_spec(self.job.model.config)

    @property
    def max_tokens(self) -> int:
        found = self.job.model.constants["max_tokens"]
        assert isinstance(found, int)
        return found

    def session(self, *, exact: bool = False) -> CoreMLSession:
        session = CoreMLSession(self.folder, self.manifest)
        session.load(exact=exact, threads=1)
        return session

    def decoder(self, *, exact: bool = False) -> Decoder:
        return Decoder(self.session(exact=exact), self.manifest.components[0], self.max_tokens)


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
    """build(checkpoint, scheme, max_tokens, others={slot: scheme}, **options): converted in this process, once for all
    workers. The checkpoint goes by its name."""

    def make(
        source: Path,
        scheme: Scheme,
        max_tokens: int,
        others: Mapping[str, Scheme] | None = None,
        **options: Any,
    ) -> Built:
        key = repr((source.name, scheme, max_tokens, sorted((others or {}).items()), sorted(options.items())))
        with shared_folder(tmp_path_factory, f"coreml-{sha256(key.encode()).hexdigest()[:16]}") as folder:
            given: dict[str, Any] = {"max_tokens": max_tokens, "name": source.name, "again": True}
            job = quantized_job(folder / "quantized", source, CoreMLOptions(**options), scheme, others, **given)
            if not (folder / "coreml").exists():
                with converting_here():
                    packed(job, "coreml", folder / "coreml")
        return Built(folder / "coreml", job, read_manifest(folder / "coreml"))

    return make


def reference(job: BuildJob, ids: np.ndarray[Any, Any]) -> torch.Tensor:
    """Logits [length, vocab] of the dialect's reference with the same dequantized weights; computed once."""
    key = (job.weights.path, ids.tobytes())
    if key not in _REFERENCES:
        _REFERENCES[key] = torch.from_numpy(job_logits(job, ids[None])[0])
    return _REFERENCES[key]


_REFERENCES: dict[tuple[Path, bytes], torch.Tensor] = {}


@pytest.fixture(scope="session")
def text() -> np.ndarray[Any, Any]:
    """164 token ids of held-out text for the shipped checkpoint: a 100-token prompt and 64 tokens after it."""
    encoder = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ids = encoder.encode(next(iter(stdlib_texts("held-out")))).ids[:164]
    assert len(ids) == 164
    return np.asarray(ids, np.int64)
