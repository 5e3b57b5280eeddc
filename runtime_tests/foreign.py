"""Folders of other tools, seen as artifacts: onnxruntime-genai's and those of the mlx-community.

What lives here: what such a folder is, in the words of a manifest that no file holds, so that drivers and memory runs
take it like one of ours, and whether its tokenizer is ours. What must not: running it (`sessions/`), and any figure.

A foreign folder is untrusted input: nothing of it but its configs and its tokenizer is read here, and code that it
brings is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from artifacts import MANIFEST, EdgewrightError, Manifest
from artifacts.documents import read_json
from artifacts.formats.interface import Component, Dimension, Driver, Entry, Port
from artifacts.manifest import CheckpointEntry, RecipeEntry
from runtime_tests import genai
from runtime_tests.from_text import TOKENIZER

GENAI, MLX = "genai", "mlx_community"
NAMES = {GENAI: genai.NAME, MLX: "mlx-lm"}
PLATFORMS = {GENAI: ("android", "ios"), MLX: ("ios",)}
_CONFIG = "config.json"
_NONE = "0" * 64
_MORE = ("vision", "speech", "encoder")


def kind_of(folder: Path) -> str | None:
    """GENAI or MLX; None for anything else, an artifact of ours too. Raises EdgewrightError for a broken config."""
    if (folder / MANIFEST).exists():
        return None
    if (folder / genai.CONFIG).is_file():
        return GENAI
    if (folder / _CONFIG).is_file() and any(folder.glob("model*.safetensors")):
        return MLX if isinstance(read_json(folder / _CONFIG).get("quantization"), dict) else None
    return None


def scheme(folder: Path, kind: str) -> str:
    """How its weights are stored, as far as its config says."""
    if kind == GENAI:
        return "as its graph says"
    stored = read_json(folder / _CONFIG)["quantization"]
    mixed = ", mixed" if any(isinstance(value, dict) for value in stored.values()) else ""
    return f"{stored.get('bits')} bits, group {stored.get('group_size')}{mixed}"


def size(folder: Path) -> int:
    """Bytes of what an app would ship: every file but documentation and hidden ones."""
    found = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in names if not name.startswith(".") and not name.lower().endswith(".md")]
        found += sum(os.stat(os.path.join(place, name)).st_size for name in files)
    return found


def manifest_of(folder: Path, kind: str, context: int) -> Manifest:
    """What its manifest would say, were it ours: one decoder of tokens, in a context of `context` tokens at most.

    Its digests are zeros, since nothing vouches for it. Raises EdgewrightError where it is no text decoder, brings code
    of its own, or has a smaller context.
    """
    name = genai.CONFIG if kind == GENAI else _CONFIG
    config = read_json(folder / name)
    if kind == GENAI:
        model = _section(folder / name, config, "model")
        if more := [part for part in _MORE if part in model]:
            raise EdgewrightError(f"{folder / name}: model.{more[0]}: only decoders of text are run beside ours")
        decoder = _section(folder / name, model, "decoder", "model.")
        if "custom_ops_library" in decoder.get("session_options", {}):
            raise EdgewrightError(f"{folder / name}: brings a library of operators, which is code; it is not run")
        most, vocabulary, ends = (model.get(key) for key in ("context_length", "vocab_size", "eos_token_id"))
    else:
        if "model_file" in config:
            raise EdgewrightError(f"{folder / name}: model_file: brings code of its own; it is not run")
        stored = config["quantization"]
        for part in (stored, *(value for value in stored.values() if isinstance(value, dict))):
            if part.get("mode", "affine") != "affine":
                raise EdgewrightError(
                    f"{folder / name}: quantization.mode: {part['mode']!r} is not run here; affine quantization is"
                )
        text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
        most, vocabulary, ends = (text.get(key) for key in ("max_position_embeddings", "vocab_size", "eos_token_id"))
    for key, value in (("context", most), ("vocabulary", vocabulary)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 2:
            raise EdgewrightError(f"{folder / name}: states no {key}, so it cannot be run beside ours")
    assert isinstance(most, int)
    if most < context:
        raise EdgewrightError(
            f"{folder / name}: its context is of {most:,} tokens, and the artifact it is compared with has {context:,}"
        )
    ids = Port(name="input_ids", dtype="int64", shape=("batch", "tokens"))
    at = Port(name="positions", dtype="int64", shape=("batch", "tokens"), counts=True)
    logits = Port(name="logits", dtype="float32", shape=("batch", 1, vocabulary))
    entries = tuple(
        Entry(
            name=entry,
            inputs=(ids, at),
            outputs=(logits,),
            dimensions={"batch": Dimension(low=1, high=1), "tokens": Dimension(low=1, high=high)},
        )
        for entry, high in (("prefill", context), ("decode", 1))
    )
    constants = {"max_tokens": context, "vocab_size": vocabulary, "eos": [ends] if isinstance(ends, int) else ends}
    return Manifest(
        created_by={},
        recipe=RecipeEntry(name=folder.name, digest=_NONE),
        target=kind,
        family="decoder",
        checkpoint=CheckpointEntry(source=str(folder)),
        components=(Component(name="decoder", entries=entries),),
        driver=Driver(name="text", constants=constants),
        runtime={},
        weights_digest=_NONE,
        files=(),
    )


def other_tokenizer(ours: Path, foreign: Path, tokens: list[int]) -> str | None:
    """Why the tokenizer of a folder is not that of an artifact of ours; None where it is.

    The same: the same id for every token, and the same ids for the text of `tokens`.
    """
    from tokenizers import Tokenizer

    if not (foreign / TOKENIZER).is_file():
        return f"holds no {TOKENIZER}, so nobody knows whether its tokens are the same"
    found: list[Any] = []
    for folder in (ours, foreign):
        try:
            found.append(Tokenizer.from_file(str(folder / TOKENIZER)))
        except Exception as error:  # the only kind that tokenizers raises
            raise EdgewrightError(f"{folder / TOKENIZER}: cannot be read: {error}") from error
    vocabularies = [one.get_vocab(with_added_tokens=True) for one in found]
    if vocabularies[0] != vocabularies[1]:
        sizes = " and ".join(f"{len(one):,}" for one in reversed(vocabularies))
        return f"has another tokenizer ({sizes} tokens): its logits are of other tokens"
    text = found[0].decode(tokens, skip_special_tokens=False)
    if len({tuple(one.encode(text, add_special_tokens=False).ids) for one in found}) > 1:
        return "has another tokenizer: it cuts the same text into other tokens"
    return None


def _section(path: Path, within: dict[str, Any], key: str, above: str = "") -> dict[str, Any]:
    found = within.get(key)
    if not isinstance(found, dict):
        raise EdgewrightError(f"{path}: {above}{key}: must be an object; the folder is not one of {genai.NAME}")
    return found
