"""Earlier work is used again when, and only when, all that it depends on is the same."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from artifacts import EdgewrightError, ManifestDraft, read_manifest, silent, verify
from artifacts.manifest import RecipeEntry
from compiler import keys, pipeline
from compiler.checkpoint import Checkpoint
from compiler.expectations import write_vectors
from compiler.models.interface import described
from compiler.quantize.methods import method_options
from compiler.quantized import Quantized
from compiler.targets import target_options
from recipes.schema import Recipe, recipe_model
from runtime_tests.golden import Golden, read_golden
from tests.compiler.conftest import random_tensors
from tests.compiler.quantize.conftest import CONFIG, TINY, save

RTN = {"match": "*", "bits": 4, "group": 32}
GPTQ = {**RTN, "match": "model.layers.0.self_attn.o_proj", "method": "gptq"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def recipe(*rules: dict[str, Any], **more: Any) -> Recipe:
    content = {
        "name": "small",
        "checkpoint": {"path": "."},
        "quantize": {"rules": rules or [RTN], "calibration": {"tokens": 256}},
        "context": {"max_tokens": 64},
        "targets": {"mlx": {}},  # the check of which is the quickest
    }
    return recipe_model(target_options(), method_options()).model_validate(content | more)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "source", random_tensors(CONFIG))


def draft(quantized: Quantized) -> ManifestDraft:
    """Of a package for ONNX, as far as its vectors depend on it."""
    return ManifestDraft(
        created_by={},
        recipe=RecipeEntry(name="small", digest="0" * 64),
        target="onnx",
        family=quantized.model.family,
        checkpoint=quantized.checkpoint,
        components=tuple(described(quantized.model, {})),
        runtime={},
        weights_digest=quantized.digest,
    )


@dataclass(frozen=True)
class Out:
    """One output folder, run into again and again."""

    folder: Path

    def run(self, source: Path, used: Recipe) -> Golden:
        checkpoint = Checkpoint(source)
        quantized = pipeline.quantize(used, checkpoint, source.name, None, self.quantized, silent)
        package = self.folder / "package"
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir()
        write_vectors(draft(quantized), quantized, checkpoint, package, silent)
        assert [path.name for path in package.iterdir()] == ["golden.safetensors"]
        return read_golden(package / "golden.safetensors")

    @property
    def quantized(self) -> Path:
        return self.folder / "quantized"

    @property
    def weights(self) -> int:
        """Which file the weights are: another one after they were made again."""
        return (self.quantized / "model.safetensors").stat().st_ino

    @property
    def caches(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(".golden-*"))


@pytest.fixture
def out(tmp_path: Path) -> Out:
    (tmp_path / "out").mkdir()
    return Out(tmp_path / "out")


def test_a_tokenizer_that_comes_later_replaces_random_tokens_and_no_weights(source: Path, out: Out) -> None:
    for name in TOKENIZER:
        (source / name).unlink()
    first = out.run(source, recipe())
    weights, evidence = out.weights, (out.quantized / "quantization.json").read_bytes()
    assert first.text.startswith("random token ids") and not (out.quantized / "tokenizer.json").exists()
    for name in TOKENIZER:
        shutil.copyfile(TINY / name, source / name)
    second = out.run(source, recipe())
    assert second.text == "held-out source files of the Python 3.11.7 standard library"
    assert not (first.tokens == second.tokens).all()
    assert (out.quantized / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert out.weights == weights and verify(out.quantized) == []
    assert (out.quantized / "quantization.json").read_bytes() == evidence


def test_another_tokenizer_makes_other_calibrated_weights(source: Path, out: Out) -> None:
    out.run(source, recipe(GPTQ, RTN))
    weights = out.weights
    content = json.loads((source / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:100]
    (source / "tokenizer.json").write_text(json.dumps(content))
    out.run(source, recipe(GPTQ, RTN))
    assert out.weights != weights


def test_a_change_that_leaves_size_and_time_alone_is_seen(source: Path, out: Out) -> None:
    file = source / "model.safetensors"
    before = out.run(source, recipe())
    weights, stat = out.weights, file.stat()
    content = bytearray(file.read_bytes())
    content[-2] ^= 0x40  # one weight, by half
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    after = out.run(source, recipe())
    assert out.weights != weights
    assert not (after.original.logsumexp == before.original.logsumexp).all()


def test_the_same_content_elsewhere_is_no_change(source: Path, out: Out, tmp_path: Path) -> None:
    out.run(source, recipe())
    weights, caches = out.weights, out.caches
    shutil.copytree(source, tmp_path / "copy")
    out.run(tmp_path / "copy", recipe())
    assert (out.weights, out.caches) == (weights, caches)
    assert read_manifest(out.quantized).checkpoint.source == "copy"


def test_what_does_not_touch_weights_is_renewed_beside_them(source: Path, out: Out) -> None:
    out.run(source, recipe())
    weights = out.weights
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "pad_token_id": 3}))
    out.run(source, recipe(name="other"))
    assert out.weights == weights and verify(out.quantized) == []
    renewed = json.loads((out.quantized / "config.json").read_text())
    assert renewed["pad_token_id"] == 3 and renewed["quantization_config"]["quant_method"] == "compressed-tensors"
    manifest = read_manifest(out.quantized)
    assert manifest.recipe.name == "other"
    assert manifest.checkpoint.files[0].size == (source / "config.json").stat().st_size


def test_golden_vectors_follow_text_and_context_and_leave_one_cache(source: Path, out: Out, tmp_path: Path) -> None:
    (out.folder / ".golden-0123456789abcdef-64.safetensors").write_bytes(b"of an earlier version")
    out.run(source, recipe())
    first = out.caches
    assert len(first) == 1
    (tmp_path / "own.txt").write_text("Licht an. " * 4000)
    quality = {"quality": {"text": str(tmp_path / "own.txt")}}
    own = out.run(source, recipe(validate=quality))
    assert own.text.startswith("own.txt (sha256 ")
    second = out.caches
    (tmp_path / "own.txt").write_text("Licht aus. " * 4000)
    assert out.run(source, recipe(validate=quality)).text != own.text
    third = out.caches
    out.run(source, recipe(context={"max_tokens": 32}))
    assert len({*first, *second, *third, *out.caches}) == 4 and len(out.caches) == 1


def test_a_damaged_cache_is_made_again(source: Path, out: Out) -> None:
    first = out.run(source, recipe())
    (cache,) = out.folder.glob(".golden-*")
    cache.write_bytes(b"cut short")
    assert (out.run(source, recipe()).reference.logsumexp == first.reference.logsumexp).all()


def test_the_code_of_a_stage_is_part_of_its_key(
    source: Path, out: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.run(source, recipe())
    weights, caches = out.weights, out.caches
    code = Path(shutil.copytree(keys._HERE, tmp_path / "code"))
    monkeypatch.setattr(keys, "_HERE", code)
    (code / "targets" / "onnx" / "target.py").write_text("# has no part in either")
    out.run(source, recipe())
    assert (out.weights, out.caches) == (weights, caches)
    (code / "golden.py").write_text("# has no part in weights")
    out.run(source, recipe())
    assert out.weights == weights and out.caches != caches
    (code / "quantize" / "rtn.py").write_text("# another way to round")
    out.run(source, recipe())
    assert out.weights != weights


def test_an_unchanged_checkpoint_is_hashed_once(source: Path, out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    original = keys._hashed
    monkeypatch.setattr(keys, "_hashed", lambda file: [hashed.append(file.name), original(file)][1])
    monkeypatch.setattr(keys, "_GRANULARITY_NS", -(10**18))
    out.run(source, recipe())
    out.run(source, recipe())
    assert hashed == ["model.safetensors"]
    out.run(source, recipe({**RTN, "bits": 8}))  # read anew for what the manifest says
    assert hashed == ["model.safetensors"] * 2
    (out.folder / ".digests.json").write_text("{")
    out.run(source, recipe({**RTN, "bits": 8}))
    assert hashed == ["model.safetensors"] * 3


def test_a_file_too_new_to_tell_is_not_remembered(source: Path, out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_GRANULARITY_NS", 10**12)  # a slow machine may hash it seconds later
    os.utime(source / "model.safetensors")
    out.run(source, recipe())
    assert not (out.folder / ".digests.json").exists()


def test_text_that_calibration_looks_at_is_not_held_out(source: Path, out: Out, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("Licht an. " * 4000)
    quality = {"quality": {"text": str(tmp_path / "b.txt")}}
    calibration = {"text": str(tmp_path / "a.txt"), "tokens": 256}
    out.run(source, recipe(validate=quality, quantize={"rules": [RTN], "calibration": calibration}))
    with pytest.raises(
        EdgewrightError, match=r"^validate\.quality\.text: .*b\.txt is what quantize\.calibration looks"
    ):
        out.run(source, recipe(validate=quality, quantize={"rules": [GPTQ, RTN], "calibration": calibration}))


def test_a_quality_text_that_is_missing_is_named_before_any_work(source: Path, out: Out) -> None:
    with pytest.raises(EdgewrightError, match=r"^validate\.quality\.text: .*nowhere\.txt: no such file"):
        out.run(source, recipe(validate={"quality": {"text": "nowhere.txt"}}))
    assert not out.quantized.exists()
