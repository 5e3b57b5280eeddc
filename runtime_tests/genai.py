"""onnxruntime-genai: does the package load there as it is, and does it continue a prompt with the same tokens?

What lives here: greedy generation with that runtime, inside a child process only. What must not: other runtimes
(``runners/``).
"""

from __future__ import annotations

import json
from pathlib import Path

from artifacts import EdgewrightError, MissingTool

CONFIG = "genai_config.json"


def generate_greedy(artifact: Path, prompt: list[int], tokens: int, *, threads: int = 2) -> list[int]:
    """Up to ``tokens`` most likely tokens after ``prompt``; an end-of-text token ends it early (included)."""
    try:
        import onnxruntime_genai as og
    except ModuleNotFoundError as error:
        raise MissingTool(
            f"{artifact}: checking the package needs onnxruntime-genai; pip install onnxruntime-genai"
        ) from error
    config = og.Config(str(artifact))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(prompt) + tokens)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    produced: list[int] = []
    while len(produced) < tokens and not generator.is_done():
        generator.generate_next_token()
        produced.append(int(generator.get_next_tokens()[0]))
    return produced


def same_continuation(artifact: Path, genai: list[int], plain: list[int]) -> bool:
    """Whether both produced the same tokens; genai may stop early, but only at an end-of-text token."""
    try:
        model = json.loads((artifact / CONFIG).read_text(encoding="utf-8"))["model"]
        eos = model["eos_token_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgewrightError(
            f"{artifact / CONFIG}: no model.eos_token_id ({error}); build the artifact again"
        ) from error
    ended = bool(genai) and genai[-1] in (eos if isinstance(eos, list) else [eos])
    return genai == plain[: len(genai)] and (len(genai) == len(plain) or ended)
