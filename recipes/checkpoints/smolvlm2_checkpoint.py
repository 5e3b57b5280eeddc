"""The folder `tiny-smolvlm2`: its configuration, tokenizer and processor, written and measured."""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration

from recipes.checkpoints.scenes import every_sentence, held_out_clips, held_out_scenes
from recipes.checkpoints.smolvlm2_examples import (
    END,
    FAKE,
    GLOBAL,
    IMAGE,
    LONGEST,
    MAX_FRAMES,
    PATCH,
    SPECIAL,
    TILE,
    TILE_TOKENS,
    Example,
    clip_example,
    image_prompt,
    scene_example,
    video_prompt,
)

OUT = Path(__file__).parent / "tiny-smolvlm2"
VOCAB = 512
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] in ('image', 'video') %}{{ '<' + part['type'] + '>' }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


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
