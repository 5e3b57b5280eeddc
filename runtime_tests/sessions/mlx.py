"""MLX packages as users load them: `mlx_lm.load` with its caches and its way through a prompt, or traced functions.

What lives here: loading, the states, and how a CPU stands in for the GPU that the package is for. What must not:
anything that writes into the artifact, and claims about speed: MLX's CPU kernels say nothing of a device's.

Exact is the same package in float32, with MLX's own quantized kernels. float16 widens without loss; only the biases of
asymmetric groups, zero point times scale, had been rounded to it and are put back on whole zero points, where they are
no farther from one than that rounding.

As shipped is float16 as it lies in the file. There the CPU's quantized kernels would mislead, they accumulate in
float16 and are 35 times slower than in float32, while Metal's dequantize to float16 and accumulate in float32. So on a
CPU the shipped package does as Metal does, a block of rows at a time; on Metal nothing is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx_lm.models.cache import KVCache, QuantizedKVCache
from mlx_lm.utils import load_model, load_tokenizer
from numpy.typing import NDArray

from artifacts import MANIFEST, EdgewrightError, Figure, Manifest
from artifacts.formats.interface import Component
from artifacts.formats.mlx import MlxRuntime
from artifacts.manifest import payload_file

from . import Arrays, call_sizes, runtime_section

METAL_ON_CPU = "MLX's CPU kernels, accumulating as Metal's do"
CPU_KERNELS = "MLX's CPU kernels"
FLOAT32_ON_CPU = "MLX's CPU kernels in float32"
_PREFILL_STEP = 512
_BLOCK_VALUES = 1 << 22
_SCORE, _SCORED = "score", "prefill"
_HALF_ROUNDING = 2.0**-10  # of a product of rounded scale and zero point: half a unit in the last place, twice


if not mx.metal.is_available():
    mx.disable_compile()  # on a CPU every fused kernel is one more run of g++, in each process anew


class MlxSession:
    """See `Session`."""

    warnings: tuple[str, ...] = ()
    stand_in: str | None = None
    exact_stand_in: str | None

    def __init__(self, artifact: Path, manifest: Manifest) -> None:
        self._runtime = runtime_section(MlxRuntime, artifact, manifest)
        if self._runtime.kv_bits < 16 and self._runtime.kv_group is None:
            raise EdgewrightError(f"{artifact / MANIFEST}: runtime.kv_bits needs runtime.kv_group")
        self._artifact = artifact
        self._components = {component.name: component for component in manifest.components}
        self._model: TextModel | Functions | None = None
        # in float16 a CPU takes some thirty times as long
        traced = self._runtime.loader != "mlx-lm"
        self.exact_stand_in = FLOAT32_ON_CPU if traced and not mx.metal.is_available() else None

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """Load the package and make its states. MLX chooses its own threads: `threads` is not used."""
        self._model = None  # one model is freed before the next is read
        mx.clear_cache()
        model: TextModel | Functions
        if self._runtime.loader == "mlx-lm":
            model = TextModel(self._artifact, self._runtime, exact)
        else:
            model = Functions(self._artifact, self._runtime, self._components, exact)
        self._model, self.stand_in = model, model.stand_in

    def reset(self) -> None:
        """Every state to zeros."""
        assert self._model is not None
        self._model.reset()

    def call(self, component: str, entry: str, **arrays: NDArray[Any]) -> Arrays:
        """The entry's outputs by name, float32 where the package computes in float16."""
        assert self._model is not None
        served = _SCORED if entry == _SCORE and self._runtime.loader == "mlx-lm" else entry
        try:
            wanted = self._components[component].entry(served)
        except KeyError:
            raise EdgewrightError(f"{self._artifact}: the package has no {component}.{entry}") from None
        call_sizes(f"{component}.{entry}", wanted, arrays)
        return self._model.call(component, entry, arrays)

    def generate(self, text: str, tokens: int) -> dict[str, Any] | None:
        """What `mlx_lm.stream_generate` makes of a text, in the session's cache; None without a tokenizer."""
        return self._model.generate(text, tokens) if isinstance(self._model, TextModel) else None

    def footprint(self) -> list[Figure]:
        """Nothing: the runtime runs here."""
        return []


class TextModel:
    """A decoder as mlx-lm's own model class, over caches of the whole context."""

    stand_in: str | None = None

    def __init__(self, artifact: Path, runtime: MlxRuntime, exact: bool) -> None:
        self._artifact = artifact
        self._model: Any
        try:
            self._model, self._config = load_model(artifact)
        except (ValueError, FileNotFoundError, KeyError, RuntimeError) as error:
            raise EdgewrightError(f"{artifact}: mlx-lm cannot load it: {error}") from error
        self._runtime, self._exact = runtime, exact
        if exact:
            self._model.set_dtype(mx.float32)
            restore_zero_points(self._model)
            mx.eval(self._model.parameters())
        elif not mx.metal.is_available():
            replace_half_kernels(self._model)
            self.stand_in = METAL_ON_CPU
        self.reset()

    def call(self, component: str, entry: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """prefill: pieces of a prompt, then its last token, as mlx-lm runs it; score: one call, every position."""
        ids, first = arrays["input_ids"], int(arrays["positions"][0, 0])
        used = self._cache[0].offset
        if first != used:
            raise EdgewrightError(f"{component}.{entry}: positions go on from {used}, not from {first}")
        if used + ids.shape[1] > self._runtime.max_tokens:
            raise EdgewrightError(
                f"{ids.shape[1]} tokens after {used} do not fit the context of {self._runtime.max_tokens}"
            )
        tokens = mx.array(ids.astype(np.int32))
        if entry == _SCORE:
            return {"logits": _numpy(self._model(tokens, cache=self._cache))}
        last = tokens.shape[1] - 1
        for start in range(0, last, _PREFILL_STEP):
            self._model(tokens[:, start : min(start + _PREFILL_STEP, last)], cache=self._cache)
            mx.eval([cache.state[:2] for cache in self._cache])
            mx.clear_cache()
        return {"logits": _numpy(self._model(tokens[:, last:], cache=self._cache))}

    def generate(self, text: str, tokens: int) -> dict[str, Any] | None:
        """See `MlxSession.generate`."""
        if not (self._artifact / "tokenizer_config.json").exists():
            return None
        # here, as `mlx_lm.load` does it: Python's tokenizers are 80 MB of modules, which are no memory of an app
        ends = self._config.get("eos_token_id")
        tokenizer: Any = load_tokenizer(self._artifact, eos_token_ids=ends)  # type: ignore[no-untyped-call]
        self.reset()
        bos = tokenizer.bos_token
        ids = tokenizer.encode(text, add_special_tokens=bos is None or not text.startswith(bos))
        said = mlx_lm.stream_generate(self._model, tokenizer, text, max_tokens=tokens, prompt_cache=self._cache)
        return {"runtime": "mlx-lm", "ids": list(ids), "continuation": [r.token for r in said]}

    def reset(self) -> None:
        """New caches of the whole context: what a full one holds, not the 256 positions by which mlx-lm's grow."""
        self._cache = [self._new_cache() for _ in range(self._runtime.layers)]
        mx.eval([cache.state[:2] for cache in self._cache])

    def _new_cache(self) -> Any:
        runtime, make = self._runtime, mx.zeros
        rows, width = (1, runtime.kv_heads, runtime.max_tokens), runtime.head_dim
        cache: Any
        if runtime.kv_bits == 16 or self._exact:
            cache = KVCache()  # type: ignore[no-untyped-call]
            dtype = mx.float32 if self._exact else mx.float16
            cache.keys, cache.values = (make((*rows, width), dtype) for _ in range(2))
            return cache
        group, bits = runtime.kv_group or 64, runtime.kv_bits
        cache = QuantizedKVCache(group_size=group, bits=bits)
        cache.keys, cache.values = (
            (
                make((*rows, width * bits // 32), mx.uint32),
                *(make((*rows, width // group), mx.float16) for _ in range(2)),
            )
            for _ in range(2)
        )
        return cache


class Functions:
    """Traced entries over the package's tensors."""

    def __init__(self, artifact: Path, runtime: MlxRuntime, components: Mapping[str, Component], exact: bool) -> None:
        self._components = components
        self.stand_in = None if exact or mx.metal.is_available() else CPU_KERNELS
        self._dtype = mx.float32 if exact else mx.float16
        self._weights: dict[str, mx.array] = {}
        try:
            for file in sorted(artifact.glob("model*.safetensors")):
                loaded = mx.load(str(file))
                assert isinstance(loaded, dict)
                self._weights |= {name: self._cast(array) for name, array in loaded.items()}
            self._entries: dict[tuple[str, str], Any] = {
                (function.component, function.entry): mx.import_function(str(payload_file(artifact, function.file)))
                for function in runtime.functions
            }
        except (ValueError, RuntimeError) as error:
            raise EdgewrightError(f"{artifact}: MLX cannot load it: {error}") from error
        if exact:
            for name in [name for name in self._weights if name.endswith(".biases")]:
                self._weights[name] = _whole(self._weights[f"{name.removesuffix('biases')}scales"], self._weights[name])
        mx.eval(self._weights)
        self.reset()

    def reset(self) -> None:
        self._states = {
            name: [self._cast(mx.zeros(s.sized({}), getattr(mx, s.dtype))) for s in component.states]
            for name, component in self._components.items()
        }

    def call(self, component: str, entry: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        wanted = self._components[component].entry(entry)
        given = [self._cast(mx.array(arrays[port.name])) for port in wanted.inputs]
        found = self._entries[component, entry]((*given, *self._states[component]), self._weights)
        mx.eval(found)
        self._states[component] = list(found[len(wanted.outputs) :])
        return {port.name: _numpy(value) for port, value in zip(wanted.outputs, found, strict=False)}

    def _cast(self, array: mx.array) -> mx.array:
        return array.astype(self._dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def restore_zero_points(model: Any) -> None:
    """Replace float32 biases within float16's rounding of a whole multiple of their scale by that multiple."""
    for module in model.modules():
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)) and module.biases is not None:
            module.biases = _whole(module.scales, module.biases)


def _whole(scales: mx.array, biases: mx.array) -> mx.array:
    zeros = biases / mx.where(scales == 0, 1, scales)
    whole = mx.round(zeros)
    near = mx.abs(zeros - whole) <= mx.abs(whole) * _HALF_ROUNDING
    return mx.where(near, whole * scales, biases)


class _DequantizingLinear(QuantizedLinear):
    def __call__(self, x: mx.array) -> mx.array:
        return _wide_matmul(self, x)


class _DequantizingEmbedding(QuantizedEmbedding):
    def as_linear(self, x: mx.array) -> mx.array:
        return _wide_matmul(self, x)


def replace_half_kernels(model: Any) -> None:
    """Make every quantized layer dequantize to its own dtype and multiply with float32 accumulation, as Metal does."""
    for module in model.modules():
        if type(module) is QuantizedLinear:
            module.__class__ = _DequantizingLinear
        elif type(module) is QuantizedEmbedding:
            module.__class__ = _DequantizingEmbedding


def _wide_matmul(module: Any, x: mx.array) -> mx.array:
    """x @ W.T with W dequantized a block of rows at a time: a dense head would be larger than the package."""
    rows, columns = module.weight.shape[0], module.scales.shape[1] * module.group_size
    step = max(1, _BLOCK_VALUES // columns)
    parts = []
    for start in range(0, rows, step):
        words, scales, biases = (p[start : start + step] for p in (module.weight, module.scales, module.biases))
        block = mx.dequantize(words, scales, biases, group_size=module.group_size, bits=module.bits)
        parts.append(x @ block.T)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def _numpy(values: mx.array) -> NDArray[Any]:
    found: NDArray[Any] = np.array(values.astype(mx.float32) if mx.issubdtype(values.dtype, mx.floating) else values)
    return found


SESSION = MlxSession
