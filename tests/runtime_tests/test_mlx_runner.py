"""The MLX runner: mlx-lm itself, in float32 and as shipped; cached decoding is prefill; what is missing is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from runtime_tests.runners import greedy, make_runner
from runtime_tests.runners.mlx import (
    METAL_ON_CPU,
    NO_COMPILER,
    MlxRunner,
    has_compiled_kernels,
    replace_half_kernels,
    restore_zero_points,
)

from artifacts import EdgewrightError, read_manifest
from runtime_tests.child import Job
from runtime_tests.process import run_child
from tests.edgewright.conftest import write_tokenizer
from tests.runtime_tests.conftest import HEAD_DIM, KV_HEADS, LAYERS, MAX_TOKENS, VOCAB, compile_package

IDS = np.random.default_rng(3).integers(0, VOCAB, 100)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT4 package of the random checkpoint with its golden vectors. Shared: read it, never change it."""
    return compile_package(tmp_path_factory.mktemp("mlx"), {}, "mlx")


def opened(artifact: Path, *, exact: bool, **changes: Any) -> MlxRunner:
    runner = MlxRunner(artifact, read_manifest(artifact).runtime | changes)
    runner.load(exact=exact)
    return runner


@pytest.mark.parametrize("exact", [True, False])
def test_cached_decoding_equals_prefill(artifact: Path, exact: bool) -> None:
    runner = opened(artifact, exact=exact)
    rows = [runner.prefill(IDS[:60]), *(runner.decode(int(token)) for token in IDS[60:])]
    logits = runner.logits(IDS)
    assert logits.shape == (100, VOCAB) and logits.dtype == np.float32
    np.testing.assert_allclose(np.stack(rows), logits[59:], atol=(1e-5 if exact else 5e-3) * np.ptp(logits))
    np.testing.assert_allclose(runner.prefill(IDS[:80]), logits[79], atol=(1e-5 if exact else 5e-3) * np.ptp(logits))


def test_every_prefill_starts_from_an_empty_cache(artifact: Path) -> None:
    runner = opened(artifact, exact=False)
    first = runner.prefill(IDS[:40])
    runner.prefill(IDS[50:])
    runner.decode(5)
    np.testing.assert_array_equal(runner.prefill(IDS[:40]), first)


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
    runner = MlxRunner(
        artifact, read_manifest(artifact).runtime | {"max_tokens": positions, "kv_bits": bits, "kv_group": 32}
    )
    runner.load()
    mx.clear_cache()
    weights = sum(file.stat().st_size for file in artifact.glob("model*.safetensors"))
    cache = LAYERS * 2 * KV_HEADS * HEAD_DIM * value_bytes * positions
    assert 0.9 * (weights + cache) < mx.get_active_memory() < 1.1 * (weights + cache)


def test_greedy_feeds_back_the_most_likely_token(artifact: Path) -> None:
    runner = opened(artifact, exact=True)
    tokens = greedy(runner, IDS[:10], 6)
    assert tokens == runner.logits(np.concatenate([IDS[:10], tokens[:-1]]))[9:].argmax(-1).tolist()


def test_the_context_has_an_end(artifact: Path) -> None:
    runner = opened(artifact, exact=False)
    runner.prefill(np.zeros(MAX_TOKENS, np.int64))
    with pytest.raises(EdgewrightError, match="1 tokens after 256 do not fit the context of 256"):
        runner.decode(1)
    with pytest.raises(EdgewrightError, match="do not fit"):
        runner.prefill(np.zeros(0, np.int64))


def test_contradictions_are_refused(artifact: Path, tmp_path: Path) -> None:
    runtime = read_manifest(artifact).runtime
    with pytest.raises(EdgewrightError, match="runtime: 1 validation error"):
        MlxRunner(artifact, {**runtime, "layers": 0})
    with pytest.raises(EdgewrightError, match=r"runtime\.kv_bits needs runtime\.kv_group"):
        MlxRunner(artifact, {**runtime, "kv_bits": 8})
    broken = Path(shutil.copytree(artifact, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    with pytest.raises(EdgewrightError, match="mlx-lm cannot load it: No safetensors found"):
        opened(broken, exact=True)


def test_what_is_metals_on_a_cpu_is_emulated(artifact: Path) -> None:
    """The float32 mode is MLX's own here and on a phone; as shipped, its kernels on a CPU are not those of a GPU."""
    assert opened(artifact, exact=True).stand_in is None
    assert opened(artifact, exact=False).stand_in == METAL_ON_CPU


@pytest.mark.parametrize(("bits", "group"), [(16, None), (8, 32)])
def test_text_goes_through_mlx_lms_own_tokenizer_and_generation(tmp_path: Path, bits: int, group: int | None) -> None:
    """Against Hugging Face's tokenizer, and against the runner token by token, in a cache of either kind."""
    from tokenizers import Tokenizer

    folder = compile_package(tmp_path, {"kv_bits": bits}, "mlx", prepare=lambda source: write_tokenizer(source, VOCAB))
    runner = opened(folder, exact=False)
    text = "def value(self):\n    return 1\n"
    said = runner.generate(text, 8)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert said["ids"] == ids and ids[0] == 1
    assert said["continuation"] == greedy(runner, np.asarray(ids), 8)[: len(said["continuation"])]
    assert len(said["continuation"]) == 8 or said["continuation"][-1] == 2


def test_without_a_tokenizer_there_is_no_text(artifact: Path) -> None:
    assert opened(artifact, exact=False).generate("def", 4) is None


def test_a_machine_without_a_compiler_is_told(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_compiled_kernels() and MlxRunner(artifact, read_manifest(artifact).runtime).warnings == ()
    monkeypatch.setenv("PATH", "/nowhere")
    assert MlxRunner(artifact, read_manifest(artifact).runtime).warnings == (NO_COMPILER,)
    assert "g++" in NO_COMPILER and "compiled CPU kernels are off" in NO_COMPILER


def test_a_package_proves_itself_in_a_child(artifact: Path) -> None:
    """Parity with its golden vectors, and a flipped nibble found by them."""
    job = Job(kind="quality", artifact=artifact, decode_tokens=4)
    ended = run_child(job, lambda event: None)
    assert ended.exit_code == 0, ended.stderr_tail
    figures = {f["name"]: f["value"] for f in ended.result["figures"]}
    checks = {check["name"]: check for check in ended.result["checks"]}
    for name in ("exact_max_abs_logit", "decode_exact_max_abs_logit"):
        assert checks[name]["verdict"] == "passed" and figures[name] < checks[name]["limit"] / 5
        assert checks[name]["obtained"] == "measured"
    for name in ("shipped_mean_kl", "perplexity_increase"):  # on a CPU nothing is Metal's
        assert (checks[name]["obtained"], checks[name]["stand_in"]) == ("emulated", METAL_ON_CPU)
    assert figures["shipped_mean_kl"] < 1e-4 and figures["shipped_top1"] > 0.99
    assert ended.result["warnings"] == []


def test_a_report_says_that_compiled_kernels_are_off(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewright.report import target_report
    from runtime_tests.validate import validate

    monkeypatch.setenv("PATH", str(artifact))
    found = validate(artifact, prompt_tokens=8, decode_tokens=2)
    assert found.passed and NO_COMPILER in found.warnings
    assert NO_COMPILER in target_report(artifact, read_manifest(artifact), found).warnings


def test_memory_phases_come_from_a_child(artifact: Path) -> None:
    ended = run_child(Job(kind="memory", artifact=artifact, prompt_tokens=32, decode_tokens=4), lambda event: None)
    assert ended.exit_code == 0, ended.stderr_tail
    assert [e["phase"] for e in ended.events if "phase" in e] == ["baseline", "load", "prefill", "steady"]


def test_one_flipped_nibble_is_seen(artifact: Path, tmp_path: Path) -> None:
    from compiler.tensors import read_header

    before = opened(artifact, exact=True).logits(IDS)
    damaged = Path(shutil.copytree(artifact, tmp_path / "damaged"))
    info = read_header(damaged / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[info.start + 100] ^= 0x80
    (damaged / "model.safetensors").write_bytes(data)
    runner = make_runner(damaged, read_manifest(artifact))
    runner.load(exact=True)
    assert np.abs(runner.logits(IDS) - before).max() > 1e-3
