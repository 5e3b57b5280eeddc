"""Every mistake in a recipe ends in one message that names the file, the line, the key and the nearest valid one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes import document
from recipes.document import parse
from recipes.errors import RecipeError
from recipes.load import validate
from recipes.schema import Recipe

from .conftest import MINIMAL


@pytest.fixture
def refusal(read):
    def refusal(text: str | bytes) -> str:
        with pytest.raises(RecipeError) as caught:
            read(text)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return refusal


CASES = {
    "an unknown key": (
        MINIMAL.replace("context:", "contxt:"),
        [r':6:1: contxt: unknown key; did you mean "context"\?', r':1:1: missing key "context"'],
    ),
    "an unknown key in a rule, for the rule's own method": (
        MINIMAL.replace("bits: 4", "bits: 4, method: learned, dampng: 1"),
        [r':5:\d+: quantize\.rules\[0\]\.dampng: unknown key; did you mean "damping"\?'],
    ),
    "an option of another method": (
        MINIMAL.replace("bits: 4", "bits: 4, damping: 1.0"),
        [
            r"quantize\.rules\[0\]\.damping: unknown key; known: activations, bits, group, match, method, min_snr, "
            "symmetric"
        ],
    ),
    "an unknown method": (
        MINIMAL.replace("bits: 4", "bits: 4, method: lerned"),
        [r':5:37: quantize\.rules\[0\]\.method: unknown method \'lerned\'; did you mean "learned"\?'],
    ),
    "an unknown target": (
        MINIMAL.replace("phone:", "phon:"),
        [r':8:3: targets\.phon: unknown target; did you mean "phone"\?'],
    ),
    "an unknown option of a target": (
        MINIMAL.replace("phone: {}", "phone: {kv_bit: 8}"),
        [r':8:11: targets\.phone\.kv_bit: unknown key; did you mean "kv_bits"\?'],
    ),
    "an unknown phone": (
        MINIMAL + "validate:\n  profiles:\n    andriod-4gb: {}\n",
        [r':11:5: validate\.profiles\.andriod-4gb: unknown phone profile; did you mean "android-4gb"\?'],
    ),
    "no target": (MINIMAL.replace("  phone: {}", "  {}"), [r":8:3: targets: names no target"]),
    "a missing key, at its mapping": (
        MINIMAL.replace(", bits: 4", ""),
        [r':5:7: quantize\.rules\[0\]: missing key "bits"'],
    ),
    "a missing section": (
        MINIMAL.replace("checkpoint: {path: weights}", "checkpoint: {}"),
        [r":2:13: checkpoint: needs exactly one of the keys path \(a folder\) and hub"],
    ),
    "two sources": (MINIMAL.replace("path: weights", "path: w, hub: a/b"), [r"checkpoint: needs exactly one"]),
    "a short commit": (
        MINIMAL.replace("path: weights", "hub: a/b, revision: main"),
        [r":2:34: checkpoint\.revision: must be a full commit \(40 hexadecimal digits\) or null, not 'main'"],
    ),
    "a commit that YAML takes for a number": (
        MINIMAL.replace("path: weights", "hub: a/b, revision: " + "1" * 40),
        [r"checkpoint\.revision: .* put it in quotes"],
    ),
    "a hub id that is a path": (
        MINIMAL.replace("path: weights", "hub: ../b"),
        [r"checkpoint\.hub: must be owner/name"],
    ),
    "text for a number": (
        MINIMAL.replace("512", "many"),
        [r":6:23: context\.max_tokens: must be a whole number, not 'many'"],
    ),
    "text that looks like a number": (MINIMAL.replace("bits: 4", 'bits: "4"'), [r"bits: must be 4, 8 or 16, not '4'"]),
    "true for a number": (MINIMAL.replace("512", "true"), [r"context\.max_tokens: must be a whole number, not true"]),
    "a bound on images that is not said": (
        MINIMAL + "vision: {}\n",
        [r"vision: needs exactly one of the keys max_image and max_tiles"],
    ),
    "questions in no .jsonl file": (
        MINIMAL + "validate: {task: {file: questions.csv}}\n",
        [r"validate\.task\.file: must be a \.jsonl file, one question a line, not 'questions\.csv'"],
    ),
    "text and images to look at": (
        MINIMAL.replace("context", "  calibration: {text: a.txt, images: b}\ncontext"),
        [r"quantize\.calibration: looks at text or at images, not at both"],
    ),
    "an image of no size": (MINIMAL + "vision: {max_image: 0}\n", [r"vision\.max_image: must be at least 1, not 0"]),
    "a key that images do not have": (
        MINIMAL + "vision: {max_image: 560, max_imges: 2}\n",
        [r"vision\.max_imges: unknown key; did you mean \"max_image\""],
    ),
    "a number out of bounds": (MINIMAL.replace("512", "1"), [r"context\.max_tokens: must be at least 2, not 1"]),
    "bits that nothing has": (MINIMAL.replace("bits: 4", "bits: 5"), [r"bits: must be 4, 8 or 16, not 5"]),
    "activations that a CPU multiplies slower than floats": (
        MINIMAL.replace("bits: 4", "bits: 8, group: channel, activations: int16"),
        [
            r":5:58: quantize\.rules\[0\]\.activations: onnxruntime multiplies 16-bit activations with 8-bit weights "
            r"slower than floats \(.* 87 ms so, and 39 ms in float32\); write activations: int8, or leave the key out"
        ],
    ),
    "activations that nothing has": (
        MINIMAL.replace("bits: 4", "bits: 8, group: channel, activations: int4"),
        [r"activations: must be int8, or be left out, not 'int4'"],
    ),
    "activations of 8 bits on weights that their kernels do not take": (
        MINIMAL.replace("bits: 4", "bits: 8, group: 32, activations: int8"),
        [r"rules\[0\]: activations: int8 needs bits: 8, group: channel and symmetric: true, which its kernels take"],
    ),
    "decibels of nothing": (
        MINIMAL.replace("bits: 4", "bits: 8, group: channel, min_snr: 30 dB"),
        [r"rules\[0\]: min_snr belongs to activations: int8; give both or neither"],
    ),
    "decibels that nobody reaches": (
        MINIMAL.replace("bits: 4", "bits: 8, group: channel, activations: int8, min_snr: 300 dB"),
        [r"min_snr: must be decibels from 0 to 100, such as 36 dB, not '300 dB'"],
    ),
    "a budget for weights that have their bits": (
        MINIMAL.replace("bits: 4}", "bits: 8, group: channel, activations: int8}\n  budget: {size: 1MB}"),
        [r"quantize: budget chooses bits and group of weights; activations: int8 needs those that its rule gives"],
    ),
    "a group that nothing has": (
        MINIMAL.replace("bits: 4", "bits: 4, group: 48"),
        [r'group: must be "channel" or a power of two from 16 up .* not 48'],
    ),
    "a list for a mapping": (
        MINIMAL.replace("{max_tokens: 512}", "[512]"),
        [r":6:10: context: must be a mapping \(indented key: value lines\), not a list"],
    ),
    "a mapping for a list": (
        MINIMAL.replace('    - {match: "*", bits: 4}', "    match: 4"),
        [r":5:5: quantize\.rules: must be a list, not a mapping"],
    ),
    "no rules": (MINIMAL.replace('\n    - {match: "*", bits: 4}', " []"), [r"quantize: rules is empty"]),
    "text for a rule": (
        MINIMAL.replace('{match: "*", bits: 4}', "all"),
        [r":5:7: quantize\.rules\[0\]: must be a mapping"],
    ),
    "a glob without its bracket": (
        MINIMAL.replace('"*"', "'model.layers.[0-9.*'"),
        [r"match: the glob 'model\.layers\.\[0-9\.\*' has an opening bracket without its closing one"],
    ),
    "a tensor name for a slot name": (
        MINIMAL.replace('"*"', "lm_head.weight"),
        [r"match: slot names carry no '\.weight'; write 'lm_head'"],
    ),
    "a rule that can never win": (
        MINIMAL.replace("bits: 4}", "bits: 4}\n    - {match: lm_head, bits: 8}"),
        [r"rules\[1\] \(lm_head\) can never win: rules\[0\] \(\*\) matches first"],
    ),
    "a percentage that could mean two things": (
        MINIMAL + "validate:\n  quality: {max_perplexity_increase: 3}\n",
        [r":10:38: validate\.quality\.max_perplexity_increase: must be a percentage such as 3%"],
    ),
    "a size without its unit": (
        MINIMAL + "validate:\n  profiles: {iphone-12: {peak_memory: 300QB}}\n",
        [r"peak_memory: must be a size with one of the units .*, not '300QB'"],
    ),
    "a name that leaves its folder": (MINIMAL.replace("small", "../x"), [r":1:7: name: must be lower-case letters"]),
    "the home of nobody": (
        MINIMAL.replace("path: weights", "path: ~nosuchuser/weights"),
        [r":2:20: checkpoint\.path: begins with the home of a user whom this machine does not know: '~nosuchuser'"],
    ),
    "a path with a NUL": (
        MINIMAL.replace("path: weights", r'hub: a/b, config: "a\0b"'),
        [r":2:32: checkpoint\.config: must be a path without control characters"],
    ),
    "a path with half a surrogate pair": (
        MINIMAL.replace("path: weights", r'path: "\ud800"'),
        [r":2:20: checkpoint\.path: must be a path without .*surrogate"],
    ),
    "a path longer than any": (
        MINIMAL.replace("path: weights", f"path: {'x/' * 3000}"),
        [r":2:20: checkpoint\.path: must be a path of at most 4096 bytes, not of 6000"],
    ),
    "a calibration file of nobody": (
        MINIMAL.replace("bits: 4}", "bits: 4}\n  calibration: {text: ~nosuchuser.txt}"),
        [r":6:23: quantize\.calibration\.text: begins with the home of a user"],
    ),
    "a profile file that no file system takes": (
        MINIMAL + 'validate:\n  profiles: {"a\\0.yaml": {}}\n',
        [r":10:\d+: validate\.profiles\.a\\x00\.yaml: must be a path without control characters"],
    ),
    "a duplicate key": (
        MINIMAL.replace("bits: 4", "bits: 4, bits: 8"),
        [r":5:29: quantize\.rules\[0\]\.bits: duplicate key; it stands in line 5 already"],
    ),
    "a tag": (
        MINIMAL.replace("weights", "!!python/name:os.system x"),
        [r":2:20: checkpoint\.path: the tag .* has no place"],
    ),
    "a key that is not text": (MINIMAL + "1: 2\n", [r":9:1: the key '1' is not text; put it in quotes"]),
    "a merge key": (MINIMAL.replace("{max_tokens: 512}", "{<<: {max_tokens: 512}}"), [r"the key '<<' is not text"]),
    "broken YAML": (MINIMAL.replace("{path: weights}", "{path: weights"), [r":\d+:\d+: not valid YAML: "]),
    "two documents": (MINIMAL + "---\n" + MINIMAL, [r":9:1: not valid YAML: expected a single document"]),
    "an empty file": ("", [r":1:1: is empty"]),
    "only a word": ("quickstart", [r":1:1: is not a mapping"]),
    "what is not text": (b"name: \xff\xfe", [r":1:1: is not UTF-8 text"]),
    "a control character": ("name: a\nx: \x07", [r":2:1: not valid YAML: character"]),
    "a number too long to be one": (
        MINIMAL.replace("512", "9" * 5000),
        [r":6:23: context\.max_tokens: cannot be read as int"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_message_says_what_where_and_what_to_do(case, refusal):
    text, expected = CASES[case]
    message = refusal(text)
    for pattern in expected:
        assert re.search(pattern, message), message
    assert "recipe.yaml" in message


def test_all_problems_are_shown_at_once_in_the_order_of_the_file(refusal):
    message = refusal(MINIMAL.replace("small", "Not Small").replace("bits: 4", "bits: 3").replace("512", "zero"))
    assert message.startswith("3 problems in ")
    assert re.findall(r"yaml:(\d+):", message) == ["1", "5", "6"]


BOMBS = {
    "a billion laughs": "a: &a [x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "an alias of itself": "a: &a [*a]\n",
    "deep nesting": "a: " + "[" * 5000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(200)),
    "endless items": "a: [" + "x," * 30_000 + "x]",
    "a huge file": "#" * (document.MAX_BYTES + 1),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_at_once(bomb, refusal):
    assert re.search("too much|nested deeper|too many parts|larger than", refusal(BOMBS[bomb]))


def test_a_modest_alias_is_fine(read):
    profiles = "validate:\n  profiles: {android-4gb: &limits {peak_memory: 300MB}, iphone-12: *limits}\n"
    limits = read(MINIMAL + profiles).validation.profiles
    assert limits["iphone-12"] == limits["android-4gb"]


_WORDS = [
    "name",
    "quantize",
    "rules",
    "match",
    "bits",
    "targets",
    "phone",
    "method",
    "learned",
    "rtn",
    "validate",
    "[key]",
]
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(_WORDS)
_TREES = st.recursive(
    _SCALARS,
    lambda part: (
        st.lists(part, max_size=4) | st.dictionaries(st.sampled_from(_WORDS) | st.text(max_size=4), part, max_size=4)
    ),
    max_leaves=12,
)


def _recipe_or_refusal(raw: bytes, model: type[Recipe]) -> None:
    try:
        assert isinstance(validate(parse(raw, "r.yaml"), model, "r.yaml"), Recipe)
    except RecipeError as error:
        assert str(error)


@given(raw=st.binary(max_size=200) | st.text(alphabet="{}[]&*!|>%@`\"'#,:-? \n\tab1.~<=", max_size=60).map(str.encode))
def test_any_bytes_are_a_recipe_or_a_recipe_error(raw, model):
    _recipe_or_refusal(raw, model)


@given(
    tree=_TREES,
    at=st.lists(st.sampled_from(["quantize", "rules", "targets", "validate", "profiles", "checkpoint"]), max_size=2),
)
def test_any_tree_in_any_place_is_a_recipe_or_a_recipe_error(tree, at, model):
    import yaml

    data = yaml.safe_load(MINIMAL)
    inner = data
    for key in at[:-1]:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else {}
    inner[at[-1] if at else "quantize"] = {"rules": [tree]} if not at else tree
    _recipe_or_refusal(yaml.safe_dump(data, allow_unicode=True).encode(), model)


@given(cut=st.integers(0, len(MINIMAL)), end=st.integers(0, len(MINIMAL)), put=st.text(max_size=4))
def test_a_recipe_damaged_anywhere_is_a_recipe_or_a_recipe_error(cut, end, put, model):
    _recipe_or_refusal((MINIMAL[:cut] + put + MINIMAL[max(cut, end) :]).encode(errors="replace"), model)
