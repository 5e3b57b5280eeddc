"""What an app must know of a text decoder's package, whichever runtime it uses: for the README of each target."""

from __future__ import annotations

from typing import Any

from artifacts.formats.golden import GOLDEN
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About


def text_about(job: Job) -> About:
    """How a text decoder's card begins."""
    tokens: Any = job.model.constants["max_tokens"]
    purpose = f" for {tokens:,} tokens of context, prompt and answer together"
    return About("The text decoder", "text-generation", purpose, GOLDEN)


def tokens_section(job: BuildJob) -> str:
    """Markdown about the tokenizer and special tokens."""
    constants: Any = job.model.constants
    bos, eos, vocabulary = constants["bos"], constants["eos"], constants["vocab_size"]
    begin = f"Every text begins with token {bos}" if bos is not None else "Texts begin without a token"
    end = ", ".join(map(str, eos)) or "none"
    files = (
        "`tokenizer.json` is the checkpoint's own"
        if (job.source / "tokenizer.json").is_file()
        else ("**The checkpoint had no `tokenizer.json`, so there is none here**: bring the one it was trained with")
    )
    return (
        f"## Tokens\n\n{files}. {begin}, as the checkpoint's configuration has it; tokens that end an answer: {end}. "
        f"The vocabulary has {vocabulary:,} entries."
    )
