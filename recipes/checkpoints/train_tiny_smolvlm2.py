"""Train `tiny-smolvlm2`: a 3.6M-parameter SmolVLM2 with every feature of the real ones alive.

    OMP_NUM_THREADS=1 python recipes/checkpoints/train_tiny_smolvlm2.py    # about two and a half hours on one core

SigLIP tower (patch convolution, learned positions, biases, post layer norm) over tiles of 64 pixels, 4 × 4 pixel
shuffle to 4 tokens a tile, connector without bias, Llama decoder with grouped queries and a head that is not tied to
the embedding. Images are split into up to 2 × 2 tiles and a global one, clips are sampled at one frame a second;
prompts are those of transformers' SmolVLMProcessor. It learns to answer every question of `scenes.py`; exact-match
accuracy of greedy answers on held-out scenes and clips, from the stored weights in float32, is printed and written to
`training.json`.

One training sequence is one picture and many questions: each question sees the picture and itself, not the others.
`--state` makes a run resumable.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from recipes.checkpoints.scenes import HELD_OUT_SEED, Clip, Scene, Turn, make_clip, make_scene
from recipes.checkpoints.smolvlm2_checkpoint import OUT, config, measure, save, train_tokenizer
from recipes.checkpoints.smolvlm2_examples import END, IMAGE, SPECIAL, Example, clip_example, scene_example

HARD = ("How many", "What color", "Where is")  # what is learned last


def initialize(model: SmolVLMForConditionalGeneration) -> None:
    """Widths here are far below those that a deviation of 0.02 is meant for."""
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            fan_in = p[0].numel()
            scale = 0.3 if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")) else 1
            torch.nn.init.normal_(p, std=0.1 if "embed" in name and p.ndim == 2 else scale * fan_in**-0.5)


@dataclass(frozen=True)
class Batch:
    """Rows of one picture and its questions. `turn` is 0 in the picture's prefix, which every question sees."""

    pixels: torch.Tensor  # (tiles of all rows, 64, 64, 3) uint8
    ids: torch.Tensor  # (rows, length), as are the others
    turn: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor  # the next token where that is part of an answer, else -100
    image_at: torch.Tensor  # flat indices of the image tokens
    shown: torch.Tensor  # (tiles × 64)


class Packer:
    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.image = SPECIAL.index(IMAGE)
        self.encode = lru_cache(100_000)(lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))

    def pack(self, examples: list[Example], length: int | None) -> tuple[Batch, list[list[Turn]]]:
        """A batch, and which questions each row holds: as many as fit; all of them if no length is given."""
        rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
        held: list[list[Turn]] = []
        for example in examples:
            prefix = list(self.encode(example.prefix))
            ids, turn, positions, labels = prefix, [0] * len(prefix), list(range(len(prefix))), [-100] * len(prefix)
            start, fit = len(prefix), []
            for question, answer in example.turns:
                q = self.encode(f"{example.before}{question}{END}\nAssistant:")
                a = self.encode(f" {answer}{END}")
                if length is not None and len(ids) + len(q) + len(a) - 1 > length:
                    continue
                fit.append((question, answer))
                ids = [*ids, *q, *a[:-1]]
                labels = [*labels, *[-100] * (len(q) - 1), *a]
                n = len(q) + len(a) - 1
                turn = [*turn, *[len(fit)] * n]
                positions = [*positions, *range(start, start + n)]
            rows.append((ids, turn, positions, labels))
            held.append(fit)
        width = length or max(len(r[0]) for r in rows)
        fill = (SPECIAL.index("<|im_end|>"), 10_000, 0, -100)
        stacked = [
            torch.tensor([r[i] + [fill[i]] * (width - len(r[i])) for r in rows], dtype=torch.int64) for i in range(4)
        ]
        pixels = torch.from_numpy(np.concatenate([e.pixels for e in examples]))
        image_at = (stacked[0].flatten() == self.image).nonzero()[:, 0]
        shown = torch.from_numpy(np.concatenate([e.shown for e in examples])).flatten()
        return Batch(pixels, *stacked, image_at, shown), held


def forward(
    model: SmolVLMForConditionalGeneration,
    pixels: torch.Tensor,
    ids: torch.Tensor,
    turn: torch.Tensor,
    positions: torch.Tensor,
    image_at: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the tower's output. The model's own layers; only the attention mask is not the model's."""
    vision, text = model.model.vision_model, model.model.text_model
    x = vision.embeddings.patch_embedding(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    x = x.flatten(2).transpose(1, 2) + vision.embeddings.position_embedding.weight
    for layer in vision.encoder.layers:
        x = layer(x, None)
    x = vision.post_layernorm(x)
    features = model.model.connector(x)
    h = text.embed_tokens(ids)
    h = h.flatten(0, 1).index_copy(0, image_at, features.flatten(0, 1).to(h.dtype)).view(h.shape)
    at = torch.arange(ids.shape[1])
    seen = (at[:, None] >= at) & ((turn[:, None, :] == 0) | (turn[:, None, :] == turn[:, :, None]))
    rotary = text.rotary_emb(h, positions)
    for layer in text.layers:
        h = layer(h, attention_mask=seen[:, None], position_ids=positions, position_embeddings=rotary)
    return model.lm_head(text.norm(h)), x


class Hint(torch.nn.Module):
    """Tells the tower what its patches show, while it trains: seeing comes before answering. Thrown away after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape, self.color = torch.nn.Linear(width, 6), torch.nn.Linear(width, 7)

    def forward(self, x: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        x = x.flatten(0, 1).float()
        some = shown > 0
        shape, color = ((shown - 1) // 6 + 1) * some, ((shown - 1) % 6 + 1) * some
        weights = torch.where(some, 1.0, 0.1)
        each = [
            torch.nn.functional.cross_entropy(h(x), y, reduction="none")
            for h, y in ((self.shape, shape), (self.color, color))
        ]
        return ((each[0] + each[1]) * weights).sum() / weights.sum()


def training_pictures(step: int, rows: int) -> list[Scene | Clip]:
    """What a step shows. Its composition is the same in every step, and so is its number of tiles."""
    most = 2 if step < 45 else 3 if step < 120 else 5
    pictures: list[Scene | Clip] = []
    for row in range(rows):
        seed, kind = step * rows + row, row % 16
        if kind < 12:
            layout = "square" if kind < 7 else "wide" if kind < 9 else "tall" if kind < 11 else None
            pictures.append(make_scene(seed, layout, most))
        else:
            pictures.append(make_clip(seed, kind - 9, min(3, most)))
    return pictures


def training_examples(step: int, rows: int) -> list[Example]:
    """The pictures of a step with their questions, every sixteenth as the global tile alone."""
    examples = []
    for row, picture in enumerate(training_pictures(step, rows)):
        rng = random.Random(step * rows + row + 7_000_000_000)
        turns = list(dict.fromkeys(turn for _ in range(4) for turn in picture.turns(rng)))
        rng.shuffle(turns)
        turns.sort(key=lambda turn: not turn[0].startswith(HARD))  # a row takes as many as fit
        if isinstance(picture, Scene):
            examples.append(scene_example(picture, turns, split=row % 16 != 11))
        else:
            examples.append(clip_example(picture, turns))
    return examples


@torch.no_grad()
def teacher_forced(run, packer: Packer, examples: list[Example], by: dict[str, list[int]]) -> float:
    """Share of answers whose every token is the most probable one: exactly those that greedy decoding gives."""
    right = total = 0
    for at in range(0, len(examples), 16):
        batch, held = packer.pack(examples[at : at + 16], None)
        best = run(batch.pixels, batch.ids, batch.turn, batch.positions, batch.image_at)[0].argmax(-1)
        wrong = (best != batch.labels) & (batch.labels != -100)
        for row, turns in enumerate(held):
            for number, (question, _) in enumerate(turns, 1):
                ok = not bool(wrong[row][batch.turn[row] == number].any())
                right, total = right + ok, total + 1
                by[" ".join(question.split()[:2])].append(ok)
    return right / total


def held_out_examples(scenes: int, clips: int) -> tuple[list[Example], list[Example]]:
    """Every question about held-out scenes and clips; beyond those that are tested at the end."""
    first = HELD_OUT_SEED + 1_000_000
    stills = [make_scene(first + i) for i in range(scenes)]
    moving = [make_clip(first + i) for i in range(clips)]
    return (
        [scene_example(s, s.turns(random.Random(i))) for i, s in enumerate(stills)],
        [clip_example(c, c.turns(random.Random(i))) for i, c in enumerate(moving)],
    )


def train(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast
) -> tuple[SmolVLMForConditionalGeneration, float]:
    """The trained model, and the seconds that it took."""
    torch.manual_seed(0)
    packer = Packer(tokenizer)
    model = SmolVLMForConditionalGeneration(config()).float().train()
    initialize(model)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens", flush=True)
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    hint = Hint(model.config.vision_config.hidden_size)
    others = [p for _, p in named if id(p) not in chosen] + list(hint.parameters())
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    base = [args.lr, 3e-3]
    start, seconds = 0, 0.0
    if args.state and args.state.exists():
        saved = torch.load(args.state)
        model.load_state_dict(saved["model"])
        hint.load_state_dict(saved["hint"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start, seconds = saved["step"], saved["seconds"]
        print(f"resumed at step {start}", flush=True)

    def run(*inputs):
        return forward(model, *inputs)

    compiled = torch.compile(run, dynamic=False) if args.compile else run
    probe = held_out_examples(128, 64)
    began = time.time() - seconds
    smooth, last_save = None, time.time()
    spent = defaultdict(float)
    for step in range(start, args.steps):
        t0 = time.time()
        batch, _ = packer.pack(training_examples(step, args.rows), args.length)
        t1 = time.time()
        scale = min(1.0, (step + 1) / 50, 0.01 + (args.steps - step) / (0.7 * args.steps))
        for optimizer, lr in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = lr * scale
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits, x = compiled(batch.pixels, batch.ids, batch.turn, batch.positions, batch.image_at)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten())
        told = hint(x, batch.shown)
        (loss + args.hint * max(0.0, 1 - 1.5 * step / args.steps) * told).backward()
        t2 = time.time()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        t3 = time.time()
        spent["data"] += t1 - t0
        spent["model"] += t2 - t1
        spent["optimizer"] += t3 - t2
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if step % 25 == 0:
            each = " ".join(f"{k} {v / 25:.2f}" for k, v in spent.items())
            print(
                f"step {step} loss {smooth:.4f} hint {told.item():.3f} {time.time() - began:.0f} s; a step: {each}",
                flush=True,
            )
            spent.clear()
        if (step + 1) % args.probe == 0 or step + 1 == args.steps:
            model.eval()
            by: dict[str, list[int]] = defaultdict(list)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                figures = [teacher_forced(run, packer, e, by) for e in probe]
            model.train()
            kinds = " ".join(f"{k!r} {np.mean(v):.2f}" for k, v in by.items())
            print(f"  scenes {figures[0]:.4f} clips {figures[1]:.4f}: {kinds} {time.time() - began:.0f} s", flush=True)
        if args.state and (time.time() - last_save > 60 or step + 1 == args.steps):
            state = {
                "model": model.state_dict(),
                "hint": hint.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "step": step + 1,
                "seconds": time.time() - began,
            }
            torch.save(state, args.state.with_suffix(".new"))
            os.replace(args.state.with_suffix(".new"), args.state)
            last_save = time.time()
    return model.eval(), time.time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--rows", type=int, default=32, help="pictures a step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a picture and its questions")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--hint", type=float, default=0.5, help="weight of what the tower is told of its patches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--probe", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=2000, help="held out, to measure with")
    parser.add_argument("--clips", type=int, default=500, help="held out, to measure with")
    parser.add_argument("--state", type=Path, help="where to keep what resuming needs, every minute")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    tokenizer = train_tokenizer()
    model, seconds = train(args, tokenizer)
    save(model, tokenizer, args.out)
    trained = [p.digest for step in range(args.steps) for p in training_pictures(step, args.rows)]
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "stored": "bfloat16",
        "measured": "float32 by transformers' generate, greedy, from the stored weights",
        "steps": args.steps,
        "training_pictures": len(trained),
        "training_contents": len(set(trained)),
        "training_seeds": [0, len(trained) - 1],
        "held_out_seeds": [HELD_OUT_SEED, HELD_OUT_SEED + max(args.scenes, args.clips) - 1],
        "minutes": round(seconds / 60, 1),
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **measure(args.out, args.scenes, args.clips, trained),
    }
    (args.out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    if report["scenes"]["accuracy"] < 0.95 or report["clips"]["accuracy"] < 0.9:
        raise SystemExit("below 95 % of scenes or 90 % of clips: train longer")


if __name__ == "__main__":
    main()
