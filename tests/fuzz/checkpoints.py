"""Small checkpoints and the ways to damage them: configs, headers, indexes, tokenizers, and files that are none."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file

from tests.compiler.conftest import MINISTRAL3, random_tensors
from tests.edgewright.conftest import write_checkpoint
from tests.fuzz.mutants import NASTY, json_text, mutate_bytes, mutate_tree

_TINY = {**MINISTRAL3, "vocab_size": 320, "num_hidden_layers": 1}
_PLAIN = {k: v for k, v in _TINY.items() if k not in ("rope_parameters", "head_dim")}
CONFIGS: dict[str, dict[str, Any]] = {
    "ministral3": _TINY,
    "llama": {
        **_PLAIN,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {
        **_PLAIN,
        "model_type": "mistral",
        "head_dim": 32,
        "sliding_window": None,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
}
WRAPPED = {
    "model_type": "mistral3",
    "architectures": ["Mistral3ForConditionalGeneration"],
    "text_config": _TINY,
    "vision_config": {"model_type": "pixtral", "hidden_size": 64},
    "tie_word_embeddings": True,
}
DOCUMENTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_README = "---\nlicense: apache-2.0\nlanguage: [en]\nbase_model: acme/small\ndate: 2026-11-01\n---\n\n# Small\n"


def write(folder: Path, kind: str) -> Path:
    """A sound checkpoint: one of CONFIGS, `wrapped`, `sharded`, `packed` or `fp8`, with every document beside it."""
    write_checkpoint(folder)  # its tokenizer stays
    config = dict(CONFIGS.get(kind, _TINY))
    tensors = random_tensors(config)
    weights = folder / "model.safetensors"
    if kind == "wrapped":
        tensors = {f"model.language_model.{n.removeprefix('model.')}": t for n, t in tensors.items()}
        config = WRAPPED
    if kind == "packed":
        config, tensors = _packed(config, tensors)
    if kind == "fp8":
        matrices = {n: t for n, t in tensors.items() if t.ndim == 2 and "embed" not in n}
        tensors |= {n: t.to(torch.float8_e4m3fn) for n, t in matrices.items()}
        tensors |= {
            f"{n}_scale_inv": torch.ones(-(-t.shape[0] // 32), -(-t.shape[1] // 32)) for n, t in matrices.items()
        }
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, weights, {"format": "pt"})
    if kind == "sharded":
        weights.unlink()
        _write_shards(folder, tensors)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2]}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>"}))
    (folder / "README.md").write_text(_README)
    return folder


KINDS = (*CONFIGS, "wrapped", "sharded", "packed", "fp8")


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = sorted(tensors)
    table = {}
    for at, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-0000{at}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file)
        table |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _packed(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Linears as compressed-tensors packs them: 4 bits, group 32, symmetric."""
    generator = torch.Generator().manual_seed(1)
    found: dict[str, torch.Tensor] = {}
    for name, values in tensors.items():
        if values.ndim == 1 or "embed" in name:
            found[name] = values
            continue
        rows, columns = values.shape
        words = torch.randint(-(2**31), 2**31, (rows, columns // 8), generator=generator, dtype=torch.int64)
        found[f"{name}_packed"] = words.to(torch.int32)
        found[f"{name}_scale"] = torch.full((rows, columns // 32), 2.0**-6, dtype=torch.float16)
        found[f"{name}_shape"] = torch.tensor([rows, columns])
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    section = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    return {**config, "quantization_config": section}, found


def split(file: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(file: Path, header: str | bytes, data: bytes) -> None:
    text = header.encode() if isinstance(header, str) else header
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


Damage = Callable[[Path, Random], None]


def config_values(folder: Path, random: Random) -> None:
    file = folder / "config.json"
    file.write_text(json_text(mutate_tree(json.loads(file.read_text()), random)))


def config_key(folder: Path, random: Random) -> None:
    """One value of the decoder's own keys, wherever it stands."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    section = config.get("text_config", config)
    rope = section.get("rope_parameters") or section.get("rope_scaling") or {}
    target, key = random.choice([(section, k) for k in section] + [(rope, k) for k in rope])
    target[key] = random.choice(NASTY)
    file.write_text(json_text(config))


def any_bytes(folder: Path, random: Random) -> None:
    file = random.choice(sorted(p for p in folder.iterdir() if p.is_file()))
    file.write_bytes(mutate_bytes(file.read_bytes(), random))


def header_values(folder: Path, random: Random) -> None:
    file = random.choice(sorted(folder.glob("*.safetensors")))
    header, data = split(file)
    nasty = [*NASTY, "F64", "F32", "I32", "I8", "F8_E5M2", "F8_E4M3", "BF16", [0, 0], [2**63], [-1, -1], [0, 2**70]]
    join(file, json_text(mutate_tree(header, random, nasty)), data)


def header_shapes(folder: Path, random: Random) -> None:
    """Headers that stay consistent: another dtype of the same size, other dimensions, other names, holes closed."""
    file = random.choice(sorted(folder.glob("*.safetensors")))
    header, data = split(file)
    names = [n for n in header if n != "__metadata__"]
    name = random.choice(names)
    entry = header[name]
    change = random.randrange(5)
    if change == 0:
        same = {"BF16": ["F16", "I16"], "F32": ["I32", "U32"], "I32": ["F32", "U32"], "F16": ["BF16", "I16"]}
        entry["dtype"] = random.choice(same.get(entry["dtype"], ["U8", "I8", "BOOL"]))
    elif change == 1:
        entry["shape"] = random.choice(([*entry["shape"], 1], entry["shape"][::-1], [1, *entry["shape"]]))
    elif change == 2 and len(entry["shape"]) == 2:
        entry["shape"] = [entry["shape"][0] * entry["shape"][1]]
    elif change == 3:
        header[random.choice((name + "x", "stray\x1b[31m", "model.layers.9." + name, name + "_scale"))] = header.pop(
            name
        )
    else:
        other = random.choice(names)
        header[name], header[other] = header[other], header[name]
    join(file, json.dumps(header), data)


def header_length(folder: Path, random: Random) -> None:
    file = random.choice(sorted(folder.glob("*.safetensors")))
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    new = random.choice((0, 1, length - 1, length + 1, length + 8, len(raw), 2**31, 2**63, 2**64 - 1))
    file.write_bytes(struct.pack("<Q", new) + raw[8:])


def index_values(folder: Path, random: Random) -> None:
    table = {"weight_map": {"a": "model.safetensors"}}
    file = folder / "model.safetensors.index.json"
    if file.exists():
        table = json.loads(file.read_text())
    nasty = [*NASTY, "config.json", "../x.safetensors", "model.safetensors", "a\x00.safetensors", "a" * 5000]
    file.write_text(json_text(mutate_tree(table, random, nasty)))


def tokenizer_values(folder: Path, random: Random) -> None:
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    part = random.choice((None, "model", "added_tokens", "pre_tokenizer", "decoder", "padding", "truncation"))
    if part is None:
        tree = mutate_tree(tree, random)
    elif part == "truncation":
        tree[part] = {
            "direction": "Right",
            "max_length": random.choice((0, 1, 5)),
            "strategy": "LongestFirst",
            "stride": 0,
        }
    elif part == "padding":
        size = random.choice((1, 7, 10**6))
        tree[part] = {
            "strategy": {"Fixed": size},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": random.choice((0, 2**31)),
            "pad_type_id": 0,
            "pad_token": "x",
        }
    else:
        tree[part] = mutate_tree(tree[part], random)
    file.write_text(json_text(tree))


def tokenizer_of_another(folder: Path, random: Random) -> None:
    """Ids beyond the vocabulary, tokens that no text gives, a vocabulary of nothing."""
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    change = random.randrange(4)
    if change == 0:
        word = random.choice(sorted(tree["model"]["vocab"]))
        tree["model"]["vocab"][word] = random.choice((320, 2**20, 2**31, 2**32 - 1))
    elif change == 1:
        tree["added_tokens"].append({**tree["added_tokens"][0], "id": 320, "content": "[PAD]"})
    elif change == 2:
        tree["model"] = {"type": "WordLevel", "vocab": random.choice(({}, {"<unk>": 0})), "unk_token": "<unk>"}
        tree["pre_tokenizer"] = None
    else:
        tree["model"]["vocab"], tree["model"]["merges"] = {}, []
    file.write_text(json.dumps(tree))


def other_documents(folder: Path, random: Random) -> None:
    file = folder / random.choice(DOCUMENTS)
    if random.random() < 0.5:
        file.write_text(json_text(mutate_tree(json.loads(file.read_text()), random)))
    else:
        readme = folder / "README.md"
        heads = (
            "license: [",
            "a: &a [*a]",
            "x: 2026-99-99",
            "a: " + "[" * 3000,
            "!!python/name:os.system",
            "? {a: b}\n: c",
        )
        readme.write_text(f"---\n{random.choice(heads)}\nlicense: {random.choice(('mit', '[1]', chr(27)))}\n---\n")


def no_file(folder: Path, random: Random) -> None:
    """A pipe, a device, a folder, a link to nowhere or to itself in the place of a file, or nothing."""
    name = random.choice(
        [*sorted(p.name for p in folder.iterdir()), "model.safetensors.index.json", "adapter_config.json"]
    )
    file = folder / name
    file.unlink(missing_ok=True)
    make: list[Callable[[], None]] = [
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to("/dev/tty"),
        lambda: file.symlink_to("nowhere"),
        lambda: file.symlink_to(file.name),
        lambda: file.symlink_to(folder),
        file.mkdir,
        lambda: file.write_bytes(b""),
        lambda: None,
    ]
    random.choice(make)()


def adapter(folder: Path, random: Random) -> None:
    """A LoRA adapter, beside the weights or in their place."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": random.choice(("acme/base", None, 3, "\x1b[31m", "x" * 9000)),
    }
    (folder / "adapter_config.json").write_text(random.choice((json.dumps(config), "{", "[]")))
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    for name in random.choice(((), ("config.json",), ("model.safetensors",), ("config.json", "model.safetensors"))):
        (folder / name).unlink(missing_ok=True)


DAMAGES: tuple[Damage, ...] = (
    config_values,
    config_key,
    config_key,
    config_key,
    any_bytes,
    header_values,
    header_shapes,
    header_length,
    index_values,
    tokenizer_values,
    tokenizer_of_another,
    other_documents,
    no_file,
    adapter,
)


def reordered(folder: Path, random: Random) -> None:
    """Keys in another order, other white space."""
    file = folder / "config.json"
    items = list(json.loads(file.read_text()).items())
    random.shuffle(items)
    file.write_text(json.dumps(dict(items), indent=random.choice((None, 1, 8))))


def more_keys(folder: Path, random: Random) -> None:
    """Keys that no decoder reads."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    extra = {
        "transformers_version": "9.9",
        "use_cache": random.choice((True, None)),
        "dtype": "bfloat16",
        "ä\u2028": [1.5],
    }
    file.write_text(json.dumps(config | extra))


def relaid(folder: Path, random: Random) -> None:
    """The same tensors in another order, behind a padded header with metadata."""
    file = random.choice(sorted(folder.glob("*.safetensors")))
    header, data = split(file)
    names = [n for n in header if n != "__metadata__"]
    random.shuffle(names)
    new, out = {"__metadata__": {"format": "pt", "note": "x" * 100}}, b""
    for name in names:
        begin, end = header[name]["data_offsets"]
        new[name] = {**header[name], "data_offsets": [len(out), len(out) + end - begin]}
        out += data[begin:end]
    join(file, json.dumps(new) + " " * random.randrange(64), out)


def linked(folder: Path, random: Random) -> None:
    """Files that are links to files, as in the Hub's cache."""
    blobs = folder / "blobs"
    blobs.mkdir()
    for at, file in enumerate(sorted(p for p in folder.iterdir() if p.is_file())):
        file.rename(blobs / str(at))
        file.symlink_to(Path("blobs") / str(at))


def without(folder: Path, random: Random) -> None:
    """Nothing of what a checkpoint may lack."""
    for name in (*DOCUMENTS, "README.md", *random.choice(((), ("tokenizer.json",)))):
        (folder / name).unlink()


def retouched(folder: Path, random: Random) -> None:
    """The tokenizer written anew, with truncation and padding as sentence encoders leave them."""
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(tree, indent=2, ensure_ascii=random.random() < 0.5))


NEUTRAL: tuple[Damage, ...] = (reordered, more_keys, relaid, linked, without, retouched)
