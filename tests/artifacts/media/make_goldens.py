"""Writes goldens.json: what the processors of transformers that want torchvision give for clips and for Pixtral.

Run from the repository's root, with torchvision of the installed torch on the path (its wheel without dependencies will
do: where it is linked to CUDA its operators cannot load, and the two that its import asks for are declared here):

    PYTHONPATH=<folder with torchvision> python -m tests.artifacts.media.make_goldens
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from tests.artifacts.media import reference as ref  # noqa: E402

# frames and frames per second: one frame, a moment, ties of rounding, all limits, ends skipped, cameras
CLIPS = (
    (1, 25.0), (2, 30.0), (3, 2.0), (5, 10.0), (15, 30.0), (45, 30.0), (75, 30.0), (90, 29.97), (120, 24.0),
    (250, 25.0), (299, 23.976), (750, 30.0), (900, 30.0), (1000, 29.97), (4000, 60.0), (200, 0.5), (7, 0.3),
    (100_000, 25.0),
)  # fmt: skip
SIZES = ((40, 30), (31, 97), (64, 64))
PROMPTS = (
    "<video>What moved?", "User: <video>\nWhat moved?<end_of_utterance>\nAssistant:", "<image>\n\n<video><image> and?",
)  # fmt: skip


def main() -> None:
    """Writes the file beside this one."""
    found = {"sampling": _sampling(), "frames": _frames(), "prompts": _prompts(), "pixtral": _pixtral()}
    rows = (f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, values)) + "\n]" for name, values in found.items())
    ref.GOLDENS.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def _videos() -> Any:
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    sampling = {"fps": ref.FPS, "max_frames": ref.MAX_FRAMES, "video_size": {"longest_edge": ref.VIDEO_LONGEST}}
    return SmolVLMVideoProcessor(
        video_sampling=sampling, max_image_size={"longest_edge": ref.TILE}, do_sample_frames=True, return_metadata=True
    )


def _metadata(frames: int, fps: float) -> dict[str, Any]:
    return {"total_num_frames": frames, "fps": fps, "duration": frames / fps}


def _sampling() -> list[dict[str, Any]]:
    from transformers.video_utils import VideoMetadata

    processor, found = _videos(), []
    for frames, fps in CLIPS:
        metadata = VideoMetadata(**_metadata(frames, fps))
        metadata.frames_indices = processor.sample_frames(metadata).tolist()
        found.append({"frames": frames, "fps": fps, "indices": metadata.frames_indices, "times": metadata.timestamps})
    return found


def _frames() -> list[dict[str, Any]]:
    processor, found = _videos(), []
    for height, width in SIZES:
        clip = ref.clip(20, height, width)
        out = processor(clip, video_metadata=[_metadata(20, 10.0)], return_tensors="pt")
        values = out["pixel_values"][0].numpy()
        flat = values.reshape(-1)[:: values.size // 300]
        found.append({"size": [height, width], "shape": list(values.shape), "values": np.round(flat, 5).tolist()})
    return found


def _prompts() -> list[dict[str, Any]]:
    processor, found = ref.smolvlm_processor(videos=_videos()), []
    for at, (frames, fps) in enumerate(clip for clip in CLIPS if clip[0] <= 1000):
        prompt = PROMPTS[at % len(PROMPTS)]
        images = [Image.fromarray(ref.picture(*size)) for size in ref.IMAGES[: prompt.count("<image>")]]
        given = {"videos": [np.zeros((frames, 8, 10, 3), np.uint8)], "images": images or None}
        ids = processor(text=prompt, **given, video_metadata=[_metadata(frames, fps)], return_tensors="pt")["input_ids"]
        found.append({"prompt": prompt, "images": len(images), "frames": frames, "fps": fps, "ids": ids[0].tolist()})
    return found


def _pixtral() -> list[dict[str, Any]]:
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

    processor, found = PixtralProcessor(ref.pixtral_images(), ref.tokenizer(), patch_size=14, spatial_merge_size=2), []
    sizes = [[size] for size in ref.SIZES if min(size) > 27 or max(size) < 99]
    for size in [*sizes, [(30, 200), (64, 64)], [(1, 1), (511, 513), (90, 20)]]:
        prompt = "Before" + " and [IMG]" * len(size) + "\n\nafter"
        images = [Image.fromarray(ref.picture(*one)) for one in size]
        ids = processor(text=prompt, images=images)["input_ids"][0].tolist()
        found.append({"prompt": prompt, "sizes": size, "ids": ids})
    return found


if __name__ == "__main__":
    main()
