"""The ONNX runner: cached decoding is prefill, edits stay in memory, contradictions are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import EdgewrightError, read_manifest, verify
from runtime_tests.runners import greedy, make_runner
from runtime_tests.runners.onnx import OnnxRunner, edited_graph
from tests.runtime_tests.conftest import HEAD_DIM, KV_HEADS, LAYERS, MAX_TOKENS, VOCAB, compile_package

IDS = np.random.default_rng(3).integers(0, VOCAB, 100)


def opened(package: Path, *, exact: bool) -> OnnxRunner:
    runner = OnnxRunner(package, read_manifest(package).runtime)
    runner.load(exact=exact)
    return runner


def test_prefill_and_decode_give_the_rows_of_all_logits(package: Path) -> None:
    runner = opened(package, exact=True)
    rows = [runner.prefill(IDS[:60]), *(runner.decode(int(token)) for token in IDS[60:])]
    logits = runner.logits(IDS)  # opens another graph of the same package
    assert logits.shape == (100, VOCAB) and logits.dtype == np.float32
    np.testing.assert_allclose(np.stack(rows), logits[59:], atol=1e-4)
    np.testing.assert_allclose(runner.prefill(IDS[:80]), logits[79], atol=1e-4)  # and back again


def test_every_prefill_starts_from_an_empty_cache(package: Path) -> None:
    runner = opened(package, exact=False)
    first = runner.prefill(IDS[:40])
    runner.prefill(IDS[50:])
    runner.decode(5)
    np.testing.assert_array_equal(runner.prefill(IDS[:40]), first)


def test_results_are_the_callers(package: Path) -> None:
    runner = opened(package, exact=False)
    rows = [runner.prefill(IDS[:4]), runner.decode(1), runner.decode(2)]
    kept = [row.copy() for row in rows]
    runner.decode(3)
    np.testing.assert_array_equal(rows, kept)


def test_exact_and_shipped_differ_a_little(package: Path) -> None:
    exact, shipped = (opened(package, exact=exact).logits(IDS) for exact in (True, False))
    assert 1e-4 < np.abs(exact - shipped).max() < 0.5


def test_greedy_feeds_back_the_most_likely_token(package: Path) -> None:
    runner = opened(package, exact=True)
    tokens = greedy(runner, IDS[:10], 6)
    logits = runner.logits(np.concatenate([IDS[:10], tokens[:-1]]))
    assert tokens == logits[9:].argmax(-1).tolist()


def test_the_cache_is_in_memory_to_its_end(package: Path) -> None:
    """Memory figures must count the context that was asked for, not the part that a short test touches."""
    positions = 1 << 18
    cache = LAYERS * 2 * KV_HEADS * HEAD_DIM * 4 * positions  # 268 MB, far above what else comes and goes
    # in a process of its own: earlier tests leave memory that would be used again
    script = (
        "import sys; from pathlib import Path; from artifacts import read_manifest\n"
        "from device_farm import read_split\n"
        "from runtime_tests.runners.onnx import OnnxRunner\n"
        f"folder = Path(sys.argv[1]); runtime = read_manifest(folder).runtime | {{'max_tokens': {positions}}}\n"
        "runner = OnnxRunner(folder, runtime); before = read_split().anonymous; runner.load()\n"
        "print(read_split().anonymous - before)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(package)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.8 * cache < int(done.stdout) < 1.2 * cache


def test_the_context_has_an_end(package: Path) -> None:
    runner = opened(package, exact=False)
    runner.prefill(np.zeros(MAX_TOKENS, np.int64))
    with pytest.raises(EdgewrightError, match="1 tokens after 256 do not fit the context of 256"):
        runner.decode(1)
    for count in (0, MAX_TOKENS + 1):
        with pytest.raises(EdgewrightError, match="do not fit"):
            runner.prefill(np.zeros(count, np.int64))


def test_edits_reach_every_node_and_leave_the_package_alone(package: Path) -> None:
    shipped = onnx.load(str(package / "model.onnx"), load_external_data=False).graph
    levels = [
        a.i for n in shipped.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "accuracy_level"
    ]
    assert levels and set(levels) == {4}
    edited = onnx.load_from_string(edited_graph(package / "model.onnx", exact=True, all_positions=True)).graph
    matmuls = [node for node in edited.node if node.op_type == "MatMulNBits"]
    assert [a.i for n in matmuls for a in n.attribute if a.name == "accuracy_level"] == [0] * len(levels)
    assert len(edited.node) == len(shipped.node) - 1 and all(node.name != "last_position" for node in edited.node)
    opened(package, exact=True).logits(IDS)
    assert verify(package) == []


def test_a_package_that_gives_all_logits(tmp_path: Path) -> None:
    package = compile_package(tmp_path, {"logits": "all"})
    runner = opened(package, exact=True)
    logits = runner.logits(IDS)
    np.testing.assert_allclose(runner.prefill(IDS[:50]), logits[49], atol=1e-4)
    np.testing.assert_allclose(runner.decode(int(IDS[50])), logits[50], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, "4 cache inputs, 3 layers need two each"),
        ({"kv_heads": 4}, r"not as in edgewright\.json"),
        ({"head_dim": 64}, r"not as in edgewright\.json"),
        ({"model": "../model.onnx"}, "would leave the artifact's folder"),
        ({"model": "gone.onnx"}, "names 'gone.onnx', which is no file of the artifact"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"logits": None}, "logits"),
    ],
)
def test_a_manifest_that_contradicts_the_package_is_refused(
    package: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(EdgewrightError, match=message):
        OnnxRunner(package, read_manifest(package).runtime | change).load()


def test_an_unknown_target_has_no_runner(package: Path) -> None:
    manifest = read_manifest(package).model_copy(update={"target": "abacus"})
    with pytest.raises(EdgewrightError, match="no runner for the target 'abacus'"):
        make_runner(package, manifest)
