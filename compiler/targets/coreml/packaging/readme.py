"""Of a text package's README: features, and Swift code for exactly these functions, features and shapes."""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from artifacts.formats.coreml import CoreMLRuntime
    from compiler.targets.base import BuildJob

_PAGE = Template("""## What is called

`$model` is a text decoder, with the tokenizer files beside it as swift-transformers reads them
(`AutoTokenizer.from(modelFolder:)` on this folder).

| | |
|---|---|
| needs | $minimum or newer |
| context | $max_tokens tokens, prompt and answer together |
| functions | $functions |
| prompt lengths | $prompt_lengths |
| cache | $cache |
| compute | $compute; hint: `$units` |

| feature | shape | type | what |
|---|---|---|---|
$features

Tokens enter the cache at `position`, so a call may cover some positions again: their entries come out the same.
That is how prompts of other lengths than the listed ones run without padding, the last call reaching back.

## Swift

Add `$model` to the target, or compile it once on the device with `MLModel.compileModel(at:)`.

```swift
$swift
```

## What was run, and what was not

`edgewright validate` executes this package on Linux, operation by operation, with an executor of its own, and
compares every answer with PyTorch's. It was **not run by Core ML**, on no Mac and no phone; memory is counted from the
program, and speed is unknown. The Swift above was not compiled.
""")

_STATEFUL = Template("""import CoreML

final class Decoder {
    static let maxTokens = $max_tokens
    private let prefill: MLModel
    private let decode: MLModel
    private let state: MLState
    private var cached = 0  // tokens in the cache

    init(compiledModel url: URL) throws {
        func load(_ function: String) throws -> MLModel {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = $units
            configuration.functionName = function
            return try MLModel(contentsOf: url, configuration: configuration)
        }
        prefill = try load("prefill")
        decode = try load("decode")
        state = prefill.makeState()
    }

    /// Logits [$vocab] after the prompt.
    func start(_ prompt: [Int32]) throws -> MLMultiArray {
        precondition(!prompt.isEmpty && prompt.count <= Self.maxTokens)
        cached = 0
        var logits: MLMultiArray!
        while cached < prompt.count {
            let left = prompt.count - cached
$choose
            logits = try run(length == 1 ? decode : prefill, prompt[begin..<begin + length], at: begin)
            cached = begin + length
        }
        return logits
    }

    /// Logits [$vocab] after one more token.
    func next(_ token: Int32) throws -> MLMultiArray {
        precondition(cached < Self.maxTokens)
        defer { cached += 1 }
        return try run(decode, [token], at: cached)
    }

    private func run(_ model: MLModel, _ tokens: ArraySlice<Int32>, at position: Int) throws -> MLMultiArray {
        let ids = MLShapedArray<Int32>(scalars: tokens, shape: [1, tokens.count])
        let at = MLShapedArray<Int32>(scalars: [Int32(position)], shape: [1])
        let input = try MLDictionaryFeatureProvider(dictionary: [
            "input_ids": MLMultiArray(ids), "position": MLMultiArray(at),
        ])
        let output = try model.prediction(from: input, using: state)
        return output.featureValue(for: "logits")!.multiArrayValue!  // [1, 1, $vocab], $scalar
    }
}""")

_EXPLICIT = Template("""import CoreML

final class Decoder {
    static let maxTokens = $max_tokens
    private let prefill: MLModel
    private let decode: MLModel
    private var caches: [String: MLMultiArray] = [:]
    private var cached = 0  // tokens in the cache

    init(compiledModel url: URL) throws {
        func load(_ function: String) throws -> MLModel {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = $units
$select
            return try MLModel(contentsOf: url, configuration: configuration)
        }
$models
        for name in (0..<$layers).flatMap({ ["key_cache_\\($$0)", "value_cache_\\($$0)"] }) {
            let cache = try MLMultiArray(shape: [1, $kv_heads, $max_tokens, $head_dim], dataType: .$data_type)
            memset(cache.dataPointer, 0, cache.count * $bytes)
            caches[name] = cache
        }
    }

    /// Logits [$vocab] after the prompt.
    func start(_ prompt: [Int32]) throws -> MLMultiArray {
        precondition(!prompt.isEmpty && prompt.count <= Self.maxTokens)
        cached = 0
        var logits: MLMultiArray!
        while cached < prompt.count {
            let left = prompt.count - cached
$choose
            logits = try run(length == 1 ? decode : prefill, prompt[begin..<begin + length], at: begin)
            cached = begin + length
        }
        return logits
    }

    /// Logits [$vocab] after one more token.
    func next(_ token: Int32) throws -> MLMultiArray {
        precondition(cached < Self.maxTokens)
        defer { cached += 1 }
        return try run(decode, [token], at: cached)
    }

    private func run(_ model: MLModel, _ tokens: ArraySlice<Int32>, at position: Int) throws -> MLMultiArray {
        let ids = MLShapedArray<Int32>(scalars: tokens, shape: [1, tokens.count])
        let at = MLShapedArray<Int32>(scalars: [Int32(position)], shape: [1])
        var features: [String: MLMultiArray] = caches
        features["input_ids"] = MLMultiArray(ids)
        features["position"] = MLMultiArray(at)
        let output = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: features))
        for name in caches.keys {
            caches[name] = output.featureValue(for: "new_" + name)!.multiArrayValue!
        }
        return output.featureValue(for: "logits")!.multiArrayValue!  // [1, 1, $vocab], $scalar
    }
}""")


def swift_page(job: BuildJob, runtime: CoreMLRuntime, counts: list[int], units: str) -> str:
    """The page for one built package; counts: prompt lengths that a call takes, any where there are none."""
    component = job.model.component("decoder")
    kv_heads, max_tokens, head_dim = component.states[0].sized({})[1:]
    vocabulary = component.entry("prefill").outputs[0].shape[-1]
    functions = list(dict.fromkeys(function.function for function in runtime.functions))
    half = runtime.compute == "fp16"
    scalar = "Float16" if half else "Float32"
    values = {
        "model": runtime.functions[0].package,
        "minimum": runtime.minimum.replace("iOS", "iOS "),
        "max_tokens": max_tokens,
        "functions": ", ".join(f"`{name}`" for name in functions),
        "prompt_lengths": ", ".join(map(str, counts)) if counts else f"any from 1 to {max_tokens}",
        "cache": "a state of the model" if runtime.cache == "state" else "inputs and outputs, passed on by the app",
        "compute": "float16" if half else "float32",
        "units": units,
        "vocab": vocabulary,
        "layers": len(component.states) // 2,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "scalar": scalar,
        "data_type": "float16" if half else "float32",
        "bytes": 2 if half else 4,
        "choose": _choice(counts, len(functions) > 1),
        "select": (
            "            configuration.functionName = function"
            if len(functions) > 1
            else "            _ = function  // one function serves both"
        ),
        "models": (
            '        prefill = try load("prefill")\n        decode = try load("decode")'
            if len(functions) > 1
            else '        prefill = try load("main")\n        decode = prefill'
        ),
    }
    swift = (_STATEFUL if runtime.cache == "state" else _EXPLICIT).substitute(values)
    features = _features(values, runtime.cache == "state")
    return _PAGE.substitute(values, swift=swift, features=features).rstrip()


def _choice(counts: list[int], decode: bool) -> str:
    """Swift lines that choose the next call's length and begin; the last call of a prompt may reach back."""
    if not counts:
        return "            let begin = cached, length = left"
    known = sorted({1, *counts}) if decode else counts
    return (
        f"            let lengths = {known}\n"
        "            // the shortest call that covers what is left, reaching back over cached tokens, or the longest\n"
        "            let length = lengths.first { $0 >= left && $0 <= prompt.count } ?? lengths.last { $0 <= left }!\n"
        "            let begin = length >= left ? prompt.count - length : cached"
    )


def _features(values: dict[str, Any], stateful: bool) -> str:
    cache = f"1 × {values['kv_heads']} × {values['max_tokens']} × {values['head_dim']}"
    scalar = values["scalar"]
    rows = [
        ("`input_ids`", "1 × length", "Int32", "token ids of this call"),
        ("`position`", "1", "Int32", "position of the first of them: how many tokens the cache holds"),
        ("`logits`", f"1 × 1 × {values['vocab']}", scalar, "logits of the last position"),
    ]
    names = f"`key_cache_0` … `value_cache_{values['layers'] - 1}`"
    if stateful:
        rows.append((names, cache, "Float16", "states"))
    else:
        rows.append((names, cache, scalar, "inputs; the outputs of the same names with `new_` before them are next"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
