"""onnxruntime-genai: does the package load there as it is, and does it go from text to the same tokens and on?

What lives here: encoding and greedy generation with that runtime, inside a child process only. What must not: other
runtimes (``sessions/``), and what the answers are compared with (``from_text.py``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts import MissingTool

CONFIG = "genai_config.json"
NAME = "onnxruntime-genai"
SHORT = "genai"


def generate(
    artifact: Path,
    text: str | None,
    prompt: Sequence[int],
    options: Mapping[str, str],
    tokens: int,
    *,
    image: str | None = None,
    threads: int = 2,
) -> dict[str, Any]:
    """Encode ``text`` as the package does by itself and once more with ``options``, then continue it greedily.

    Without a text, or where genai cannot read the tokenizer, ``prompt`` is continued. Keys: "by_default" and "as_asked"
    (ids or None), "problem" (genai's words about the tokenizer, or None), "continuation": up to ``tokens`` most likely
    tokens; an end-of-text token ends it early (included).

    image: a file in base64, which ``text`` has a marker for. Genai's own processor then reads both, and knows no
    ``options``; where it cannot be made, nothing is continued.
    """
    try:
        import onnxruntime_genai as og
    except ModuleNotFoundError as error:
        raise MissingTool(
            f"{artifact}: checking the package needs onnxruntime-genai; pip install onnxruntime-genai"
        ) from error
    config = og.Config(str(artifact))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    if image is not None:
        return _of_image(og, model, text, base64.b64decode(image), tokens)
    by_default = as_asked = problem = None
    if text is not None:
        try:
            tokenizer = og.Tokenizer(model)
        except RuntimeError as error:  # the only kind that genai raises
            problem = str(error)
        else:
            by_default = as_asked = [int(token) for token in tokenizer.encode(text)]
            if options:
                tokenizer.update_options(**options)
                as_asked = [int(token) for token in tokenizer.encode(text)]
    begin = list(as_asked or prompt)
    generator = _generator(og, model, len(begin) + tokens)
    generator.append_tokens(begin)
    said = _continued(generator, tokens)
    return {"by_default": by_default, "as_asked": as_asked, "problem": problem, "continuation": said}


def _of_image(og: Any, model: Any, text: str | None, image: bytes, tokens: int) -> dict[str, Any]:
    try:
        processor = model.create_multimodal_processor()
    except RuntimeError as error:
        return {"by_default": None, "as_asked": None, "problem": str(error), "continuation": []}
    inputs = processor(text, images=og.Images.open_bytes(image))
    ids: list[int] = inputs["input_ids"].as_numpy()[0].tolist()
    generator = _generator(og, model, len(ids) + tokens)
    generator.set_inputs(inputs)
    return {"by_default": ids, "as_asked": ids, "problem": None, "continuation": _continued(generator, tokens)}


def _generator(og: Any, model: Any, most: int) -> Any:
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=most)
    return og.Generator(model, parameters)


def _continued(generator: Any, tokens: int) -> list[int]:
    produced: list[int] = []
    while len(produced) < tokens and not generator.is_done():
        generator.generate_next_token()
        produced.append(int(generator.get_next_tokens()[0]))
    return produced
