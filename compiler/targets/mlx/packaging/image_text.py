"""SmolVLM in the layout of mlx-community, which mlx-vlm and mlx-swift load as their own model classes: config.json,
safetensors, tokenizer and the processor's files.

The same tensors serve traced functions, one for each entry: for C++ and Swift without a model class, and for a session
that shows every entry to be what was quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from artifacts import Progress
from artifacts.formats.mlx import MlxRuntime
from compiler.slots import HALF
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About
from compiler.targets.mlx import generic
from compiler.targets.mlx.packaging import Narrowed
from compiler.targets.mlx.packaging.text import write_configs
from compiler.targets.mlx.packaging.text_config import quantization_section
from compiler.targets.smolvlm import FAMILY, explicit_config, image_text_about, stored_twice, text_spec, write_processor

FAMILIES = (FAMILY,)
check, state_bytes, called = generic.check, generic.state_bytes, generic.called
# names of slots begin on the left, those of mlx-vlm's and mlx-swift's modules on the right
_PREFIXES = (
    ("model.text_model.", "language_model."),
    ("model.vision_model.", "vision_model."),
    ("model.connector.", "connector."),
    ("lm_head", "language_model.lm_head"),
)
# VLMModelFactory.swift, SmolVLM2.swift and Idefics3.swift of mlx-swift-lm were read for what is said here
_SWIFT_COMMIT = "1441444"
_RUN = (
    "## What was run, and what was not\n\n"
    "`edgewright validate` runs the functions with MLX on a CPU, in float32 and as shipped, and compares every output "
    "with PyTorch's. mlx-vlm 0.7.10 computes from the same tensors, but for two things: its last norm of the tower "
    "takes an epsilon of 1e-5 whatever the checkpoint says, and it looks positions of patches up by fractions that it "
    "rounds in float32{positions}. Nothing was **run on an Apple device**, nor by mlx-swift; speed and memory there "
    "are unknown."
)


def refusals(job: Job) -> list[str]:
    """What mlx-vlm's and mlx-swift's model classes cannot be told, one sentence each."""
    found, spec = generic.refusals(job), text_spec(job)
    for slot in job.model.slots:
        if slot.kind == "convolution" and job.schemes.get(slot.name, HALF).bits != 16:
            found.append(
                f"mlx: {slot.name}: mlx-vlm and mlx-swift hold convolutions in half precision; keep it at bits: 16"
            )
    unknown = {
        f"head_dim {spec.head_dim}, where hidden_size / num_attention_heads is not that": spec.head_dim * spec.heads
        != spec.hidden,
        f"rotary positions of type {spec.rope['rope_type']!r}": spec.rope["rope_type"] != "default",
        "layers without rotary positions": not all(spec.rotary),
        f"biases of {', '.join(spec.biases)}": bool(spec.biases),
        "norms of queries and keys": spec.head_norms,
    }
    return found + [f"mlx: mlx-vlm's text side knows no {what}" for what, has in unknown.items() if has]


def named(job: BuildJob) -> Callable[[str], str]:
    """By the modules of mlx-vlm's model class."""
    return _module


def _module(name: str) -> str:
    return next(
        (module + name.removeprefix(slot) for slot, module in _PREFIXES if name.startswith(slot)),
        name,
    )


def _slotted(name: str) -> str:
    """The inverse of `_module`; the head's name begins like the decoder's."""
    return next(
        (slot + name.removeprefix(module) for slot, module in reversed(_PREFIXES) if name.startswith(module)),
        name,
    )


def write(job: BuildJob, folder: Path, progress: Progress) -> tuple[MlxRuntime, Narrowed]:
    """See `packaging.Packaging`."""
    config = explicit_config(job) | {"dtype": "float16"}
    quantization = quantization_section(job.model.slots, job.schemes, lambda name: (_module(name),))
    if quantization is not None:
        config |= {"quantization": quantization, "quantization_config": quantization}
    write_configs(folder, dict(sorted(config.items())), text_spec(job))
    write_processor(job, folder)
    runtime, narrowed = generic.traced(job, folder, progress, _slotted)
    return runtime.model_copy(update={"requires": {"mlx": ">=0.32", "mlx-vlm": ">=0.7.10"}}), narrowed


def about(job: Job) -> About:
    """See `packaging.Packaging`."""
    return image_text_about(job)


def sections(job: BuildJob, runtime: MlxRuntime) -> list[str]:
    """Of README.md: how each loader takes the package, and where one of them does not compute the same."""
    tower = job.model.geometry["vision"]
    side = tower["image"] // tower["patch"]
    moved = misplaced(side)
    positions = ": at the " + f"{side} patches along an edge that this model has, "
    positions += f"**{moved} of them get their neighbour's position** on a CPU" if moved else "each gets its own"
    return [_PYTHON + stored_twice(job), _SWIFT, generic.calling(runtime), _RUN.format(positions=positions)]


def misplaced(side: int) -> int:
    """How many of `side` patches along an edge mlx-vlm 0.7.10 places by their neighbour's position, on a CPU.

    Its way, in MLX's own arithmetic: the places i / side are counted off against borders which are sums in float32.
    """
    import mlx.core as mx

    borders = mx.arange(1 / side, 1.0, 1 / side)
    places = mx.arange(side, dtype=mx.float32) / side
    found = (places[:, None] >= borders[None]).sum(axis=1)
    return int((found != mx.arange(side)).sum())


_PYTHON = """## Python

```python
from mlx_vlm import generate, load
from mlx_vlm.prompt_utils import apply_chat_template

model, processor = load("path/to/this/folder")
prompt = apply_chat_template(processor, model.config, "What is in the picture?", num_images=1)
print(generate(model, processor, prompt, "picture.png", max_tokens=64, temperature=0.0).text)
```

Needs mlx-vlm 0.7.10 or newer."""
_SWIFT = f"""## Swift

Needs [mlx-swift-lm](https://github.com/ml-explore/mlx-swift-lm) (products `MLXVLM` and `MLXLMCommon`) on Apple silicon.
`smolvlm` is in its `VLMTypeRegistry` and `SmolVLMProcessor` among its processors (read at commit `{_SWIFT_COMMIT}`);
it does not enlarge small images, so its tiles are fewer than those of `preprocessing.json`, by which the model was
trained: to see what was tested, cut tiles by that file.

```swift
import MLXLMCommon
import MLXVLM

let container = try await VLMModelFactory.shared.loadContainer(
    configuration: ModelConfiguration(directory: URL(filePath: "path/to/this/folder")))
let session = ChatSession(container)
print(try await session.respond(to: "What is in the picture?", image: .url(URL(filePath: "picture.png"))))
```

This snippet was written from mlx-swift-lm's sources and was not compiled."""
