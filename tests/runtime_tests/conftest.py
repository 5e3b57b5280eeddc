"""A small, real ONNX package: a two-layer Ministral 3 with random weights, compiled as recipes are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import ManifestDraft, read_manifest, staged, write_manifest
from artifacts.formats.interface import Driver

VOCAB, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 512, 64, 128, 2, 4, 2, 32
MAX_TOKENS, ORIGINAL = 256, 64

CONFIG = {
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": ORIGINAL,
        "max_position_embeddings": 1024,
        "llama_4_scaling_beta": 0.1,
    },
}


def write_checkpoint(folder: Path) -> None:
    """Random weights with outputs of order 1, so that every one of them matters to the logits."""
    from safetensors.numpy import save_file

    generator = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    query, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (query, HIDDEN),
            prefix + "self_attn.k_proj.weight": (kv, HIDDEN),
            prefix + "self_attn.v_proj.weight": (kv, HIDDEN),
            prefix + "self_attn.o_proj.weight": (HIDDEN, query),
            prefix + "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            prefix + "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            prefix + "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
    tensors = {name: generator.standard_normal(shape) / np.sqrt(shape[1]) for name, shape in shapes.items()}
    # tokens of very different weight, as trained ones are: the most likely one then stands out
    tensors["model.embed_tokens.weight"] *= np.exp(generator.standard_normal((VOCAB, 1)))
    norms = [
        "model.norm",
        *(f"model.layers.{i}.{n}_layernorm" for i in range(LAYERS) for n in ("input", "post_attention")),
    ]
    tensors |= {f"{name}.weight": generator.uniform(0.8, 1.2, HIDDEN) for name in norms}
    tensors["model.norm.weight"] *= 0.4
    save_file({name: np.ascontiguousarray(t, np.float16) for name, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))


def compile_package(
    out: Path, options: dict[str, Any], target: str = "onnx", prepare: Callable[[Path], None] | None = None
) -> Path:
    """An INT4 package of the random checkpoint, in a folder as ``edgewright run`` leaves it.

    prepare: what is done to the checkpoint's folder before it is compiled.
    """
    from compiler import pipeline
    from compiler.checkpoint import Checkpoint
    from compiler.expectations import write_vectors
    from compiler.quantize.methods import method_options
    from compiler.targets import target_options
    from recipes.schema import recipe_model
    from tests.compiler.conftest import converting_here

    source = out / "checkpoint"
    source.mkdir()
    write_checkpoint(source)
    if prepare is not None:
        prepare(source)
    recipe = recipe_model(target_options(), method_options()).model_validate(
        {
            "name": "random",
            "checkpoint": {"path": str(source)},
            "quantize": {"rules": [{"match": "*", "bits": 4, "group": 32}]},
            "context": {"max_tokens": MAX_TOKENS},
            "targets": {target: options},
        }
    )

    def silent(stage: str, done: int, total: int) -> None:
        pass

    checkpoint = Checkpoint(source)
    with converting_here(), staged(out / target) as partial:
        quantized = pipeline.quantize(recipe, checkpoint, "random", None, out / "quantized", silent)
        draft = pipeline.build(recipe, target, quantized, checkpoint, partial, silent)
        write_vectors(draft, quantized, checkpoint, partial, silent)
        write_manifest(partial, draft)
    return out / target


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests: read it, never change it."""
    return compile_package(tmp_path_factory.mktemp("package"), {})


@pytest.fixture
def own_package(package: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(package, tmp_path / "onnx"))


def sign_again(artifact: Path, **changes: Any) -> None:
    """Write the manifest anew, as a compiler with a bug would have: the digests match, the content is wrong."""
    manifest = read_manifest(artifact)
    fields = {name: getattr(manifest, name) for name in ManifestDraft.model_fields} | changes
    write_manifest(artifact, ManifestDraft(**fields))


RUNTIMES = """
import atexit, ctypes, mmap, os, sys, time
import numpy

HELD = []

def end():
    HELD.clear()
    time.sleep(0.5)

class Session:
    warnings, stand_in = (), None
    def __init__(self, artifact, manifest):
        self.runtime = manifest.runtime
        self.artifact = artifact
    def load(self, *, exact=False, threads=2):
        print("the runtime says hello")
        os.write(1, b"and from native code\\n")
        sys.stderr.write("loading " + "x" * 100_000 + " the end of stderr\\n")
        sys.stderr.flush()
        if self.runtime["does"] == "segfault":
            ctypes.string_at(0)
        if self.runtime["does"] == "hold":  # until it begins to end, which takes it a while
            HELD.append(numpy.ones(self.runtime["bytes"], numpy.uint8))
            atexit.register(end)
        if self.runtime["does"] == "map":
            with open(self.artifact / "weights.bin", "rb") as file:
                self.mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    def reset(self):
        pass
    def call(self, component, entry, **arrays):
        if self.runtime["does"] == "hang":
            time.sleep(600)
        if self.runtime["does"] == "write":
            with open(self.runtime["path"], "w") as file:
                file.write("was here")
        assert (component, entry) in (("decoder", "prefill"), ("decoder", "decode")), "not reached"
        if self.runtime["does"] == "map":
            numpy.frombuffer(self.mapped, numpy.uint8)[:: mmap.PAGESIZE].sum()
        return {"logits": numpy.ones((1, 1, 8), numpy.float32)}

SESSION = Session
"""


@pytest.fixture
def fake_runtime(own_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The child finds one more session, for the target "fake", in a folder of the test."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "fake.py").write_text(RUNTIMES)
    (folder / "sitecustomize.py").write_text(f"import runtime_tests.sessions as s; s.__path__.append({str(folder)!r})")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield own_package


def as_fake(package: Path, does: str, **runtime: Any) -> None:
    """Make a package one of the fake runtime, which then `does` something."""
    driver = Driver(name="text", constants={"max_tokens": 256, "vocab_size": 8})
    sign_again(package, target="fake", driver=driver, runtime={"does": does, **runtime})
