"""MLX packages in mlx-lm, as users load them: `mlx_lm.load`, its caches, its way through a prompt.

What lives here: loading, the caches, and how a CPU stands in for the GPU that the package is for. What must not:
anything that writes into the artifact, and claims about speed: MLX's CPU kernels say nothing of a device's.

Exact is the same package in float32, with MLX's own quantized kernels. float16 widens without loss; only the biases of
asymmetric groups, zero point times scale, had been rounded to it and are put back on whole zero points, where they are
no farther from one than that rounding.

As shipped is float16 as it lies in the file. There the CPU's quantized kernels would mislead, they accumulate in
float16 and are 35 times slower than in float32, while Metal's dequantize to float16 and accumulate in float32. So on a
CPU the shipped package does as Metal does, a block of rows at a time; on Metal nothing is replaced.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx_lm.models.cache import KVCache, QuantizedKVCache
from mlx_lm.utils import load_model
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from artifacts import MANIFEST, EdgewrightError

from . import Ids, Logits

NO_COMPILER = (
    "no C++ compiler (g++) was found: MLX's compiled CPU kernels are off, mx.compile runs op by op; results are the "
    "same, times are not. Install g++ to have them"
)
METAL_ON_CPU = "MLX's CPU kernels, accumulating as Metal's do"
_PREFILL_STEP = 512
_BLOCK_VALUES = 1 << 22
_HALF_ROUNDING = 2.0**-10  # of a product of rounded scale and zero point: half a unit in the last place, twice


class Settings(BaseModel):
    """What `runtime` of an MLX package's manifest must hold; other keys are for other readers."""

    model_config = ConfigDict(frozen=True)

    max_tokens: int = Field(gt=1)
    vocab_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    kv_bits: Literal[4, 8, 16] = 16
    kv_group: Literal[32, 64] | None = None


class MlxRunner:
    """See `Runner`. `warnings`: what of this machine a report has to say, known before anything is loaded."""

    stand_in: str | None = None

    def __init__(self, artifact: Path, runtime: Mapping[str, JsonValue]) -> None:
        try:
            self._settings = Settings.model_validate(dict(runtime))
        except ValidationError as error:
            raise EdgewrightError(f"{artifact / MANIFEST}: runtime: {error}") from error
        if self._settings.kv_bits < 16 and self._settings.kv_group is None:
            raise EdgewrightError(f"{artifact / MANIFEST}: runtime.kv_bits needs runtime.kv_group")
        self._artifact = artifact
        self._exact = False
        self._model: Any = None
        self._tokenizer: Any = None
        self._cache: list[Any] = []
        self.warnings: tuple[str, ...] = () if has_compiled_kernels() else (NO_COMPILER,)

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """Load with `mlx_lm.load` and make the whole cache. MLX chooses its own threads: `threads` is not used."""
        self._model, self._cache = None, []  # one model is freed before the next is read
        mx.clear_cache()
        try:
            has_tokenizer = (self._artifact / "tokenizer_config.json").exists()
            if has_tokenizer:
                self._model, self._tokenizer = mlx_lm.load(str(self._artifact))[:2]
            else:
                self._model = load_model(self._artifact)[0]
        except (ValueError, FileNotFoundError, KeyError, RuntimeError) as error:
            raise EdgewrightError(f"{self._artifact}: mlx-lm cannot load it: {error}") from error
        self._exact, self.stand_in = exact, None
        if exact:
            self._model.set_dtype(mx.float32)
            restore_zero_points(self._model)
            mx.eval(self._model.parameters())
        elif not mx.metal.is_available():
            replace_half_kernels(self._model)
            self.stand_in = METAL_ON_CPU
        self._empty()

    def logits(self, ids: Ids) -> Logits:
        """[S, V] of one prefill from an empty cache."""
        self._empty()
        return _numpy(self._model(self._tokens(ids), cache=self._cache)[0])

    def prefill(self, ids: Ids) -> Logits:
        """[V] of the last position, from an empty cache: pieces of a prompt, then its last token, as mlx-lm runs it."""
        self._empty()
        tokens = self._tokens(ids)
        last = len(ids) - 1
        for start in range(0, last, _PREFILL_STEP):
            self._model(tokens[:, start : min(start + _PREFILL_STEP, last)], cache=self._cache)
            mx.eval([cache.state[:2] for cache in self._cache])
            mx.clear_cache()
        return _numpy(self._model(tokens[:, last:], cache=self._cache)[0, 0])

    def decode(self, token: int) -> Logits:
        """[V] after one more token."""
        return _numpy(self._model(self._tokens(np.array([token])), cache=self._cache)[0, 0])

    def generate(self, text: str, tokens: int) -> dict[str, Any] | None:
        """What `mlx_lm.stream_generate` makes of a text, in the runner's cache; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        self._empty()
        bos = self._tokenizer.bos_token
        ids = self._tokenizer.encode(text, add_special_tokens=bos is None or not text.startswith(bos))
        said = mlx_lm.stream_generate(self._model, self._tokenizer, text, max_tokens=tokens, prompt_cache=self._cache)
        return {"runtime": "mlx-lm", "ids": list(ids), "continuation": [r.token for r in said]}

    def _tokens(self, ids: Ids) -> mx.array:
        used, limit = self._cache[0].offset, self._settings.max_tokens
        if len(ids) == 0 or used + len(ids) > limit:
            raise EdgewrightError(f"{len(ids)} tokens after {used} do not fit the context of {limit}")
        return mx.array(ids.astype(np.int32))[None]

    def _empty(self) -> None:
        """New caches of the whole context: what a full one holds, not the 256 positions by which mlx-lm's grow."""
        self._cache = [self._new_cache() for _ in range(self._settings.layers)]
        mx.eval([cache.state[:2] for cache in self._cache])

    def _new_cache(self) -> Any:
        settings, make = self._settings, mx.zeros
        rows, width = (1, settings.kv_heads, settings.max_tokens), settings.head_dim
        cache: Any
        if settings.kv_bits == 16 or self._exact:
            cache = KVCache()  # type: ignore[no-untyped-call]
            dtype = mx.float32 if self._exact else mx.float16
            cache.keys, cache.values = (make((*rows, width), dtype) for _ in range(2))
            return cache
        group, bits = settings.kv_group or 64, settings.kv_bits
        cache = QuantizedKVCache(group_size=group, bits=bits)
        cache.keys, cache.values = (
            (
                make((*rows, width * bits // 32), mx.uint32),
                *(make((*rows, width // group), mx.float16) for _ in range(2)),
            )
            for _ in range(2)
        )
        return cache


def has_compiled_kernels() -> bool:
    """Whether `mx.compile` compiles here: on Metal always, on a CPU where MLX finds the g++ that it calls."""
    return bool(mx.metal.is_available()) or shutil.which("g++") is not None


def restore_zero_points(model: Any) -> None:
    """Replace float32 biases within float16's rounding of a whole multiple of their scale by that multiple."""
    for module in model.modules():
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)) and module.biases is not None:
            zeros = module.biases / mx.where(module.scales == 0, 1, module.scales)
            whole = mx.round(zeros)
            near = mx.abs(zeros - whole) <= mx.abs(whole) * _HALF_ROUNDING
            module.biases = mx.where(near, whole * module.scales, module.biases)


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


def _numpy(values: mx.array) -> Logits:
    found: Logits = np.array(values.astype(mx.float32))
    return found


RUNNER = MlxRunner
