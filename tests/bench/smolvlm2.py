"""Time to the first token of an image at the 256M geometry: our packages beside the layout that is public.

    python -m tests.bench.smolvlm2 [--work FOLDER] [--rounds N] [--tiles N]

The public layout is three graphs, exported here from transformers' modules in float32 and then quantized to INT8 with
onnxruntime's dynamic quantization, as transformers.js makes them. All are in one layout, so one loop drives them: tiles
of one image, its tokens between words, the whole prompt at once, and the first token out. Ratios are medians over
interleaved rounds. Weights are random: nothing but time is looked at, after float32 has given transformers' own logits.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.measure import python, size_of, table
from tests.bench.synthetic import make_checkpoint

GEOMETRY, WORDS, THREADS, TILE, TOKENS, IMAGE = "smolvlm2-256m", 32, 2, 512, 64, 49190
GRAPHS = ("vision_encoder", "embed_tokens", "decoder_model_merged")


def export(source: Path, out: Path) -> None:
    """The three graphs of a checkpoint in float32."""
    import torch
    from transformers import DynamicCache, SmolVLMForConditionalGeneration

    model: Any = SmolVLMForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    text, layers = model.config.text_config, range(model.config.text_config.num_hidden_layers)

    class Vision(torch.nn.Module):
        def forward(self, pixel_values: Any, pixel_attention_mask: Any) -> Any:
            tiles, patches = pixel_values.flatten(0, 1), TILE // model.config.vision_config.patch_size
            seen = torch.ones(tiles.shape[0], patches, patches, dtype=torch.bool)
            states = model.model.vision_model(pixel_values=tiles, patch_attention_mask=seen).last_hidden_state
            # every tile is a whole one here; an input that nothing reads would be dropped
            return model.model.connector(states) * pixel_attention_mask.any(-1).any(-1).flatten()[:, None, None]

    class Decoder(torch.nn.Module):
        def forward(self, inputs_embeds: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
            cache = DynamicCache([(past[2 * i], past[2 * i + 1]) for i in layers])
            found = model.model.text_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            caches = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
            return (model.lm_head(found.last_hidden_state[:, -1:]), *caches)

    class Embed(torch.nn.Module):
        def forward(self, input_ids: Any) -> Any:
            return model.get_input_embeddings()(input_ids)

    free: Any = torch.export.Dim.DYNAMIC
    ids = torch.zeros(1, 7, dtype=torch.int64)
    past = [torch.zeros(1, text.num_key_value_heads, 3, text.head_dim) for _ in range(2 * len(layers))]
    names = [f"{i}.{kind}" for i in layers for kind in ("key", "value")]
    pixels = torch.zeros(1, 2, 3, TILE, TILE)
    given: list[tuple[Any, tuple[Any, ...], Any, list[str], list[str]]] = [
        (
            Vision(),
            (pixels, torch.ones(1, 2, TILE, TILE, dtype=torch.bool)),
            ({1: free}, {1: free}),
            ["pixel_values", "pixel_attention_mask"],
            ["image_features"],
        ),
        (Embed(), (ids,), ({1: free},), ["input_ids"], ["inputs_embeds"]),
        (
            Decoder(),
            (torch.zeros(1, 7, text.hidden_size), torch.ones(1, 10, dtype=torch.int64), ids, *past),
            ({1: free}, {1: free}, {1: free}, tuple({2: free} for _ in past)),
            ["inputs_embeds", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
            ["logits", *(f"present.{name}" for name in names)],
        ),
    ]
    out.mkdir(parents=True)
    for file, (module, inputs, shapes, taken, made) in zip(GRAPHS, given, strict=True):
        with torch.no_grad():
            program: Any = torch.onnx.export(
                module.eval(), inputs, dynamo=True, dynamic_shapes=shapes, input_names=taken, output_names=made
            )
        program.save(out / f"{file}.onnx", external_data=True)
    rows, pictures = prompt(2), np.random.default_rng(0).uniform(-1, 1, (2, 3, TILE, TILE)).astype(np.float32)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(rows), pixel_values=torch.from_numpy(pictures)[None]).logits[0, -1]
    logits, _ = first_token(out)(rows, pictures)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-3 * float(expected.abs().max()))


def quantize(source: Path, out: Path) -> None:
    """The same in INT8: matrices and tables, activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in GRAPHS:
            prepared = Path(folder) / f"{name}.onnx"
            quant_pre_process(
                source / f"{name}.onnx",
                prepared,
                skip_symbolic_shape=True,
                save_as_external_data=True,
                all_tensors_to_one_file=True,
            )
            quantize_dynamic(
                prepared,
                out / f"{name}.onnx",
                op_types_to_quantize=["MatMul", "Gather", "Gemm"],
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )


def prompt(tiles: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[1, S]: words, then the image's tokens, then words."""
    words = np.random.default_rng(1).integers(10, 1000, WORDS)
    return np.concatenate([words[:8], np.full(tiles * TOKENS, IMAGE), words[8:]])[None].astype(np.int64)


def first_token(folder: Path) -> Callable[[Any, Any], tuple[Any, float]]:
    """A function of a prompt and its tiles that gives the last position's logits and the seconds that they took."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    vision, embed, decoder = (
        ort.InferenceSession(next(folder.glob(f"{name}*.onnx")), options, providers=["CPUExecutionProvider"])
        for name in GRAPHS
    )
    wanted = {port.name: port for port in decoder.get_inputs()}
    empty = {
        name: np.zeros((1, port.shape[1], 0, port.shape[3]), np.float32)
        for name, port in wanted.items()
        if name.startswith("past")
    }

    def run(ids: Any, tiles: Any) -> tuple[Any, float]:
        begin = time.perf_counter()
        seen = np.ones((1, len(tiles), TILE, TILE), np.bool_)
        (features,) = vision.run(None, {"pixel_values": tiles[None], "pixel_attention_mask": seen})
        (embeddings,) = embed.run(None, {"input_ids": ids})
        embeddings[ids == IMAGE] = features.reshape(-1, features.shape[-1])
        given = {"inputs_embeds": embeddings, "attention_mask": np.ones_like(ids), **empty}
        if "position_ids" in wanted:
            given["position_ids"] = np.arange(ids.shape[1])[None]
        logits = decoder.run(["logits"], given)[0][0, -1]
        return logits, time.perf_counter() - begin

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=3)
    options = parser.parse_args()
    work: Path = options.work.resolve()
    source = make_checkpoint(work / "256m", GEOMETRY)
    public, whole = work / "256m-public-int8", work / "256m-public"
    if not whole.exists():
        export(source, whole)
    if not public.exists():
        quantize(whole, public)
    folders = {"public layout, float32": whole, "public layout, INT8": public}
    for bits in (8, 4):
        name = f"{GEOMETRY}-int{bits}"
        if not (work / name).exists():
            to_do = ("run", name, "--checkpoint", source, "--target", "onnx", "--out", work, "--no-validate", "--quiet")
            python("edgewright.cli", *to_do)
        folders[f"edgewright, INT{bits}"] = work / name / "onnx" / "onnx"

    ids = prompt(options.tiles)
    tiles = np.random.default_rng(0).uniform(-1, 1, (options.tiles, 3, TILE, TILE)).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in folders}
    runs = {name: first_token(folder) for name, folder in folders.items()}
    for round_ in range(options.rounds + 1):
        for name, run in runs.items():
            _, taken = run(ids, tiles)
            if round_:  # the first is warm-up
                seconds[name].append(taken)
    baselines = {name: seconds[f"public layout, {name}"] for name in ("float32", "INT8")}
    table(
        f"First token of {options.tiles} tiles and {WORDS} words at 256M, two threads",
        ["", "seconds", "times as fast as float32", "times as fast as INT8", "MB"],
        [
            [
                name,
                f"{statistics.median(taken):.2f}",
                *(
                    f"{statistics.median(a / b for a, b in zip(base, taken, strict=True)):.2f}"
                    for base in baselines.values()
                ),
                f"{size_of(folders[name]) / 1e6:.0f}",
            ]
            for name, taken in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
