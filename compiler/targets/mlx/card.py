"""README.md of an MLX package: what the Hub reads, what each loader needs, and where one of them cannot load it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from artifacts import MANIFEST, EdgewrightError, read_manifest
from compiler.slots import HALF
from compiler.targets.base import Job

# The registries of mlx-swift-lm that were read for this statement: LLMModelFactory.swift, Mistral3Text.swift.
_SWIFT_COMMIT = "04d3184"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_REGISTER = """```swift
import MLXLLM

await LLMTypeRegistry.shared.registerModelType("ministral3") { data in
    Mistral3TextModel(try JSONDecoder().decode(Mistral3TextConfiguration.self, from: data))
}
```"""


def model_card(job: Job, *, wrapped: bool) -> str:
    """The card's text, with its metadata in front. wrapped: the decoder keeps the form of a larger model."""
    base, revision = _origin(job)
    license_name = _license(job.tokenizer / "README.md")
    bits = sorted({job.schemes.get(s.name, HALF).bits for s in job.slots if not s.is_vector})
    sizes = ", ".join(f"{b}-bit" for b in bits if b != 16) or "16-bit"
    metadata: dict[str, object] = {
        "license": license_name or "unknown",
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
    }
    if base is not None:
        metadata |= {"base_model": base, "base_model_relation": "quantized"}
    metadata["tags"] = ["mlx", "edgewright", *(f"{b}-bit" for b in bits if b != 16)]
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    origin = f"[{base}](https://huggingface.co/{base}) at commit `{revision}`" if base else "a local checkpoint"
    parts = [
        f"---\n{header}---\n\n# {job.name}, MLX",
        f"The text decoder of {origin}, {sizes} weights, float16 throughout, written by Edgewright. "
        "`edgewright.json` holds the digest of every file, `golden.safetensors` what the package has to answer.",
    ]
    if license_name is None:
        parts.append("The checkpoint states no licence that could be read; set `license` before publishing.")
    parts += [_python(job), _swift(job, wrapped)]
    if job.options.mlxfn_prefill is not None:
        parts.append(_functions(job))
    return "\n\n".join(parts) + "\n"


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
        return f"{needs} `{kind}` is in its `LLMTypeRegistry` (read at commit `{_SWIFT_COMMIT}`)."
    if wrapped:
        return (
            f"{needs} This package has model type `mistral3` with a `ministral3` text configuration; mlx-swift-lm has "
            f"it in its `LLMTypeRegistry` as `Mistral3TextModel` (read at commit `{_SWIFT_COMMIT}`). Versions from "
            'before that class end in "Unsupported model type: mistral3".'
        )
    return (
        f"{needs}\n\n**mlx-swift-lm does not load this package as it is.** Its `LLMTypeRegistry` (read at commit "
        f'`{_SWIFT_COMMIT}`) lacks the model type `ministral3` and loading ends in "Unsupported model type: '
        'ministral3". It has the network, under the type `mistral3` of the published multimodal checkpoints; register '
        f"it under this name before loading:\n\n{_REGISTER}"
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


def _origin(job: Job) -> tuple[str | None, str | None]:
    """Hub id and commit of the checkpoint, from the manifest of the packed weights; None for a local folder."""
    if not (job.weights.path / MANIFEST).is_file():
        return None, None
    entry = read_manifest(job.weights.path).checkpoint
    return (entry.source, entry.revision) if entry.revision and _HUB_ID.fullmatch(entry.source) else (None, None)


def _license(readme: Path) -> str | None:
    """The licence in the metadata of a checkpoint's own card."""
    if not readme.is_file():
        return None
    head = re.match(r"---\r?\n(.*?)\r?\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    if head is None:
        return None
    try:
        metadata = yaml.safe_load(head.group(1))
    except yaml.YAMLError as error:
        raise EdgewrightError(f"{readme}: its metadata is not YAML: {error}") from error
    found = metadata.get("license") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else None
