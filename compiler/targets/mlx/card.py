"""Of an MLX package's README: what each loader needs, and where one of them cannot load it."""

from __future__ import annotations

from compiler.targets.base import Job

# The registries of mlx-swift-lm that were read for this statement: LLMModelFactory.swift, Mistral3Text.swift.
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


def sections(job: Job, *, wrapped: bool) -> list[str]:
    """The README's own sections. wrapped: the decoder keeps the form of a larger model."""
    found = [_python(job), _swift(job, wrapped)]
    if job.options.mlxfn_prefill is not None:
        found.append(_functions(job))
    return [*found, _RUN]


def _python(job: Job) -> str:
    bits = job.options.kv_bits
    kv = f"\n\nIt was tested with a KV cache of {bits} bits: `generate(…, kv_bits={bits})`."
    return (
        "## Python\n\n```python\nfrom mlx_lm import load, generate\n\n"
        f'model, tokenizer = load("path/to/this/folder")\n'
        'print(generate(model, tokenizer, prompt="Hello", max_tokens=64))\n```\n\n'
        f"Needs mlx-lm 0.32 or newer. The context that was planned for is {job.max_tokens:,} tokens."
        + (kv if bits < 16 else "")
    )


def _swift(job: Job, wrapped: bool) -> str:
    needs = (
        "## Swift\n\nNeeds [mlx-swift-lm](https://github.com/ml-explore/mlx-swift-lm) (products `MLXLLM` and "
        "`MLXLMCommon`) on Apple silicon, and `config.json`, `generation_config.json`, `model*.safetensors` with its "
        "index and the tokenizer files of this folder in one directory."
    )
    kind = job.spec.model_type
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


def _functions(job: Job) -> str:
    count, spec = job.options.mlxfn_prefill, job.spec
    return (
        f"## C++, or Swift without the model class\n\n`decoder.mlxfn` holds two traces without weights: {count} tokens "
        "and one token at a time. Positional arguments: `ids` int32 [1, n], `positions` int32 [1, n] (consecutive), "
        f"then key and value cache of each of the {spec.layers} layers, float16 [1, {spec.kv_heads}, "
        f"{job.max_tokens}, {spec.head_dim}], zeros at first; keyword arguments: every tensor of `model*.safetensors` "
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


_RUN = (
    "## What was run, and what was not\n\n"
    "Edgewright runs this folder with mlx-lm on a CPU, in float32 and as shipped, and compares logits with PyTorch's. "
    "It was **not run on an Apple device**, nor by mlx-swift; speed and memory there are unknown. The weights are "
    "float16 throughout beside their codes."
)
