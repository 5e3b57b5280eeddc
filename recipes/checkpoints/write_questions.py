"""Write held-out scenes and clips with questions, as `validate.task` and `quantize.calibration.images` read them.

    python -m recipes.checkpoints.write_questions FOLDER --scenes 2000 --clips 500

FOLDER gets questions.jsonl and beside it the pictures, without loss (clips need PyAV). `--train` writes pictures that
training may have seen instead, for calibration: what is held out has to stay unseen.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from recipes.checkpoints.scenes import HELD_OUT_SEED, Clip, Scene, make_clip, make_scene


def write_questions(folder: Path, scenes: int, clips: int = 0, *, first: int = 0, each: int = 1) -> Path:
    """The file of questions: about `scenes` scenes and `clips` clips from the seed `first` on, `each` about every one.

    From HELD_OUT_SEED on they are held out. The first question about each is that of `scenes.held_out_scenes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in range(first, first + scenes):
        scene = make_scene(seed)
        name = f"scene-{seed}.webp"
        scene.draw().save(folder / name, lossless=True)
        lines += [{"question": q, "answer": a, "image": name} for q, a in _asked(scene, seed, each)]
    for seed in range(first, first + clips):
        clip = make_clip(seed)
        name = f"clip-{seed}.mkv"
        _write_clip(folder / name, clip)
        lines += [{"question": q, "answer": a, "video": name} for q, a in _asked(clip, seed, each)]
    path = folder / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def _asked(shown: Scene | Clip, seed: int, each: int) -> list[tuple[str, str]]:
    rng = random.Random(seed + 1_000_000_000)
    turns = shown.turns(rng)
    first = rng.choice(turns)
    rest = [turn for turn in turns if turn != first]
    return [first, *random.Random(seed).sample(rest, min(each - 1, len(rest)))]


def _write_clip(path: Path, clip: Clip) -> None:
    import av

    from recipes.checkpoints.scenes import FPS

    frames = clip.frames()
    with av.open(path, "w") as file:
        stream = file.add_stream("ffv1", rate=FPS)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "bgr0"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--clips", type=int, default=0)
    parser.add_argument("--each", type=int, default=1, help="questions about every picture")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--train", action="store_true", help="pictures that training may have seen")
    args = parser.parse_args()
    first = args.first + (0 if args.train else HELD_OUT_SEED)
    print(write_questions(args.folder, args.scenes, args.clips, first=first, each=args.each))


if __name__ == "__main__":
    main()
