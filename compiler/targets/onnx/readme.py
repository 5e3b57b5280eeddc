"""Of an ONNX package's README: how onnxruntime-genai and plain onnxruntime call it, and what was run."""

from __future__ import annotations

from compiler.targets.base import Job
from compiler.targets.onnx.geometry import padded_head


def sections(job: Job, *, positions: bool) -> list[str]:
    """positions: whether the graph takes `position_ids`."""
    return [_genai(job), _plain(job, positions), _RUN]


def _genai(job: Job) -> str:
    return (
        "## onnxruntime-genai\n\n```python\nimport onnxruntime_genai as og\n\n"
        'model = og.Model("path/to/this/folder")\n'
        "tokenizer = og.Tokenizer(model)\n"
        'tokenizer.update_options(add_special_tokens="true")\n'
        "parameters = og.GeneratorParams(model)\n"
        f"parameters.set_search_options(do_sample=False, max_length={min(256, job.max_tokens)})\n"
        "generator = og.Generator(model, parameters)\n"
        'generator.append_tokens(tokenizer.encode("def main("))\n'
        "stream = tokenizer.create_stream()\n"
        "while not generator.is_done():\n"
        "    generator.generate_next_token()\n"
        '    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)\n```\n\n'
        "`update_options` matters: by itself genai's `encode` leaves out the token that every text begins with, and "
        "the answers are then another model's. The C++, Java, C# and Objective-C interfaces take the same folder. "
        "`past_present_share_buffer` is on in `genai_config.json`, so the cache is allocated once, for `max_length`."
    )


def _plain(job: Job, positions: bool) -> str:
    spec = job.spec
    cache = "int8" if job.options.kv_bits == 8 else "float32"
    where = f"[1, {spec.kv_heads}, n, {padded_head(spec.head_dim)}]"
    inputs = [
        ("`input_ids`", "int64 [1, new]", "tokens of this call"),
        ("`attention_mask`", "int64 [1, past + new]", "ones"),
    ]
    if positions:
        inputs.append(("`position_ids`", "int64 [1, new]", "past, past + 1, …"))
    inputs.append(
        (
            f"`past_key_values.0.key` … `.{spec.layers - 1}.value`",
            f"{cache} {where}",
            "the cache; give the same buffer as `present.*` output to write it in place",
        )
    )
    last = "of the last position" if job.options.logits == "last" else "of every position of the call"
    outputs = [
        ("`logits`", f"float32 [1, {'1' if job.options.logits == 'last' else 'new'}, {spec.vocab}]", last),
        ("`present.*`", f"{cache} {where}", "the cache after the call"),
    ]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in inputs + outputs)
    return (
        "## Plain onnxruntime\n\n"
        "`model.onnx` with `model.onnx.data` beside it, which is mapped into memory; any onnxruntime with "
        "`com.microsoft` operators (MatMulNBits, GatherBlockQuantized, GroupQueryAttention) loads it, the mobile "
        "packages for Android and iOS among them.\n\n"
        f"| name | type and shape | what |\n|---|---|---|\n{rows}\n\n"
        f"n is the size of the cache that you allocate, at most {job.max_tokens}. While loading, onnxruntime copies "
        "the packed weights into anonymous memory in the layout of its kernels: about as much again as the file."
    )


_RUN = (
    "## What was run, and what was not\n\n"
    "Edgewright runs this folder in onnxruntime and onnxruntime-genai on the machine that built it, compares logits "
    "and text with PyTorch's, and measures memory there under the byte limit of a phone. It was **not run on a "
    "phone**; speed there is unknown."
)
