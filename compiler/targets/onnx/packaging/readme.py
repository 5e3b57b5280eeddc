"""Of a text package's README: how onnxruntime-genai and plain onnxruntime call it, and what was run."""

from __future__ import annotations

from typing import Any

from artifacts.formats import onnx as formats
from compiler.targets.base import BuildJob


def sections(job: BuildJob, graph: formats.Graph) -> list[str]:
    """In order."""
    return [_genai(job), _plain(job, graph), _RUN]


def _genai(job: BuildJob) -> str:
    limit: Any = job.model.constants["max_tokens"]
    return (
        "## onnxruntime-genai\n\n```python\nimport onnxruntime_genai as og\n\n"
        'model = og.Model("path/to/this/folder")\n'
        "tokenizer = og.Tokenizer(model)\n"
        'tokenizer.update_options(add_special_tokens="true")\n'
        "parameters = og.GeneratorParams(model)\n"
        f"parameters.set_search_options(do_sample=False, max_length={min(256, limit)})\n"
        "generator = og.Generator(model, parameters)\n"
        'generator.append_tokens(tokenizer.encode("def main("))\n'
        "stream = tokenizer.create_stream()\n"
        "while not generator.is_done():\n"
        "    generator.generate_next_token()\n"
        '    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)\n```\n\n'
        "`update_options` matters where the tokenizer begins every text with a token: by itself genai's `encode` "
        "leaves it out, and the answers are then another model's. The C++, Java, C# and "
        "Objective-C interfaces take the same folder. "
        "`past_present_share_buffer` is on in `genai_config.json`, so the cache is allocated once, for `max_length`."
    )


def _plain(job: BuildJob, graph: formats.Graph) -> str:
    (decoder,) = job.model.components
    constants: Any = job.model.constants
    cache = "int8" if job.options.kv_bits == 8 else "float32"
    _, heads, limit, head = graph.states[decoder.states[0].name].shape
    where = f"[1, {heads}, n, {head}]"
    inputs = [
        ("`input_ids`", "int64 [1, new]", "tokens of this call"),
        ("`attention_mask`", "int64 [1, past + new]", "ones"),
    ]
    if "positions" in graph.inputs:
        inputs.append(("`position_ids`", "int64 [1, new]", "past, past + 1, …"))
    inputs.append(
        (
            f"`past_key_values.0.key` … `.{len(decoder.states) // 2 - 1}.value`",
            f"{cache} {where}",
            "the cache; give the same buffer as `present.*` output to write it in place",
        )
    )
    last = "of the last position" if job.options.logits == "last" else "of every position of the call"
    rows = "1" if job.options.logits == "last" else "new"
    outputs = [
        ("`logits`", f"float32 [1, {rows}, {constants['vocab_size']}]", last),
        ("`present.*`", f"{cache} {where}", "the cache after the call"),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in inputs + outputs)
    return (
        "## Plain onnxruntime\n\n"
        "`model.onnx` with `model.onnx.data` beside it, which is mapped into memory; any onnxruntime with "
        "`com.microsoft` operators (MatMulNBits, GatherBlockQuantized, GroupQueryAttention) loads it, the mobile "
        "packages for Android and iOS among them.\n\n"
        f"| name | type and shape | what |\n|---|---|---|\n{table}\n\n"
        f"n is the size of the cache that you allocate, at most {limit}. While loading, onnxruntime copies "
        "the packed weights into anonymous memory in the layout of its kernels: about as much again as the file, "
        "unless copies lie in it (below), beside the cache and what it computes in. What it held in all when it was "
        "validated stands in `edgewright.json`."
    )


_RUN = (
    "## What was run, and what was not\n\n"
    "`edgewright validate` runs this folder in onnxruntime and onnxruntime-genai on your machine, compares logits and "
    "text with PyTorch's, and holds its memory there against the byte limit of a phone. Whether that was done, and "
    "what came of it, stands in `edgewright.json`. It was **not run on a phone**; speed there is unknown."
)
