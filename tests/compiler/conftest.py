"""Random-weight checkpoints of small geometries, as Hugging Face saves them, and quantized folders made from them."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from artifacts import Manifest, Progress, silent
from artifacts.formats.interface import Driver
from artifacts.manifest import CheckpointEntry, ManifestDraft, RecipeEntry, write_manifest
from compiler.checkpoint import Checkpoint
from compiler.drivers import driver_of
from compiler.models import decoder
from compiler.models.base import Component, Model, read_model
from compiler.models.interface import described
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights
from compiler.quantize.runner import OriginalWeights
from compiler.quantize.stream import quantize_checkpoint
from compiler.slots import Scheme, Schemes, Weights
from compiler.targets import load_target
from compiler.targets.base import BuildJob
from recipes.schema import Vision

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 256,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
MINISTRAL3: dict[str, Any] = {
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "rope_parameters": YARN,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def travelled(function: Callable[..., Any], *arguments: Any, progress: Progress) -> Any:
    """`compiler.apart.apart` without the process: all that goes there and back can."""
    name, given = pickle.loads(pickle.dumps((function, arguments)))
    return pickle.loads(pickle.dumps(name(*given, progress)))


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """bf16 weights for every slot of a decoder config."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for slot in decoder.slots(decoder.read_spec(dict(config))):
        shape = (slot.columns,) if slot.is_vector else (slot.rows, slot.columns)
        values = torch.randn(shape, generator=generator)
        tensors[slot.tensor] = (1 + values / 8 if slot.kind == "norm" else values / 8).bfloat16()
    return tensors


def save(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def ministral(tmp_path: Path) -> Path:
    """A two-layer Ministral 3 with every feature of the real one, random weights."""
    return save(tmp_path / "ministral", MINISTRAL3, random_tensors(MINISTRAL3))


def original(folder: Path, max_tokens: int = 64, vision: Vision | None = None) -> tuple[Model, OriginalWeights]:
    """The model of a checkpoint folder and its unquantized weights."""
    checkpoint = Checkpoint(folder)
    model = read_model(checkpoint.config, checkpoint.names(), max_tokens, vision)
    return model, OriginalWeights(checkpoint, model.slots)


def reference_logits(
    model: Model, weights: Weights, ids: np.ndarray[Any, Any], schemes: Schemes | None = None
) -> np.ndarray[Any, Any]:
    """Logits [batch, length, vocab] of the dialect's reference, for a decoder over whole sequences [batch, length]."""
    from compiler import dialect

    batch, length = ids.shape
    decoder = model.at(length).component("decoder")
    positions = torch.arange(length).expand(batch, length)
    with torch.no_grad(), dialect.weights(weights):
        body = decoder.module(decoder.entry("score"), schemes or {})
        out = body(torch.from_numpy(ids).long(), positions, *empty_states(decoder, batch))[0]
    return np.asarray(out)


def empty_states(component: Component, batch: int = 1) -> list[torch.Tensor]:
    """The states of a component at first; a decoder's caches for several sequences at once."""
    shapes = [state.sized({}) for state in component.states]
    return [torch.zeros((batch, *shape[1:])) for shape in shapes]


def write_toy(folder: Path) -> Path:
    """A checkpoint of the family in `tests/plugins`: two components with a state, random weights."""
    config = {"model_type": "toy_renderer", "image_size": 16, "hidden_size": 64, "channels": 32}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        slot.tensor: (
            torch.randn(slot.shape, generator=generator) / (1 if slot.is_vector else slot.columns**0.5)
        ).bfloat16()
        for slot in read_model(config, None, 2).slots
    }
    return save(folder, config, tensors)


@contextmanager
def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder of this test run that parallel workers share, held by one of them at a time."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@contextmanager
def converting_here() -> Iterator[None]:
    """Without processes of their own for conversions: many starts less. Core ML's check captures what its build
    captures again: there is only the build's."""

    def directly(function: Callable[..., Any], *arguments: Any, progress: Any) -> Any:
        return function(*arguments, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compiler.targets.tvm.workers.apart", directly)
        patch.setattr("compiler.targets.coreml.target.apart", directly)
        patch.setattr("compiler.targets.coreml.target.CoreMLTarget.check", lambda self, job: None)
        yield


@contextmanager
def building_here(variant: int = -1) -> Iterator[None]:
    """`converting_here`, and of TVM's libraries for this machine none but one that it runs; variant: in their order."""
    from compiler.targets.tvm import triples
    from runtime_tests.sessions.tvm import cpu_features

    machine = triples.host()
    runs = [v for v in machine.variants if cpu_features().issuperset(v.features)]
    with pytest.MonkeyPatch.context() as patch, converting_here():
        patch.setattr(triples, "host", lambda: replace(machine, variants=(runs[variant],)))
        yield


@pytest.fixture(scope="session", autouse=True)
def plugins() -> None:
    """The families in `tests/plugins` are known here and in every child process."""
    know_plugins()


def know_plugins() -> None:
    """Make the families in `tests/plugins` known to this process and to those that it starts."""
    import compiler
    import compiler.models

    folder = Path(__file__).parents[1] / "plugins"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    compiler.__path__.append(str(folder / "compiler"))
    compiler.models.__path__.append(str(folder / "compiler" / "models"))


@pytest.fixture
def toy(tmp_path: Path, plugins: None) -> Path:
    """A checkpoint of the family in `tests/plugins`."""
    return write_toy(tmp_path / "toy")


Quantizer = Callable[..., tuple[Model, dict[str, Scheme], PackedWeights]]


@pytest.fixture
def quantized(tmp_path: Path) -> Quantizer:
    """quantized(checkpoint folder, scheme, other schemes by slot, max_tokens=...): rounded to nearest, a new folder."""

    def make(
        source: Path, scheme: Scheme, others: Mapping[str, Scheme] | None = None, *, max_tokens: int = 64
    ) -> tuple[Model, dict[str, Scheme], PackedWeights]:
        folder = tmp_path / f"quantized-{len(list(tmp_path.iterdir()))}"
        job = quantized_job(folder, source, None, scheme, others, max_tokens=max_tokens)
        return job.model, dict(job.schemes), job.weights

    return make


Jobs = Callable[..., BuildJob]


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """jobs(checkpoint folder, target's options, scheme, other schemes by slot, max_tokens=...): rounded to nearest."""

    def make(source: Path, options: Any, scheme: Scheme, *arguments: Any, **named: Any) -> BuildJob:
        folder = tmp_path / f"quantized-{len(list(tmp_path.iterdir()))}"
        return quantized_job(folder, source, options, scheme, *arguments, **named)

    return make


def quantized_job(
    folder: Path,
    source: Path,
    options: Any,
    scheme: Scheme,
    others: Mapping[str, Scheme] | None = None,
    *,
    max_tokens: int = 64,
    name: str = "small",
    quantize: Any = rtn.quantize,
    vision: Vision | None = None,
    again: bool = False,
) -> BuildJob:
    """A job over a checkpoint's weights, which are quantized into a new folder.

    again: whether the folder may be there already, from an equal call.
    """
    checkpoint = Checkpoint(source)
    model = read_model(checkpoint.config, checkpoint.names(), max_tokens, vision)
    schemes = {s.name: scheme for s in model.slots if not s.is_vector} | dict(others or {})
    if not (again and folder.exists()):
        folder.mkdir()
        rounders = {n: quantize for n, s in schemes.items() if s.bits != 16}
        quantize_checkpoint(checkpoint, model.slots, schemes, rounders, folder, checkpoint.config, silent)
    return BuildJob(name, model, schemes, options, PackedWeights(folder), source)


def job_logits(job: BuildJob, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`reference_logits` of what a job is about."""
    return reference_logits(job.model, job.weights, ids, job.schemes)


def packed(job: BuildJob, target: str, folder: Path, *, companions: bool = False) -> Manifest:
    """The package of a job in a new folder, with its manifest. companions: with what its driver puts beside it."""
    folder.mkdir()
    found = load_target(target)
    assert found.refusals(job) == []
    checked = None if job.rounded else found.check(job)  # of what is measured the build lowers the graphs anyway
    if companions:
        driver_of(job.model).write_companions(job.model, job.source, folder)
    built = found.build(replace(job, checked=checked), folder, silent)
    draft = ManifestDraft(
        created_by={},
        recipe=RecipeEntry(name=job.name, digest="0" * 64),
        target=target,
        family=job.model.family,
        checkpoint=CheckpointEntry(source="here"),
        components=tuple(described(job.model, built.narrowed)),
        driver=Driver(name=job.model.driver, constants=dict(job.model.constants)),
        runtime=dict(built.runtime),
        weights_digest="0" * 64,
    )
    return write_manifest(folder, draft)


def assert_toy_equals_reference(
    job: BuildJob, target: str, folder: Path, *, exact: float, shipped: float, flip: str = ""
) -> None:
    """Build the toy for a target and call both components for some steps, in its exact mode and as shipped.

    exact, shipped: largest errors, relative to the largest value of an output. flip: a quantized slot, one of whose
    nibbles is another after the build than before it.
    """
    from runtime_tests.sessions import make_session

    session = make_session(folder, packed(job, target, folder))
    if flip:
        info = job.weights.tensors.info(f"{flip}.weight_packed")
        with info.file.open("r+b") as file:
            file.seek(info.start)
            byte = file.read(1)[0]
            file.seek(info.start)
            file.write(bytes([byte ^ 0x80]))
    for is_exact, tolerance in ((True, exact), (False, shipped)):
        session.load(exact=is_exact)
        _steps(session, Reference(job), tolerance)


def _steps(session: Any, reference: Reference, tolerance: float) -> None:
    random = np.random.default_rng(0)

    def same(component: str, entry: str, **arrays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found, expected = (side.call(component, entry, **arrays) for side in (session, reference))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=tolerance * np.abs(value).max(), rtol=0)
        return next(iter(expected.values()))

    for turn in range(4):
        if turn == 3:
            session.reset()
            reference.reset()
        features = same("cell", "step", image=random.standard_normal((1, 3, 16, 16), np.float32))
        same("head", "render", features=features)


class Reference:
    """A job's entries in PyTorch, over the same dequantized weights, with states that go from call to call."""

    def __init__(self, job: BuildJob) -> None:
        self._job = job
        self.reset()

    def reset(self) -> None:
        self._states = {
            c.name: [torch.zeros(s.sized({}), dtype=getattr(torch, s.dtype)) for s in c.states]
            for c in self._job.model.components
        }

    def call(self, component: str, entry: str, **arrays: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        from compiler import dialect

        part = self._job.model.component(component)
        function = part.entry(entry)
        given = [torch.from_numpy(np.ascontiguousarray(arrays[port.name])) for port in function.inputs]
        with torch.no_grad(), dialect.weights(self._job.weights):
            found = part.module(function, self._job.schemes)(*given, *self._states[component])
        if function.keeps:
            self._states[component] = list(found[len(function.outputs) :])
        return {port.name: out.numpy() for port, out in zip(function.outputs, found, strict=False)}
