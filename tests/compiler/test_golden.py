"""Golden vectors say what transformers says, for both sides, within their size; the same bytes on every run."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from artifacts import EdgewrightError, silent
from artifacts.formats.golden import FEWEST_POSITIONS, MAX_BYTES, room
from compiler import golden
from compiler.checkpoint import Checkpoint
from compiler.models.base import Model, read_model
from compiler.quantize.runner import OriginalWeights
from compiler.slots import Scheme
from compiler.text import Held
from runtime_tests.golden import read_golden
from tests.bench.synthetic import ROOT
from tests.compiler.conftest import MINISTRAL3, Quantizer, original

TINY = ROOT / "recipes" / "checkpoints" / "tiny-ministral3"
TOLERANCES = {"exact_max_abs_logit": 2e-4, "shipped_mean_kl": 2e-3, "shipped_min_top1": 0.97}


def load(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118  # not a mapping


def test_both_sides_are_what_transformers_computes(ministral: Path, quantized: Quantizer, tmp_path: Path) -> None:
    made, schemes, weights = quantized(ministral, Scheme(4, 32))
    tokens = np.random.default_rng(3).integers(0, MINISTRAL3["vocab_size"], (2, 50)).astype(np.int32)
    sides = {"reference": weights, "original": OriginalWeights(Checkpoint(ministral), made.slots)}
    golden.write(tmp_path / "g.safetensors", made, schemes, Held(tokens, "random"), sides, silent)
    found, metadata = load(tmp_path / "g.safetensors")
    assert metadata["original_positions"] == "16"
    for side, folder in (("reference", weights.path), ("original", ministral)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens.astype(np.int64))).logits
        logp = logits.log_softmax(-1)
        target = logp[:, :-1].gather(-1, torch.from_numpy(tokens[:, 1:, None].astype(np.int64)))[..., 0]
        np.testing.assert_allclose(found[f"{side}.target_logprob"], target, atol=2e-5)
        np.testing.assert_allclose(found[f"{side}.logsumexp"], logits.logsumexp(-1), atol=2e-5)
        np.testing.assert_allclose(found[f"{side}.top_logits"], logits.topk(64).values, atol=2e-5)
        chosen = logits.gather(-1, torch.from_numpy(found[f"{side}.top_ids"].astype(np.int64)))
        np.testing.assert_allclose(found[f"{side}.top_logits"], chosen, atol=2e-5)
        if side == "reference":
            full = [logits[i, j].numpy() for i, j in found["full.index"]]
            np.testing.assert_allclose(found["reference.full_logits"], full, atol=2e-5)
    assert "original.full_logits" not in found
    assert found["full.index"][-1].tolist() == [1, 49]


def test_float32_stays_far_below_every_tolerance() -> None:
    """The figure that the module states, on the checkpoint that it states it for."""
    model, table = original(TINY)
    tokens = golden.held_out(None, TINY, model, 1024).tokens[:2]
    found, exact = (
        golden.vectors(model, {}, tokens, table, [5, 2047], lambda done, total: None, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert 15 < exact["top_logits"].max() < 25
    for name in ("target_logprob", "logsumexp", "top_logits", "full_logits"):
        assert np.abs(found[name] - exact[name]).max() < 4e-5, name
    assert np.array_equal(found["top_ids"][..., 0], exact["top_ids"][..., 0])


def test_logits_beyond_float32_are_an_error_and_no_file(ministral: Path, tmp_path: Path) -> None:
    model, _ = original(ministral)

    class Broken(OriginalWeights):
        def rows(self, name: str, start: int = 0, stop: int | None = None) -> Any:
            return super().rows(name, start, stop) * (1e38 if "norm" in name else 1)

    table = Broken(Checkpoint(ministral), model.slots)
    tokens = Held(np.zeros((1, 8), np.int32), "zeros")
    with pytest.raises(EdgewrightError, match="logits that are NaN or too large for float32"):
        golden.write(tmp_path / "g", model, {}, tokens, {"reference": table, "original": table}, silent)
    assert not (tmp_path / "g").exists()


class Made:
    """Weights of any geometry that exist nowhere: every row from its number and its slot's name."""

    def __init__(self, model: Model) -> None:
        self._slots = {s.name: s for s in model.slots}

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        slot = self._slots[name]
        row = np.arange(start, slot.rows if stop is None else stop)[:, None] * 0.618 + np.arange(slot.columns)
        values = np.sin(row * 12.9898 + zlib.crc32(name.encode()) % 1000).astype(np.float32)
        return values[0] if slot.is_vector else values


def narrow(vocab: int, max_tokens: int = 64, **changes: int) -> Model:
    """One layer, 16 wide, of a vocabulary that may be anything."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "head_dim": 16}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 2**24}
    special = {"bos_token_id": min(1, vocab - 1), "eos_token_id": min(2, vocab - 1)}
    return read_model({**MINISTRAL3, **sizes, **special, "vocab_size": vocab, **changes}, None, max_tokens)


@pytest.mark.parametrize(
    ("vocab", "max_tokens", "positions", "full"),
    [
        (3, 100, 4700, 4),
        pytest.param(400_000, 4096, 1536, 2, marks=pytest.mark.nightly),
    ],
)
def test_every_vocabulary_gives_a_file_that_its_reader_takes(
    tmp_path: Path, vocab: int, max_tokens: int, positions: int, full: int
) -> None:
    model = narrow(vocab, max_tokens)
    held_out = golden.held_out(None, tmp_path, model, max_tokens)
    assert held_out.text == "random token ids (the checkpoint has no tokenizer)"
    table = Made(model)
    golden.write(tmp_path / "g", model, {}, held_out, {"reference": table, "original": table}, silent)
    assert golden.copy_with_tolerances(tmp_path / "g", tmp_path / "golden.safetensors", TOLERANCES)
    assert (tmp_path / "golden.safetensors").stat().st_size <= MAX_BYTES
    found = read_golden(tmp_path / "golden.safetensors")
    assert (found.tokens.size, len(found.full_index), found.vocabulary) == (positions, full, vocab)
    assert found.length == min(max_tokens, 1024 if positions > 2048 else 512)


def test_a_vocabulary_whose_logits_fit_nowhere_keeps_its_listed_ones(tmp_path: Path) -> None:
    model = narrow(900_000)
    table, tokens = Made(model), np.arange(64, dtype=np.int32).reshape(2, 32)
    sides = {"reference": table, "original": table}
    golden.write(tmp_path / "g", model, {}, Held(tokens, "made up"), sides, silent)
    golden.copy_with_tolerances(tmp_path / "g", tmp_path / "golden.safetensors", TOLERANCES)
    found = read_golden(tmp_path / "golden.safetensors")
    assert found.full_logits.shape == (0, 900_000) and found.full_index.shape == (0, 2)


@given(vocab=st.integers(1, 2**24), max_tokens=st.integers(2, 2**24), layers=st.integers(1, 200))
def test_positions_fit_and_suffice(vocab: int, max_tokens: int, layers: int) -> None:
    model = narrow(vocab, num_hidden_layers=layers, hidden_size=4096, intermediate_size=16384)
    count, length = golden._shape(model, vocab, max_tokens)
    assert FEWEST_POSITIONS <= count * length <= room(vocab).positions
    assert 2 <= length <= min(max_tokens, 1024) and count >= 2
    assert 8192 + count * length * 1044 + 16 * room(vocab).full * vocab // 4 <= MAX_BYTES


def test_a_model_of_billions_of_parameters_gets_the_fewest_positions() -> None:
    config = json.loads((ROOT / "recipes" / "mistral" / "ministral-3-3b.config.json").read_text())
    model = read_model(config, None, 4096)
    assert golden._shape(model, config["text_config"]["vocab_size"], 4096) == (2, 512)


def test_a_target_adds_its_tolerances(ministral: Path, tmp_path: Path) -> None:
    model, table = original(ministral)
    tokens = np.zeros((1, 8), np.int32)
    sides = {"reference": table, "original": table}
    golden.write(tmp_path / "g", model, {}, Held(tokens, "zeros"), sides, silent)
    assert golden.copy_with_tolerances(tmp_path / "g", tmp_path / "t", {"exact_max_abs_logit": 1e-4})
    before, after = load(tmp_path / "g"), load(tmp_path / "t")
    assert after[1] == {**before[1], "tolerances": '{"exact_max_abs_logit": 0.0001}'}
    for name, values in before[0].items():
        np.testing.assert_array_equal(after[0][name], values)


def test_nothing_is_copied_from_a_missing_or_damaged_file(tmp_path: Path) -> None:
    assert not golden.copy_with_tolerances(tmp_path / "none", tmp_path / "t", TOLERANCES)
    (tmp_path / "cut").write_bytes(b"cut short")
    assert not golden.copy_with_tolerances(tmp_path / "cut", tmp_path / "t", TOLERANCES)
    assert not (tmp_path / "t").exists()


WRITE = """
import sys
from pathlib import Path
from artifacts import silent
from compiler import golden
from compiler.checkpoint import Checkpoint
from compiler.text import Held
from compiler.models.base import read_model
from compiler.quantize.runner import OriginalWeights
source, out = map(Path, sys.argv[1:])
model = read_model(Checkpoint(source).config, None, 256)
table = OriginalWeights(Checkpoint(source), model.slots)
held_out = golden.held_out(None, source, model, 256)
held_out = Held(held_out.tokens[:4], held_out.text)
golden.write(out / "g", model, {}, held_out, {"reference": table, "original": table}, silent)
golden.copy_with_tolerances(out / "g", out / "golden.safetensors", {"a": 1.0, "b": 2.0})
"""


def test_bytes_depend_on_content_alone_and_others_may_read_them(tmp_path: Path) -> None:
    """Hash seed, threads and folder differ; the metadata's order must not, nor a single bit of a product."""
    written = []
    for at, threads in enumerate(("1", "5")):
        out = tmp_path / f"out-{at}"
        out.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": str(at), "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", WRITE, TINY, out], check=True, cwd=ROOT, env=environment, umask=0o022)
        written.append((out / "golden.safetensors").read_bytes())
        assert stat.S_IMODE((out / "golden.safetensors").stat().st_mode) == 0o644
    assert written[0] == written[1]


def held_out(folder: Path, name: str, content: str, max_tokens: int = 256) -> Held:
    (folder / name).write_text(content)
    return golden.held_out(folder / name, TINY, original(TINY)[0], max_tokens)


def test_the_built_in_text_is_named(tmp_path: Path) -> None:
    found = golden.held_out(None, TINY, original(TINY)[0], 1024)
    assert found.text == "held-out source files of the Python 3.11.7 standard library"
    assert found.tokens.shape == (4, 1024) and (found.tokens[:, 0] == 1).all()


def test_an_apps_own_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    sentence = "Die Lampe im Flur wird eingeschaltet. "
    found = held_out(tmp_path, "lamp.txt", sentence * 800)
    assert found.text.startswith("lamp.txt (sha256 ") and found.text.isprintable()
    assert found.tokens.shape[1] == 256 and found.tokens.size >= 4096
    whole = [1, *tokenizer.encode(sentence * 800, add_special_tokens=False).ids]
    assert found.tokens.ravel().tolist() == whole[: found.tokens.size]  # one document, from its beginning on
    lines = "\n".join(json.dumps({"text": f"{at} {sentence}"}) for at in range(400))
    several = held_out(tmp_path, "lamp.jsonl", lines)
    assert several.tokens.size >= 1024 and several.text.startswith("lamp.jsonl")
    turns = {"messages": [{"role": "user", "content": sentence}, {"role": "assistant", "content": "Ja."}]}
    chat = held_out(tmp_path, "chat.jsonl", "\n".join([json.dumps(turns)] * 400))
    inst = tokenizer.token_to_id("[INST]")
    assert chat.tokens[0, :2].tolist() == [1, inst]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "holds no text"),
        ("a.txt", "Licht an. " * 50, r"has \d+ tokens in sequences of 256; 1024 are needed; give more text"),
        ("a.jsonl", '{"prompt": "a"}', r"a\.jsonl:1: expected"),
    ],
)
def test_text_that_is_none_or_too_short_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(EdgewrightError, match=f"^validate.quality.text: .*{message}"):
        held_out(tmp_path, name, content)


def test_own_text_needs_a_tokenizer_that_is_the_models(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Licht an. " * 5000)
    model, _ = original(TINY)
    few = read_model({**Checkpoint(TINY).config, "vocab_size": 32}, None, 256)
    with pytest.raises(EdgewrightError, match=r"has no tokenizer\.json, which .*a\.txt needs"):
        golden.held_out(tmp_path / "a.txt", tmp_path, model, 256)
    with pytest.raises(EdgewrightError, match=r"tokenizer\.json: gives token \d+; the model knows 32 tokens"):
        golden.held_out(tmp_path / "a.txt", TINY, few, 256)
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(EdgewrightError, match=r"tokenizer\.json: is not a tokenizer that can be read"):
        golden.held_out(None, tmp_path, model, 256)
