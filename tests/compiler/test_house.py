"""Who knows what a text decoder is: its family, its drivers, the layouts that ecosystems demand, and no others."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("artifacts", "compiler", "device_farm", "edgewright", "recipes", "runtime_tests")
GEOMETRY = re.compile(
    r"DecoderSpec|read_spec|models\.decoder|models import decoder|vocab_size|num_\w*(layers|heads)|hidden_size\b"
    r"|intermediate_size|rope_\w+"
)
FAMILY = (
    "compiler/adopt/published/audio2expression.py",  # the keys of an encoder of speech have the same names
    "compiler/models/audio2expression.py",
    "compiler/models/decoder.py",
    "compiler/models/decoder_spec.py",
    "compiler/models/embed.py",
    "compiler/models/ministral3.py",
    "compiler/models/pixtral.py",
    "compiler/models/siglip.py",  # the keys of a tower have the same names
    "compiler/models/smolvlm2.py",
    "runtime_tests/drivers/text.py",
)
KNOW = {
    "compiler/drivers/image_text.py": "token ids that a tokenizer must keep to",
    "compiler/drivers/text.py": "text for calibration and golden vectors",
    "compiler/golden.py": "golden vectors of a text decoder",
    "compiler/text.py": "token ids of a text",
    "compiler/targets/smolvlm.py": "the config that loaders of every runtime read",
    "compiler/targets/text_card.py": "what an app must know of tokens",
    "compiler/targets/onnx/attention.py": "attributes of onnxruntime's GroupQueryAttention have these names",
    "runtime_tests/drivers/image_text.py": "tokens to measure with",
    "runtime_tests/foreign.py": "folders of other tools, whose configs have these names",
}


def test_no_other_file_names_the_geometry_of_a_decoder() -> None:
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            training = name.startswith("recipes/checkpoints/")  # a script that makes a test's checkpoint
            packaging = re.match(r"compiler/targets/\w+/packaging/", name)
            if name not in FAMILY and not packaging and not training and GEOMETRY.search(path.read_text("utf-8")):
                found.add(name)
    assert found == KNOW.keys() and len(KNOW) <= 10


def test_no_file_grows_past_400_lines() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text("utf-8").splitlines()) <= 400, path
