"""Compare what `tiny-smolvlm2` was trained and measured on with what transformers' own processor makes of it.

    python recipes/checkpoints/check_tiny_smolvlm2.py

Token ids are equal; pixels of images are equal, those of clips within two steps of 255 (transformers resizes frames
twice with torchvision's Lanczos, each with its own rounding); logits of the model and of the training's own forward
pass agree. Needs num2words and torchvision; of the latter any wheel of the right version will do, also one whose
compiled part cannot be loaded beside this torch.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import torch


def declare_torchvision_operators() -> None:
    """torchvision's Python part registers shape functions for two operators that its compiled part declares."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    KEPT.append(library)


KEPT: list[torch.library.Library] = []  # an operator goes when its library object does


def main() -> None:
    declare_torchvision_operators()
    from transformers import AutoProcessor, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.video_utils import VideoMetadata

    from recipes.checkpoints.scenes import held_out_clips, held_out_scenes
    from recipes.checkpoints.smolvlm2_checkpoint import OUT
    from recipes.checkpoints.smolvlm2_examples import clip_example, scene_example
    from recipes.checkpoints.train_tiny_smolvlm2 import Packer, forward

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=OUT)
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()

    processor = AutoProcessor.from_pretrained(args.checkpoint)
    processor.image_processor = SmolVLMImageProcessorPil.from_pretrained(args.checkpoint)
    model = SmolVLMForConditionalGeneration.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
    packer = Packer(processor.tokenizer)
    inputs = []
    for e in held_out_scenes(args.count):
        example = scene_example(e.scene, [(e.question, e.answer)])
        content = [{"type": "image"}, {"type": "text", "text": e.question}]
        inputs.append((example, content, {"images": [e.image]}, 0.0))
    for e in held_out_clips(args.count):
        example = clip_example(e.clip, [(e.question, e.answer)])
        content = [{"type": "video"}, {"type": "text", "text": e.question}]
        n = len(e.frames)
        metadata = VideoMetadata(total_num_frames=n, fps=e.fps, duration=n / e.fps)
        frames = np.stack([np.asarray(f) for f in e.frames])
        inputs.append((example, content, {"videos": [frames], "video_metadata": [metadata]}, 2.0))

    worst = {0.0: 0.0, 2.0: 0.0}
    logits = right = 0.0
    for example, content, media, bound in inputs:
        question, answer = example.turns[0]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        theirs = processor(text=prompt, return_tensors="pt", **media)
        ids = theirs["input_ids"][0].tolist()
        assert ids == processor.tokenizer(example.prompt(question), add_special_tokens=False)["input_ids"]
        batch, _ = packer.pack([example], None)
        assert batch.ids[0, : len(ids)].tolist() == ids
        pixels = theirs["pixel_values"][0].permute(0, 2, 3, 1)
        off = (pixels * 127.5 + 127.5 - batch.pixels).abs().max().item()
        worst[bound] = max(worst[bound], off)
        assert off <= bound + 1e-3, f"{off} of 255"
        with torch.no_grad():
            packed, _ = forward(model, batch.pixels, batch.ids, batch.turn, batch.positions, batch.image_at)
            exact = (batch.pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)[None]
            whole = model(input_ids=batch.ids, pixel_values=exact).logits
        logits = max(logits, (packed - whole).abs().max().item())
        generated = model.generate(**theirs, do_sample=False, max_new_tokens=96)[0, len(ids) :]
        right += processor.decode(generated, skip_special_tokens=True).strip() == answer
    assert logits < 1e-3, f"{logits}"
    print(f"{len(inputs)} prompts: ids equal; largest difference of pixels {worst[0.0]:.4f} of 255 in images,", end=" ")
    print(f"{worst[2.0]:.4f} in clips; of logits {logits:.1e}; {right:.0f} answers right through the processor")
    for example, *_ in islice(inputs, 0, None, args.count):
        print(repr(example.prompt(example.turns[0][0])))


if __name__ == "__main__":
    main()
