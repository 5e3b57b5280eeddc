"""The ONNX session: cached decoding is prefill, edits stay in memory, contradictions are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import EdgewrightError, Manifest, read_manifest, verify
from compiler.models.base import Model, read_model
from compiler.slots import Scheme
from runtime_tests.drivers.text import Decoder
from runtime_tests.onnx_edits import edited_graph
from runtime_tests.sessions import make_session
from runtime_tests.sessions.onnx import OnnxSession
from tests.compiler.conftest import MINISTRAL3, packed
from tests.compiler.targets.onnx.packages import make_job, opened

VOCAB, MAX_TOKENS = 512, 256
IDS = np.random.default_rng(3).integers(0, VOCAB, 100)


def ministral() -> Model:
    return read_model(MINISTRAL3 | {"vocab_size": VOCAB}, None, MAX_TOKENS)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests: read it, never change it."""
    folder = tmp_path_factory.mktemp("package")
    packed(make_job(ministral(), folder / "weights", Scheme(4, 32)), "onnx", folder / "onnx")
    return folder / "onnx"


def with_text(package: Path, old: str, new: str) -> Manifest:
    """The package's manifest with another text in it."""
    text = read_manifest(package).model_dump_json()
    assert old in text
    return Manifest.model_validate_json(text.replace(old, new))


def decoder(package: Path, *, exact: bool) -> Decoder:
    return Decoder(opened(package, exact=exact), read_manifest(package).components[0], MAX_TOKENS)


def test_prefill_and_decode_give_the_rows_of_all_logits(package: Path) -> None:
    found = decoder(package, exact=True)
    rows = [found.prefill(IDS[:60]), *(found.decode(int(token)) for token in IDS[60:])]
    logits = found.logits(IDS)  # opens another form of the same graph
    assert logits.shape == (100, VOCAB) and logits.dtype == np.float32
    np.testing.assert_allclose(np.stack(rows), logits[59:], atol=1e-4)
    np.testing.assert_allclose(found.prefill(IDS[:80]), logits[79], atol=1e-4)  # and back again


def test_states_are_zeros_after_a_reset(package: Path) -> None:
    session = opened(package, exact=False)
    given = {"input_ids": IDS[None, :40], "positions": np.arange(40)[None]}
    first = session.call("decoder", "prefill", **given)["logits"]
    session.call("decoder", "decode", input_ids=IDS[None, 50:51], positions=np.array([[40]]))
    session.reset()
    np.testing.assert_array_equal(session.call("decoder", "prefill", **given)["logits"], first)


def test_every_prefill_starts_from_an_empty_cache(package: Path) -> None:
    found = decoder(package, exact=False)
    first = found.prefill(IDS[:40])
    found.prefill(IDS[50:])
    found.decode(5)
    np.testing.assert_array_equal(found.prefill(IDS[:40]), first)


def test_results_are_the_callers(package: Path) -> None:
    found = decoder(package, exact=False)
    rows = [found.prefill(IDS[:4]), found.decode(1), found.decode(2)]
    kept = [row.copy() for row in rows]
    found.decode(3)
    np.testing.assert_array_equal(rows, kept)


def test_exact_and_shipped_differ_a_little(package: Path) -> None:
    exact, shipped = (decoder(package, exact=exact).logits(IDS) for exact in (True, False))
    assert 1e-4 < np.abs(exact - shipped).max() < 0.5


def test_greedy_feeds_back_the_most_likely_token(package: Path) -> None:
    found = decoder(package, exact=True)
    tokens = found.greedy(IDS[:10], 6)
    logits = found.logits(np.concatenate([IDS[:10], tokens[:-1]]))
    assert tokens == logits[9:].argmax(-1).tolist()


def test_every_entry_is_called_by_its_ports(package: Path) -> None:
    session = opened(package, exact=True)
    given = {"input_ids": IDS[None, :5], "positions": np.arange(5)[None]}
    assert session.call("decoder", "prefill", **given)["logits"].shape == (1, 1, VOCAB)
    assert session.call("decoder", "score", **given)["logits"].shape == (1, 5, VOCAB)
    for component, entry, changes, message in (
        ("decoder", "encode", {}, "has no decoder.encode"),
        ("encoder", "prefill", {}, "has no encoder.prefill"),
        ("decoder", "decode", {}, "decoder.decode: tokens is 5; it takes 1 to 1"),
        ("decoder", "prefill", {"positions": np.arange(4)[None]}, r"positions is int64 \[1, 4\], not int64"),
        ("decoder", "prefill", {"input_ids": IDS[None, :5].astype(np.int32)}, r"input_ids is int32 \[1, 5\]"),
        ("decoder", "prefill", {"mask": IDS}, "decoder.prefill takes input_ids, positions, not input_ids, mask"),
    ):
        with pytest.raises(EdgewrightError, match=message):
            session.call(component, entry, **given | changes)


def test_the_cache_is_in_memory_to_its_end(package: Path) -> None:
    """Memory figures must count the context that was asked for, not the part that a short test touches."""
    positions = 1 << 18
    cache = 4 * 2 * 32 * 4 * positions  # 268 MB, far above what else comes and goes
    # in a process of its own: earlier tests leave memory that would be used again
    script = (
        "import sys; from pathlib import Path; from artifacts import Manifest\n"
        "from device_farm import read_split\n"
        "from runtime_tests.sessions.onnx import OnnxSession\n"
        "session = OnnxSession(Path(sys.argv[1]), Manifest.model_validate_json(sys.argv[2]))\n"
        "before = read_split().anonymous; session.load(); print(read_split().anonymous - before)"
    )
    manifest = with_text(package, "[1,2,256,32]", f"[1,2,{positions},32]").model_dump_json()
    command = [sys.executable, "-c", script, str(package), manifest]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.8 * cache < int(done.stdout) < 1.2 * cache


def test_the_context_has_an_end(package: Path) -> None:
    session = opened(package, exact=False)
    session.call(
        "decoder", "prefill", input_ids=np.zeros((1, MAX_TOKENS), np.int64), positions=np.arange(MAX_TOKENS)[None]
    )
    one = np.zeros((1, 1), np.int64)
    with pytest.raises(EdgewrightError, match="1 tokens after 256 do not fit the context of 256"):
        session.call("decoder", "decode", input_ids=one, positions=one + MAX_TOKENS)
    with pytest.raises(EdgewrightError, match="1 tokens after -1 do not fit"):
        session.call("decoder", "decode", input_ids=one, positions=one - 1)
    for count in (0, MAX_TOKENS + 1):
        given = np.zeros((1, count), np.int64), np.arange(count)[None]
        with pytest.raises(EdgewrightError, match=f"tokens is {count}; it takes 1 to {MAX_TOKENS}"):
            session.call("decoder", "prefill", input_ids=given[0], positions=given[1])
        with pytest.raises(EdgewrightError, match="does not fit"):
            decoder(package, exact=False).prefill(given[0][0])


def test_edits_reach_every_node_and_leave_the_package_alone(package: Path) -> None:
    shipped = onnx.load(str(package / "model.onnx"), load_external_data=False).graph
    levels = [
        a.i for n in shipped.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "accuracy_level"
    ]
    assert levels and set(levels) == {4}
    edited = onnx.load_from_string(edited_graph(package / "model.onnx", exact=True, score=True)).graph
    matmuls = [node for node in edited.node if node.op_type == "MatMulNBits"]
    assert [a.i for n in matmuls for a in n.attribute if a.name == "accuracy_level"] == [0] * len(levels)
    assert len(edited.node) == len(shipped.node) - 1 and all(node.name != "last_position" for node in edited.node)
    decoder(package, exact=True).logits(IDS)
    assert verify(package) == []


def test_a_package_that_gives_all_logits(tmp_path: Path) -> None:
    job = make_job(ministral(), tmp_path / "weights", Scheme(4, 32), logits="all")
    packed(job, "onnx", tmp_path / "onnx")
    found = decoder(tmp_path / "onnx", exact=True)
    logits = found.logits(IDS)
    np.testing.assert_allclose(found.prefill(IDS[:50]), logits[49], atol=1e-4)
    np.testing.assert_allclose(found.decode(int(IDS[50])), logits[50], atol=1e-4)


def changed(runtime: Any, **changes: Any) -> dict[str, Any]:
    return {**runtime, "graphs": [{**runtime["graphs"][0], **changes}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../model.onnx"}, "would leave the artifact's folder"),
        ({"file": "gone.onnx"}, "names 'gone.onnx', which is no file of the artifact"),
        ({"entries": ["encode"]}, "is not of the components that it states"),
        ({"entries": []}, "entries"),
        ({"component": "encoder"}, "is not of the components that it states"),
        ({"inputs": {"ids": "input_ids"}}, "is not of the components that it states"),
        ({"inputs": {}}, "input_ids, position_ids are not as in edgewright.json"),
        ({"outputs": {"logits": "odds"}}, "odds are not as in edgewright.json"),
        ({"states": {"key_cache_9": {"input": None, "output": "x", "shape": [1], "shared": False}}}, "is not of"),
        ({"states": {}}, "past_key_values.0.key, past_key_values.0.value, .* are not as in edgewright.json"),
        ({"tokens": "some"}, "tokens"),
        ({"cache": {"positions": "positions", "most": 0, "mask": None}}, "most"),
    ],
)
def test_a_manifest_that_contradicts_the_package_is_refused(
    package: Path, change: dict[str, Any], message: str
) -> None:
    manifest = read_manifest(package)
    runtime = changed(manifest.runtime, **change)
    with pytest.raises(EdgewrightError, match=message):
        OnnxSession(package, manifest.model_copy(update={"runtime": runtime})).load()


def test_a_state_that_contradicts_its_port_is_refused(package: Path) -> None:
    manifest = read_manifest(package)
    states: Any = changed(manifest.runtime)["graphs"][0]["states"]
    for shape in ([1, 2, 128, 32], [1, 2, 256, 16], [1, 256, 32], []):
        runtime = changed(manifest.runtime, states=states | {"key_cache_1": states["key_cache_1"] | {"shape": shape}})
        with pytest.raises(EdgewrightError, match=r"model\.onnx is not of the components that it states"):
            OnnxSession(package, manifest.model_copy(update={"runtime": runtime}))


@pytest.mark.parametrize("shape", ["[1,4,256,32]", "[1,2,256,64]"])
def test_a_state_of_another_shape_than_the_graphs_is_refused(package: Path, shape: str) -> None:
    session = OnnxSession(package, with_text(package, "[1,2,256,32]", shape))
    with pytest.raises(EdgewrightError, match=r"past_key_values\.0\.key is tensor\(float\) .*, not as in edgewright"):
        session.load()


def test_an_unknown_target_has_no_session(package: Path) -> None:
    manifest = read_manifest(package).model_copy(update={"target": "abacus"})
    with pytest.raises(EdgewrightError, match="no session for the target 'abacus'"):
        make_session(package, manifest)


def test_genai_continues_as_the_session_does(package: Path) -> None:
    """That runtime loads the package as it is."""
    from runtime_tests.genai import generate

    prompt = IDS[:20]
    plain = decoder(package, exact=False).greedy(prompt, 12)
    found = generate(package, None, prompt.tolist(), {}, 12)["continuation"]
    assert found == plain[: len(found)] and (len(found) == len(plain) or found[-1] == 2)
    assert json.loads((package / "genai_config.json").read_text())["model"]["vocab_size"] == VOCAB
