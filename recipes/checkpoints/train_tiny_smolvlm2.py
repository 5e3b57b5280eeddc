"""Train `tiny-smolvlm2`: a 3.6M-parameter SmolVLM2 with every feature of the real ones alive.

    OMP_NUM_THREADS=1 python recipes/checkpoints/train_tiny_smolvlm2.py            # about an hour on one core

SigLIP tower (patch convolution, learned positions, biases, post layer norm) over tiles of 64 pixels, 4 × 4 pixel
shuffle to 4 tokens a tile, connector without bias, Llama decoder with grouped queries and a head that is not tied to
the embedding. Images are split into up to 2 × 2 tiles and a global one, clips are sampled at one frame a second;
prompts are those of transformers' SmolVLMProcessor. It learns to answer every question of `scenes.py`; exact-match
accuracy of greedy answers on held-out scenes and clips, from the stored weights in float32, is printed and written to
`training.json`.

One training sequence is one picture and many questions: each question sees the picture and itself, not the others.
`--state` makes a run resumable. Inputs are built here, without transformers' processors, which want torchvision:
`check_tiny_smolvlm2.py` compares the two.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration

from recipes.checkpoints.scenes import (
    COLORS,
    FPS,
    HELD_OUT_SEED,
    SHAPES,
    Clip,
    Look,
    Placed,
    Scene,
    Turn,
    every_sentence,
    held_out_clips,
    held_out_scenes,
    make_clip,
    make_scene,
)

OUT = Path(__file__).parent / "tiny-smolvlm2"
VOCAB = 512
TILE = 64  # pixels
PATCH = 8
LONGEST = 128
TILE_TOKENS = 4
MAX_FRAMES = 8
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")  # as num2words has them
END, FAKE, IMAGE, GLOBAL = "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"
ROWS = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", GLOBAL, *ROWS, FAKE, IMAGE, END]
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] in ('image', 'video') %}{{ '<' + part['type'] + '>' }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

# ---------------------------------------------------------------------------------------------- prompts and pixels


def image_prompt(rows: int, columns: int) -> str:
    """What the image token stands for: rows × columns tiles in reading order, then the global one; (0, 0): it alone."""
    text = ""
    for r in range(rows):
        text += "".join(f"{FAKE}<row_{r + 1}_col_{c + 1}>{IMAGE * TILE_TOKENS}" for c in range(columns)) + "\n"
    return text + ("\n" if rows else "") + f"{FAKE}{GLOBAL}{IMAGE * TILE_TOKENS}{FAKE}"


def video_prompt(seconds: int, timestamps: Sequence[float]) -> str:
    """What the video token stands for, without the blank line before the question. `seconds`: of the whole video."""
    count, length = COUNTS[len(timestamps)], f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    text = f"You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n"
    for t in timestamps:
        text += f"\nFrame from {int(t // 60):02d}:{int(t % 60):02d}:{image_prompt(0, 0)}"
    return text


def _longest(image: Image.Image, longest: int) -> Image.Image:
    """Resized to this longest edge, the other one even; transformers' arithmetic, truncations included."""
    width, height = image.size
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        width, height = int(longest * aspect), longest
        width += width % 2
    return image.resize((width, height), Image.Resampling.LANCZOS)


def tiles(image: Image.Image, split: bool = True) -> tuple[np.ndarray, int, int]:
    """An image as (tiles, 64, 64, 3) uint8, the global tile last, and its rows and columns of tiles."""
    image = _longest(image, LONGEST)
    if not split:
        return np.asarray(image.resize((TILE, TILE), Image.Resampling.LANCZOS))[None], 0, 0
    rows, columns = math.ceil(image.height / TILE), math.ceil(image.width / TILE)
    image = image.resize((columns * TILE, rows * TILE), Image.Resampling.LANCZOS)
    grid = np.asarray(image).reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    whole = np.asarray(image.resize((TILE, TILE), Image.Resampling.LANCZOS))
    return np.concatenate([grid, whole[None]]), rows, columns


def sampled(clip: Clip) -> list[int]:
    """Indices of the frames that one frame a second takes, as SmolVLMVideoProcessor.sample_frames does."""
    return [int(i) for i in np.linspace(0, clip.total_frames - 1, min(clip.seconds, MAX_FRAMES), dtype=int)]


def frame_tiles(frames: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(_longest(f, LONGEST).resize((TILE, TILE), Image.Resampling.LANCZOS)) for f in frames])


@dataclass(frozen=True)
class Example:
    """A picture as the model is given it, and what is asked about it."""

    pixels: np.ndarray  # (tiles, 64, 64, 3) uint8
    prefix: str  # of the prompt, up to the question
    before: str  # what the question follows on
    turns: list[Turn]
    shown: np.ndarray  # (tiles, 8, 8) int64: what each patch shows, see `patches`

    def prompt(self, question: str) -> str:
        return f"{self.prefix}{self.before}{question}{END}\nAssistant:"


def patches(placed: Sequence[Placed], look: Look, rows: int, columns: int) -> np.ndarray:
    """What the patches of rows × columns tiles show, (tiles, 8, 8): 0 for nothing, else 1 + 6 × shape + colour."""
    h, w = rows * TILE // PATCH, columns * TILE // PATCH
    shown = np.zeros((h, w), np.int64)
    y, x = (np.arange(h)[:, None] + 0.5) / h, (np.arange(w) + 0.5) / w
    for p in placed:
        near_x = np.abs(x - p.x / look.width) < max(0.9 * p.radius / look.width, 0.5 / w)
        near_y = np.abs(y - p.y / look.height) < max(0.9 * p.radius / look.height, 0.5 / h)
        shown[near_y & near_x] = 1 + 6 * SHAPES.index(p.thing.shape) + tuple(COLORS).index(p.thing.color)
    n = TILE // PATCH
    return shown.reshape(rows, n, columns, n).swapaxes(1, 2).reshape(-1, n, n)


def scene_example(scene: Scene, turns: list[Turn], split: bool = True) -> Example:
    pixels, rows, columns = tiles(scene.draw(), split)
    placed = scene.placed()
    shown = patches(placed, scene.look, 1, 1)
    if rows:
        shown = np.concatenate([patches(placed, scene.look, rows, columns), shown])
    return Example(pixels, f"<|im_start|>User:{image_prompt(rows, columns)}", "", turns, shown)


def clip_example(clip: Clip, turns: list[Turn]) -> Example:
    indices = sampled(clip)
    text = video_prompt(clip.seconds, [i / FPS for i in indices])
    shown = np.concatenate([patches(placed, clip.look, 1, 1) for placed in clip.placed(indices)])
    return Example(frame_tiles(clip.frames(indices)), f"<|im_start|>User: {text}", "\n\n", turns, shown)


# ------------------------------------------------------------------------------------------------------- the model


def config() -> SmolVLMConfig:
    return SmolVLMConfig(
        vision_config={
            "model_type": "smolvlm_vision",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH,
            "max_image_size": {"longest_edge": TILE},
        },
        text_config={
            "model_type": "llama",
            "vocab_size": VOCAB,
            "hidden_size": 256,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": False,
            "bos_token_id": SPECIAL.index("<|im_start|>"),
            "eos_token_id": SPECIAL.index(END),
            "pad_token_id": SPECIAL.index("<|im_end|>"),
        },
        scale_factor=4,
        image_token_id=SPECIAL.index(IMAGE),
        tie_word_embeddings=False,
        pad_token_id=SPECIAL.index("<|im_end|>"),
        dtype="bfloat16",
        architectures=["SmolVLMForConditionalGeneration"],
    )


def train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(t, special=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = list(every_sentence())
    for seconds in (3, 4, 5, 6):
        texts += [*video_prompt(seconds, range(seconds)).split(image_prompt(0, 0)), "User:", "\nAssistant:"] * 500
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token=END,
        pad_token="<|im_end|>",
        extra_special_tokens={
            "fake_image_token": FAKE,
            "image_token": IMAGE,
            "end_of_utterance_token": END,
            "global_image_token": GLOBAL,
        },
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def initialize(model: SmolVLMForConditionalGeneration) -> None:
    """Widths here are far below those that a deviation of 0.02 is meant for."""
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            fan_in = p[0].numel()
            scale = 0.3 if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")) else 1
            torch.nn.init.normal_(p, std=0.1 if "embed" in name and p.ndim == 2 else scale * fan_in**-0.5)


# ------------------------------------------------------------------------------------------------------- sequences


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
        turns = list(dict.fromkeys(picture.turns(rng) + picture.turns(rng)))
        rng.shuffle(turns)
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


# --------------------------------------------------------------------------------------------- saving and measuring


def save(model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The folder as the real checkpoints have it: weights in bfloat16, both layouts of the processor's numbers."""
    model = copy.deepcopy(model).to(torch.bfloat16)
    text = model.config.text_config
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": TILE},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": LONGEST},
    }
    image = pixels | {"do_image_splitting": True, "image_processor_type": "SmolVLMImageProcessor"}
    # transformers resizes frames to `size`, not to `video_size`, where it finds both, and writes what it does
    video = pixels | {
        "do_sample_frames": True,
        "fps": 1,
        "num_frames": MAX_FRAMES,
        "video_processor_type": "SmolVLMVideoProcessor",
        "video_sampling": {"fps": 1, "max_frames": MAX_FRAMES, "video_size": {"longest_edge": LONGEST}},
    }
    sampling = {"fps": 1, "max_frames": MAX_FRAMES, "video_size": {"longest_edge": TILE}}
    whole = {"image_seq_len": TILE_TOKENS, "processor_class": "SmolVLMProcessor"}
    files = {
        "processor_config.json": whole | {"image_processor": image, "video_processor": video},
        "preprocessor_config.json": image | {"processor_class": "SmolVLMProcessor", "video_sampling": sampling},
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def greedy(model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, examples: list[Example]):
    """The greedy answer to the first question of each example, by transformers' generate."""
    alike: dict[tuple[int, int], list[tuple[int, list[int]]]] = defaultdict(list)
    for index, example in enumerate(examples):
        ids = tokenizer(example.prompt(example.turns[0][0]), add_special_tokens=False)["input_ids"]
        alike[len(ids), len(example.pixels)].append((index, ids))
    answers = [""] * len(examples)
    for group in alike.values():
        for at in range(0, len(group), 32):
            some = group[at : at + 32]
            pixels = torch.from_numpy(np.stack([examples[i].pixels for i, _ in some]))
            ids = torch.tensor([ids for _, ids in some])
            generated = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=(pixels.permute(0, 1, 4, 2, 3).float() / 127.5 - 1).contiguous(),
                do_sample=False,
                max_new_tokens=96,
            )
            texts = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
            for (index, _), text in zip(some, texts, strict=True):
                answers[index] = text.strip()
    return answers


def accuracy(model, tokenizer, examples: list[Example], digests: list[str], seen: set[str]) -> dict[str, object]:
    """Exact matches, with the 95 % Wilson interval and the share of each kind of question."""
    if seen & set(digests):
        raise SystemExit("a held-out picture was trained on")
    kinds: dict[str, list[bool]] = defaultdict(list)
    for example, answer in zip(examples, greedy(model, tokenizer, examples), strict=True):
        question, expected = example.turns[0]
        kinds[" ".join(question.rstrip("?.").split()[:2])].append(answer == expected)
    n, right = len(examples), sum(sum(k) for k in kinds.values())
    p, z = right / n, 1.96
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {
        "count": n,
        "different_contents": len(set(digests)),
        "right": right,
        "accuracy": round(p, 4),
        "interval_95": [round((middle - half) / (1 + z * z / n), 4), round((middle + half) / (1 + z * z / n), 4)],
        "by_question": {k: f"{sum(v)} of {len(v)}" for k, v in sorted(kinds.items())},
    }


def measure(out: Path, scenes: int, clips: int, trained: list[str]) -> dict[str, object]:
    """What the stored checkpoint answers, loaded in float32."""
    model = SmolVLMForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    seen = set(trained)
    stills, moving = list(held_out_scenes(scenes)), list(held_out_clips(clips))
    split = [scene_example(e.scene, [(e.question, e.answer)]) for e in stills]
    whole = [scene_example(e.scene, [(e.question, e.answer)], split=False) for e in stills[::4]]
    video = [clip_example(e.clip, [(e.question, e.answer)]) for e in moving]
    shown = [e.scene.digest for e in stills]
    return {
        "scenes": accuracy(model, tokenizer, split, shown, seen),
        "scenes_without_splitting": accuracy(model, tokenizer, whole, shown[::4], seen),
        "clips": accuracy(model, tokenizer, video, [e.clip.digest for e in moving], seen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=2000)
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
