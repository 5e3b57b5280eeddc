"""One import for all schemes: what a graph gets from it is what an import of its own gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.models.base import Model, read_model
from compiler.slots import Scheme
from compiler.targets.onnx import imported
from tests.compiler.conftest import packed, travelled

from .packages import make_job

CONFIG = {
    "model_type": "ministral3",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The entries that were captured, in a process that has imported none yet."""
    found: list[str] = []
    real = imported.capture
    monkeypatch.setattr(imported, "_kept", [])
    monkeypatch.setattr(imported, "capture", lambda *a: [found.append(a[1].name), real(*a)][1])
    return found


def read() -> Model:
    return read_model(CONFIG, None, 64, None)


def graph(folder: Path, scheme: Scheme, others: dict[str, Scheme] | None = None) -> bytes:
    packed(make_job(read(), folder / "weights", scheme, others), "onnx", folder / "package")
    return (folder / "package" / "model.onnx").read_bytes()


def test_schemes_share_an_import_and_get_what_one_of_their_own_gives(
    tmp_path: Path, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"model.embed_tokens": Scheme(8, 32)}
    schemes = [Scheme(4, 32), Scheme(8, 64, False), Scheme(4, 0)]
    shared = [graph(tmp_path / f"shared-{at}", scheme, table) for at, scheme in enumerate(schemes)]
    assert len(captures) == 1 and len(set(shared)) == len(schemes)
    for at, scheme in enumerate(schemes):
        monkeypatch.setattr(imported, "_kept", [])
        assert graph(tmp_path / f"own-{at}", scheme, table) == shared[at]
    assert len(captures) == 1 + len(schemes)


def test_what_is_fused_otherwise_is_imported_anew(tmp_path: Path, captures: list[str]) -> None:
    fused = graph(tmp_path / "fused", Scheme(4, 32))
    other = {"model.layers.0.self_attn.q_proj": Scheme(8, 32)}
    assert graph(tmp_path / "apart", Scheme(4, 32), other) != fused and len(captures) == 2


def test_a_wide_model_is_imported_ahead_to_the_same_graph(
    tmp_path: Path, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = graph(tmp_path / "here", Scheme(4, 32))
    monkeypatch.setattr(imported, "_kept", [])
    monkeypatch.setattr(imported, "apart", travelled)
    monkeypatch.setattr(Model, "wide", True)
    assert graph(tmp_path / "ahead", Scheme(4, 32)) == here
    assert len(captures) == 2 and len(imported._kept) == 1
