"""Train `tiny-ministral3`: a 7M-parameter Ministral 3 with every feature of the 3B one alive.

    python recipes/checkpoints/train_tiny_ministral3.py            # about an hour on two cores

Grouped queries with a query width that is not the hidden width, YaRN beyond its original positions,
position-dependent query scaling, tied embeddings. All matmul widths divide by 256. It learns the Python
standard library's source (the running interpreter's, tests included; `recipes/text/` is that of the Python which it
was trained under) until it is far below a Kneser-Ney trigram's perplexity on held-out files; both figures are printed
and written to `training.json` beside the weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Ministral3Config, Ministral3ForCausalLM, PreTrainedTokenizerFast

from recipes.corpus import stdlib_texts
from recipes.text.make_stdlib_python import stdlib_files

OUT = Path(__file__).parent / "tiny-ministral3"
VOCAB = 4096
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)


def config() -> Ministral3Config:
    return Ministral3Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "yarn",
            "type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 256,
            "max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        dtype="bfloat16",
        architectures=["Ministral3ForCausalLM"],
    )


def train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(t, special=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((text for _, text in stdlib_files("train", tests=True)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.concatenate([np.asarray([1, *ids, 2], np.int64) for ids in encoded])


def trigram_perplexity(train: np.ndarray, test: np.ndarray, discount: float = 0.75) -> float:
    """Interpolated Kneser-Ney trigram over the same tokens (Chen & Goodman 1999, section 3.6)."""
    V = VOCAB
    tri, tri_n = np.unique((train[:-2] * V + train[1:-1]) * V + train[2:], return_counts=True)
    ctx, ctx_start = np.unique(tri // V, return_index=True)
    ctx_n = np.add.reduceat(tri_n, ctx_start)
    ctx_types = np.diff(np.append(ctx_start, len(tri)))
    # lower orders count distinct left contexts
    bi, bi_n = np.unique(tri % (V * V), return_counts=True)
    mid, mid_start = np.unique(bi // V, return_index=True)
    mid_n = np.add.reduceat(bi_n, mid_start)
    mid_types = np.diff(np.append(mid_start, len(bi)))
    uni = np.bincount(bi % V, minlength=V) + 0.5
    uni = uni / uni.sum()

    def look(keys: np.ndarray, values: np.ndarray, want: np.ndarray) -> np.ndarray:
        at = np.clip(np.searchsorted(keys, want), 0, len(keys) - 1)
        return np.where(keys[at] == want, values[at], 0)

    a, b, c = test[:-2], test[1:-1], test[2:]
    n = look(mid, mid_n, b)
    p2 = np.where(
        n > 0,
        np.maximum(look(bi, bi_n, b * V + c) - discount, 0) / np.maximum(n, 1)
        + discount * look(mid, mid_types, b) / np.maximum(n, 1) * uni[c],
        uni[c],
    )
    n = look(ctx, ctx_n, a * V + b)
    p3 = np.where(
        n > 0,
        np.maximum(look(tri, tri_n, (a * V + b) * V + c) - discount, 0) / np.maximum(n, 1)
        + discount * look(ctx, ctx_types, a * V + b) / np.maximum(n, 1) * p2,
        p2,
    )
    return float(np.exp(-np.log(p3).mean()))


@torch.no_grad()
def perplexity(model: Ministral3ForCausalLM, ids: np.ndarray, length: int = 1024) -> float:
    total, count = 0.0, 0
    for start in range(0, len(ids) - length - 1, length):
        x = torch.from_numpy(ids[start : start + length + 1])
        logits = model(x[None, :-1]).logits[0].float()
        total += torch.nn.functional.cross_entropy(logits, x[1:], reduction="sum").item()
        count += length
    return math.exp(total / count)


def save(model: Ministral3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=1000, help="of 8,192 tokens each")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    tokenizer = train_tokenizer()
    train_texts = [text for _, text in stdlib_files("train", tests=True)]
    rng.shuffle(train_texts)
    train = tokens(tokenizer, train_texts)
    held_out = tokens(tokenizer, list(stdlib_texts("held-out")))
    trigram = trigram_perplexity(train, held_out)
    print(f"{len(train):,} training tokens, {len(held_out):,} held out; trigram perplexity {trigram:.2f}", flush=True)

    model = Ministral3ForCausalLM(config()).float().train()
    parameters = sum(p.numel() for p in model.parameters())
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    base = [0.02, 3e-3]
    compiled = torch.compile(model)
    started = time.time()
    smooth = 0.0
    for step in range(args.steps):
        # mostly inside the original positions (attention is what costs on a CPU), then two and four times beyond
        length = 256 if step < 0.6 * args.steps else 512 if step < 0.9 * args.steps else 1024
        batch = 8192 // length
        at = rng.integers(0, len(train) - length - 1, batch)
        x = torch.from_numpy(np.stack([train[a : a + length + 1] for a in at]))
        scale = min(1.0, (step + 1) / 50, (args.steps - step) / (0.4 * args.steps))
        for optimizer, lr in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = lr * scale
        with torch.autocast("cpu", torch.bfloat16):
            logits = compiled(x[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), x[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 20 == 0:
            print(f"step {step} perplexity {math.exp(smooth):.2f} {time.time() - started:.0f} s", flush=True)
        if step % 100 == 99:
            save(model, tokenizer, args.out)

    model = model.eval()
    save(model, tokenizer, args.out)
    final = perplexity(model.to(torch.bfloat16).float(), held_out)
    report = {
        "parameters": parameters,
        "training_tokens": len(train),
        "training_files": sum(1 for _ in stdlib_files("train", tests=True)),
        "held_out_tokens": len(held_out),
        "steps": args.steps,
        "minutes": round((time.time() - started) / 60, 1),
        "held_out_perplexity": round(final, 3),
        "trigram_perplexity": round(trigram, 3),
    }
    (args.out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    if final > trigram / 2:
        raise SystemExit("held-out perplexity is above half of the trigram model's: train longer")


if __name__ == "__main__":
    main()
