"""Text decoders in the layout of mlx-community: config.json, safetensors and tokenizer, which mlx-lm, mlx-vlm and
mlx-swift load as their own model classes.

With `mlxfn_prefill` also `decoder.mlxfn`, for C++ and Swift without a model class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from artifacts import Progress
from artifacts.formats.mlx import Exported, MlxRuntime
from compiler.checkpoint import read_config
from compiler.models.base import Component, Entry
from compiler.models.decoder import DecoderSpec, read_spec
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About
from compiler.targets.mlx.geometry import kv_group
from compiler.targets.mlx.options import MlxOptions
from compiler.targets.mlx.packaging import Narrowed
from compiler.targets.mlx.packaging.text_config import is_wrapped, package_config, tensor_prefix, unreadable
from compiler.targets.text_card import text_about, tokens_section

FUNCTIONS = "decoder.mlxfn"
_PREFILL_STEP = 512
# The registries of mlx-swift-lm that were read for these statements: LLMModelFactory.swift, Mistral3Text.swift.
_SWIFT_COMMIT = "04d3184"
_GENERATE = """```swift
import MLXLLM
import MLXLMCommon

let container = try await LLMModelFactory.shared.loadContainer(
    configuration: ModelConfiguration(directory: URL(filePath: "path/to/this/folder")))
let session = ChatSession(container)
print(try await session.respond(to: "Hello"))
```

This snippet was written from mlx-swift-lm's sources and was not compiled."""
_REGISTER = """```swift
import MLXLLM

await LLMTypeRegistry.shared.registerModelType("ministral3") { data in
    Mistral3TextModel(try JSONDecoder().decode(Mistral3TextConfiguration.self, from: data))
}
```"""
_RUN = (
    "## What was run, and what was not\n\n"
    "`edgewright validate` runs this folder with mlx-lm on a CPU, in float32 and as shipped, and compares logits with "
    "PyTorch's. "
    "It was **not run on an Apple device**, nor by mlx-swift; speed and memory there are unknown. The weights are "
    "float16 throughout beside their codes."
)


def _options(job: Job) -> MlxOptions:
    options: MlxOptions = job.options
    return options


def refusals(job: Job) -> list[str]:
    """What mlx-lm cannot be told of this model, one sentence each."""
    spec, options = read_spec(job.model.config), _options(job)
    found = [f"mlx: {reason}" for reason in unreadable(spec)]
    if options.kv_bits < 16 and kv_group(spec.head_dim) is None:
        found.append(
            f"mlx: kv_bits {options.kv_bits} needs a head_dim that 32 divides, this model's is {spec.head_dim}; "
            "use kv_bits: 16"
        )
    return found


def check(job: Job) -> None:
    """Nothing: a model class of the ecosystem needs no graph."""


def state_bytes(job: Job, component: Component) -> int:
    """Of the cache as mlx-lm keeps it: float16, or codes with a scale and a bias for each group."""
    spec, options = read_spec(job.model.config), _options(job)
    values = component.state_values
    if options.kv_bits == 16:
        return values * 2
    return values * options.kv_bits // 8 + values // (kv_group(spec.head_dim) or 32) * 4


def called(entry: Entry) -> dict[str, int]:
    """The largest sizes of one call: mlx-lm runs a prompt in pieces."""
    return {name: min(size, _PREFILL_STEP) for name, size in entry.largest().items()}


def named(job: BuildJob) -> Callable[[str], str]:
    """The names of the slots behind a prefix."""
    return tensor_prefix(checkpoint_config(job)).__add__


def checkpoint_config(job: BuildJob) -> Mapping[str, Any]:
    """The own config.json of the checkpoint, which may wrap the decoder's; without one, that of the packed weights."""
    return read_config(job.source) if (job.source / "config.json").exists() else job.weights.config


def write(job: BuildJob, folder: Path, progress: Progress) -> tuple[MlxRuntime, Narrowed]:
    """See `packaging.Packaging`."""
    source, options = checkpoint_config(job), _options(job)
    spec = read_spec(source)
    write_configs(folder, package_config(source, spec, job.model.slots, job.schemes), spec)
    component = job.model.component("decoder")
    runtime = MlxRuntime(
        loader="mlx-lm",
        requires={"mlx": ">=0.32", "mlx-lm": ">=0.32"},
        layers=len(component.states) // 2,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        max_tokens=component.states[0].sized({})[2],
        kv_bits=options.kv_bits,
        kv_group=kv_group(spec.head_dim) if options.kv_bits < 16 else None,
    )
    if options.mlxfn_prefill is not None:
        from compiler.targets.mlx.functions import export_decoder

        progress("tracing functions", 0, 1)
        export_decoder(job, folder, folder / FUNCTIONS, options.mlxfn_prefill, tensor_prefix(source))
        progress("tracing functions", 1, 1)
        exported = Exported(file=FUNCTIONS, prefill_tokens=options.mlxfn_prefill)
        runtime = runtime.model_copy(update={"exported": exported})
    return runtime, {}


def about(job: Job) -> About:
    """How the README begins."""
    return text_about(job)


def sections(job: BuildJob, runtime: MlxRuntime) -> list[str]:
    """Of the README: tokens, how each loader takes the package, and where one of them does not."""
    source = checkpoint_config(job)
    spec, max_tokens = read_spec(source), job.model.constants["max_tokens"]
    found = [tokens_section(job), _python(job.options, max_tokens), _swift(spec, is_wrapped(source))]
    if job.options.mlxfn_prefill is not None:
        found.append(_functions(job.options.mlxfn_prefill, spec, max_tokens))
    return [*found, _RUN]


def _python(options: MlxOptions, max_tokens: Any) -> str:
    bits = options.kv_bits
    kv = f"\n\nIt was tested with a KV cache of {bits} bits: `generate(…, kv_bits={bits})`."
    return (
        "## Python\n\n```python\nfrom mlx_lm import load, generate\n\n"
        f'model, tokenizer = load("path/to/this/folder")\n'
        'print(generate(model, tokenizer, prompt="Hello", max_tokens=64))\n```\n\n'
        f"Needs mlx-lm 0.32 or newer. The context that was planned for is {max_tokens:,} tokens."
        + (kv if bits < 16 else "")
    )


def _swift(spec: DecoderSpec, wrapped: bool) -> str:
    needs = (
        "## Swift\n\nNeeds [mlx-swift-lm](https://github.com/ml-explore/mlx-swift-lm) (products `MLXLLM` and "
        "`MLXLMCommon`) on Apple silicon, and `config.json`, `generation_config.json`, `model*.safetensors` with its "
        "index and the tokenizer files of this folder in one directory."
    )
    kind = spec.model_type
    if kind != "ministral3":
        return f"{needs} `{kind}` is in its `LLMTypeRegistry` (read at commit `{_SWIFT_COMMIT}`).\n\n{_GENERATE}"
    if wrapped:
        return (
            f"{needs} This package has model type `mistral3` with a `ministral3` text configuration; mlx-swift-lm has "
            f"it in its `LLMTypeRegistry` as `Mistral3TextModel` (read at commit `{_SWIFT_COMMIT}`). Versions from "
            'before that class end in "Unsupported model type: mistral3".'
            f"\n\n{_GENERATE}"
        )
    return (
        f"{needs}\n\n**mlx-swift-lm does not load this package as it is.** Its `LLMTypeRegistry` (read at commit "
        f'`{_SWIFT_COMMIT}`) lacks the model type `ministral3` and loading ends in "Unsupported model type: '
        'ministral3". It has the network, under the type `mistral3` of the published multimodal checkpoints; register '
        f"it under this name before loading:\n\n{_REGISTER}\n\n{_GENERATE}"
    )


def _functions(count: int, spec: DecoderSpec, max_tokens: Any) -> str:
    return (
        f"## C++, or Swift without the model class\n\n`{FUNCTIONS}` holds two traces without weights: {count} tokens "
        "and one token at a time. Positional arguments: `ids` int32 [1, n], `positions` int32 [1, n] (consecutive), "
        f"then key and value cache of each of the {spec.layers} layers, float16 [1, {spec.kv_heads}, "
        f"{max_tokens}, {spec.head_dim}], zeros at first; keyword arguments: every tensor of `model*.safetensors` "
        "under its name. Results: logits [1, n, vocabulary], then the caches in the same order. Pad the last piece of "
        "a prompt, or feed it token by token where padding would pass the end of the cache; what padding writes is "
        "overwritten before it is attended to.\n\n```cpp\n"
        'auto step = mlx::core::import_function("decoder.mlxfn");\n'
        'auto loaded = mlx::core::load_safetensors("model.safetensors").first;\n'
        "mlx::core::Kwargs weights(loaded.begin(), loaded.end());\n"
        "auto results = step(arguments, weights);  // arguments: mlx::core::Args\n```\n\n"
        "It needs the version of MLX that wrote it, or a newer one "
        "that still reads its format: MLX calls the format experimental."
    )


def write_configs(folder: Path, config: Mapping[str, Any], spec: DecoderSpec) -> None:
    """config.json, and generation_config.json where the checkpoint had none."""
    _write_json(folder / "config.json", config)
    if not (folder / "generation_config.json").exists():
        eos = spec.eos[0] if len(spec.eos) == 1 else list(spec.eos)
        found = {"bos_token_id": spec.bos, "eos_token_id": eos or None}
        _write_json(folder / "generation_config.json", {k: v for k, v in found.items() if v is not None})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
