"""The MLX session: mlx-lm itself, in float32 and as shipped; cached decoding is prefill; what is missing is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from artifacts import EdgewrightError, read_manifest
from compiler.slots import Scheme
from compiler.targets.mlx.options import MlxOptions
from runtime_tests.drivers.text import Decoder
from runtime_tests.sessions import make_session
from runtime_tests.sessions.mlx import (
    METAL_ON_CPU,
    MlxSession,
    replace_half_kernels,
    restore_zero_points,
)
from tests.compiler.conftest import packed, quantized_job
from tests.runtime_tests.conftest import (
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    MAX_TOKENS,
    VOCAB,
    write_checkpoint,
)

IDS = np.random.default_rng(3).integers(0, VOCAB, 100)


def build(folder: Path, prepare: Callable[[Path], None] = lambda source: None, **options: Any) -> Path:
    """An INT4 package of the random checkpoint. prepare: what is done to the checkpoint's folder before."""
    source = folder / "checkpoint"
    source.mkdir()
    write_checkpoint(source)
    prepare(source)
    job = quantized_job(folder / "quantized", source, MlxOptions(**options), Scheme(4, 32), max_tokens=MAX_TOKENS)
    packed(job, "mlx", folder / "mlx")
    return folder / "mlx"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: read it, never change it."""
    return build(tmp_path_factory.mktemp("mlx"))


def session(artifact: Path, **changes: Any) -> MlxSession:
    manifest = read_manifest(artifact)
    return MlxSession(artifact, manifest.model_copy(update={"runtime": manifest.runtime | changes}))


def loaded(artifact: Path, *, exact: bool, **changes: Any) -> MlxSession:
    found = session(artifact, **changes)
    found.load(exact=exact)
    return found


def opened(artifact: Path, *, exact: bool, **changes: Any) -> Decoder:
    return Decoder(loaded(artifact, exact=exact, **changes), read_manifest(artifact).components[0], MAX_TOKENS)


@pytest.mark.parametrize("exact", [True, False])
def test_cached_decoding_equals_prefill(artifact: Path, exact: bool) -> None:
    decoder = opened(artifact, exact=exact)
    rows = [decoder.prefill(IDS[:60]), *(decoder.decode(int(token)) for token in IDS[60:])]
    logits = decoder.logits(IDS)
    assert logits.shape == (100, VOCAB) and logits.dtype == np.float32
    np.testing.assert_allclose(np.stack(rows), logits[59:], atol=(1e-5 if exact else 5e-3) * np.ptp(logits))
    np.testing.assert_allclose(decoder.prefill(IDS[:80]), logits[79], atol=(1e-5 if exact else 5e-3) * np.ptp(logits))


def test_every_prefill_starts_from_an_empty_cache(artifact: Path) -> None:
    decoder = opened(artifact, exact=False)
    first = decoder.prefill(IDS[:40])
    decoder.prefill(IDS[50:])
    decoder.decode(5)
    np.testing.assert_array_equal(decoder.prefill(IDS[:40]), first)


def test_as_shipped_is_float16_with_wide_sums(artifact: Path) -> None:
    """Nearer to float32 than MLX's own half-precision kernels on a CPU, whose sums are float16."""
    exact = opened(artifact, exact=True).logits(IDS)
    shipped = opened(artifact, exact=False)
    own = shipped.logits(IDS)
    assert 1e-4 < np.abs(own - exact).max() < 5e-3 * np.ptp(exact)
    from mlx_lm.utils import load_model

    plain = np.array(load_model(artifact)[0](mx.array(IDS)[None])[0].astype(mx.float32))
    assert np.abs(own - exact).mean() <= np.abs(plain - exact).mean()


def test_the_replaced_kernels_compute_the_same(artifact: Path) -> None:
    """In float32 there is nothing to choose between them: both are the package's weights."""
    from mlx_lm.utils import load_model

    model = load_model(artifact)[0]
    model.set_dtype(mx.float32)
    expected = np.array(model(mx.array(IDS)[None]))
    replace_half_kernels(model)
    np.testing.assert_allclose(np.array(model(mx.array(IDS)[None])), expected, atol=1e-5 * np.ptp(expected))


def test_biases_return_to_whole_zero_points_and_wrong_ones_stay(artifact: Path) -> None:
    from mlx_lm.utils import load_model

    model = load_model(artifact)[0]
    model.set_dtype(mx.float32)
    layer = model.model.layers[0].mlp.up_proj
    true = layer.scales * mx.array([-11.0, -5.0])[: layer.scales.shape[1]]
    layer.biases = true.astype(mx.float16).astype(mx.float32)
    assert not mx.array_equal(layer.biases, true)
    restore_zero_points(model)
    assert mx.array_equal(layer.biases, true)
    wrong = true * 1.01
    layer.biases = wrong
    restore_zero_points(model)
    assert mx.array_equal(layer.biases, wrong)


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.02), (4, 0.3)])
def test_a_quantized_cache_decodes_near_the_full_one(artifact: Path, bits: int, limit: float) -> None:
    quantized = opened(artifact, exact=False, kv_bits=bits, kv_group=32)
    full = opened(artifact, exact=False)
    rows, expected = (
        np.stack([r.prefill(IDS[:60]), *(r.decode(int(token)) for token in IDS[60:])]) for r in (quantized, full)
    )
    error = np.abs(rows - expected).max() / np.ptp(expected)
    assert 1e-5 < error < limit
    np.testing.assert_allclose(quantized.logits(IDS)[59:], rows, atol=5e-3 * np.ptp(expected))


@pytest.mark.parametrize(("bits", "value_bytes"), [(16, 2), (8, 1 + 4 / 32)])
def test_the_cache_is_in_memory_to_its_end(artifact: Path, bits: int, value_bytes: float) -> None:
    """Memory figures must count the context that was asked for, not the part that a short test touches."""
    positions = 1 << 18
    found = loaded(artifact, exact=False, max_tokens=positions, kv_bits=bits, kv_group=32)
    mx.clear_cache()
    weights = sum(file.stat().st_size for file in artifact.glob("model*.safetensors"))
    cache = LAYERS * 2 * KV_HEADS * HEAD_DIM * value_bytes * positions
    assert 0.9 * (weights + cache) < mx.get_active_memory() < 1.1 * (weights + cache)
    assert found.footprint() == [], "the runtime runs here: what it holds is measured"


def test_greedy_feeds_back_the_most_likely_token(artifact: Path) -> None:
    decoder = opened(artifact, exact=True)
    tokens = decoder.greedy(IDS[:10], 6)
    assert tokens == decoder.logits(np.concatenate([IDS[:10], tokens[:-1]]))[9:].argmax(-1).tolist()


def test_the_context_has_an_end(artifact: Path) -> None:
    decoder = opened(artifact, exact=False)
    decoder.prefill(np.zeros(MAX_TOKENS, np.int64))
    with pytest.raises(EdgewrightError, match="1 tokens after 256 do not fit the context of 256"):
        decoder.decode(1)
    given = {"input_ids": np.array([[1]]), "positions": np.array([[MAX_TOKENS]])}
    with pytest.raises(EdgewrightError, match="1 tokens after 256 do not fit the context of 256"):
        decoder.session.call("decoder", "decode", **given)
    with pytest.raises(EdgewrightError, match="does not fit"):
        decoder.prefill(np.zeros(0, np.int64))


def test_every_entry_is_called_by_its_ports(artifact: Path) -> None:
    found = loaded(artifact, exact=True)
    given = {"input_ids": IDS[None, :5], "positions": np.arange(5)[None]}
    assert found.call("decoder", "prefill", **given)["logits"].shape == (1, 1, VOCAB)
    found.reset()
    assert found.call("decoder", "score", **given)["logits"].shape == (1, 5, VOCAB)
    for component, entry, changes, message in (
        ("decoder", "encode", {}, "has no decoder.encode"),
        ("encoder", "prefill", {}, "has no encoder.prefill"),
        ("decoder", "decode", {}, "decoder.decode: tokens is 5; it takes 1 to 1"),
        ("decoder", "prefill", {}, "positions go on from 5, not from 0"),
        ("decoder", "prefill", {"input_ids": IDS[None, :5].astype(np.int32)}, r"input_ids is int32 \[1, 5\]"),
        ("decoder", "prefill", {"mask": IDS}, "decoder.prefill takes input_ids, positions, not input_ids, mask"),
    ):
        with pytest.raises(EdgewrightError, match=message):
            found.call(component, entry, **given | changes)


def test_contradictions_are_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match=r"runtime\.layers: Input should be greater than 0"):
        session(artifact, layers=0)
    with pytest.raises(EdgewrightError, match=r"runtime\.kv_bits needs runtime\.kv_group"):
        session(artifact, kv_bits=8)
    broken = Path(shutil.copytree(artifact, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    with pytest.raises(EdgewrightError, match="mlx-lm cannot load it: No safetensors found"):
        opened(broken, exact=True)


def test_what_is_metals_on_a_cpu_is_emulated(artifact: Path) -> None:
    """The float32 mode is MLX's own here and on a phone; as shipped, its kernels on a CPU are not those of a GPU."""
    assert session(artifact).stand_in is None
    assert loaded(artifact, exact=True).stand_in is None
    assert loaded(artifact, exact=False).stand_in == METAL_ON_CPU


@pytest.mark.parametrize(("bits", "group"), [(16, None), (8, 32)])
def test_text_goes_through_mlx_lms_own_tokenizer_and_generation(tmp_path: Path, bits: int, group: int | None) -> None:
    """Against Hugging Face's tokenizer, and against the driver token by token, in a cache of either kind."""
    from tokenizers import Tokenizer

    from tests.edgewright.conftest import write_tokenizer

    folder = build(tmp_path, prepare=lambda source: write_tokenizer(source, VOCAB), kv_bits=bits)
    assert read_manifest(folder).runtime["kv_group"] == group
    decoder = opened(folder, exact=False)
    text = "def value(self):\n    return 1\n"
    said = decoder.session.generate(text, 8)  # type: ignore[attr-defined]  # of sessions that read text themselves
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert said["ids"] == ids and ids[0] == 1
    assert said["continuation"] == decoder.greedy(np.asarray(ids), 8)[: len(said["continuation"])]
    assert len(said["continuation"]) == 8 or said["continuation"][-1] == 2


def test_without_a_tokenizer_there_is_no_text(artifact: Path) -> None:
    assert loaded(artifact, exact=False).generate("def", 4) is None


def test_one_flipped_nibble_is_seen(artifact: Path, tmp_path: Path) -> None:
    from compiler.tensors import read_header

    before = opened(artifact, exact=True).logits(IDS)
    damaged = Path(shutil.copytree(artifact, tmp_path / "damaged"))
    info = read_header(damaged / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[info.start + 100] ^= 0x80
    (damaged / "model.safetensors").write_bytes(data)
    manifest = read_manifest(artifact)
    found = make_session(damaged, manifest)
    found.load(exact=True)
    after = Decoder(found, manifest.components[0], MAX_TOKENS).logits(IDS)
    assert np.abs(after - before).max() > 1e-3
