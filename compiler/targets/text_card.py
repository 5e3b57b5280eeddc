"""What an app must know of a text decoder's package, whichever runtime it uses: for the README of each target."""

from __future__ import annotations

from typing import Any

from artifacts.formats.golden import GOLDEN
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About
from compiler.tokenizer import FILE as TOKENIZER
from compiler.tokenizer import Encoder


def text_about(job: Job) -> About:
    """How a text decoder's card begins."""
    tokens: Any = job.model.constants["max_tokens"]
    purpose = f" for {tokens:,} tokens of context, prompt and answer together"
    return About("The text decoder", "text-generation", purpose, GOLDEN)


def tokens_section(job: BuildJob) -> str:
    """Markdown about the tokenizer and special tokens."""
    constants: Any = job.model.constants
    bos, eos, vocabulary = constants["bos"], constants["eos"], constants["vocab_size"]
    end = ", ".join(map(str, eos)) or "none"
    leading = _leading(job)
    if leading is None:
        files = (
            "**The checkpoint had no `tokenizer.json`, so there is none here**: bring the one that it was trained "
            "with, and its `tokenizer_config.json`"
        )
        begin = "The checkpoint's configuration names no BOS token" if bos is None else f"Its BOS token is {bos}"
    elif leading:
        files = "`tokenizer.json` is the checkpoint's own"
        begin = f"It begins every text with token {', '.join(map(str, leading))}"
    else:
        files = "`tokenizer.json` is the checkpoint's own"
        begin = "It begins texts without a special token" + (
            "" if bos is None else f", though the checkpoint's configuration names {bos} as BOS"
        )
    return (
        f"## Tokens\n\n{files}. {begin}; tokens that end an answer: {end}. The vocabulary has {vocabulary:,} entries."
    )


def _leading(job: BuildJob) -> list[int] | None:
    """What the checkpoint's tokenizer puts before every text; None without one."""
    file = job.source / TOKENIZER
    return Encoder(file).leading() if file.is_file() else None
