"""A conversation: the text that a model was trained on, answers that come piece by piece, and what the cache holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from artifacts import EdgewrightError, read_manifest
from runtime_tests.chat import Template, read_template
from runtime_tests.conversation import ContextFull, Conversation, Words, sampled
from runtime_tests.drivers.text import Asked, Decoder, component_of, likeliest
from runtime_tests.sessions import make_session
from tests.edgewright.conftest import write_tokenizer
from tests.runtime_tests.conftest import VOCAB, compile_package

CHECKPOINTS = Path(__file__).parents[2] / "recipes" / "checkpoints"
TALK = [
    {"role": "user", "content": "  What is <2 + 2>, naïvely?\n"},
    {"role": "assistant", "content": ' It is "4" \N{GRINNING FACE}. '},
    {"role": "user", "content": "Why?"},
]
# What templates of published checkpoints use: whitespace control, loops, namespaces, JSON, marks for training.
TEMPLATES = [
    "{%- for m in messages %}\n  {%- if m.role == 'user' %}\n    {{- '<u>' + m.content|trim }}\n  {%- else %}\n"
    "    {%- generation %}{{ m.content + eos_token }}{% endgeneration %}\n  {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<a>' }}\n{%- endif %}\n",
    "{% for m in messages %}\n    {% if loop.index0 == 1 %}{% continue %}{% endif %}\n"
    "    {{ m | tojson }}\n{% endfor %}\n",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }}{% endfor %}"
    "{{ bos_token }}{{ tools is none }}{{ documents is defined }}{{ dict(a=1) | tojson(indent=2) }}",
    "{% for m in messages[::-1] %}{{ m.role[:1]|upper }}{{ m.content.split('?')[0] }}{% break %}{% endfor %}",
]


@pytest.mark.parametrize("source", [*TEMPLATES, None])
def test_a_template_says_what_transformers_says(source: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(CHECKPOINTS / "tiny-ministral3", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if source is not None:
        (folder / "chat_template.jinja").write_text(source, newline="")
    template = read_template(folder)
    assert template is not None
    for talk in (TALK[:1], TALK):
        expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            talk, tokenize=False, add_generation_prompt=True
        )
        assert template.render(talk) == expected


def test_a_template_is_found_where_older_checkpoints_keep_it(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ eos_token }}"}]
    config = {"chat_template": named, "eos_token": {"content": "</s>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = read_template(tmp_path)
    assert found is not None and found.render(TALK) == "</s>"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "older{{ eos_token }}"}))
    found = read_template(tmp_path)
    assert found is not None and found.render(TALK) == "older</s>"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[9].content + 1 }}", "no element 9"),
    ],
)
def test_a_template_that_refuses_or_breaks_out_is_one_message(source: str, said: str) -> None:
    with pytest.raises(EdgewrightError, match=said):
        Template(source, "here", {}).render(TALK)
    with pytest.raises(EdgewrightError, match="here: is no template"):
        Template(source[:-2], "here", {})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 320)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=st.text(alphabet="aé€\N{GRINNING FACE}\N{ZERO WIDTH JOINER} \n"))
@settings(max_examples=100, deadline=None)
def test_pieces_are_never_half_a_character_and_together_the_whole(tokenizer: Any, text: str) -> None:
    """A token of this tokenizer is a byte."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    words = Words(lambda tokens: str(tokenizer.decode(tokens)))
    pieces = [words.add(token) for token in ids]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) + words.rest() == text
    cut = Words(lambda tokens: str(tokenizer.decode(tokens)))
    begun = "".join(cut.add(token) for token in ids[:-1]) + cut.rest()
    assert begun == tokenizer.decode(ids[:-1]), "what was cut short is shown as what it is"


def test_a_choice_is_of_the_likely_ones_and_the_same_again() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert sampled(0, 0.5, 1) is likeliest
    choose = sampled(1.0, 0.9, 7)
    found = [choose(row) for _ in range(2000)]
    assert set(found) == {0, 1, 2}, "0.95 are the fewest that have 0.9"
    assert abs(found.count(0) / 2000 - 0.5 / 0.95) < 0.05
    again = sampled(1.0, 0.9, 7)
    assert [again(row) for _ in range(2000)] == found
    assert {sampled(100.0, 1.0, seed)(row) for seed in range(60)} == {0, 1, 2, 3}
    assert {sampled(0.01, 1.0, seed)(row) for seed in range(60)} == {0}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of random weights with a tokenizer, whose tokens are bytes, and a template."""

    def prepare(source: Path) -> None:
        write_tokenizer(source, 300)
        words = Tokenizer.from_file(str(source / "tokenizer.json"))
        words.add_tokens([f"~{number}" for number in range(VOCAB - words.get_vocab_size())])
        words.save(str(source / "tokenizer.json"))
        config = json.loads((source / "tokenizer_config.json").read_text())
        template = (
            "{% for m in messages %}{{ m.content if m.role == 'assistant' else '[' + m.content + ']' }}{% endfor %}"
        )
        (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))

    return compile_package(tmp_path_factory.mktemp("talk"), {}, prepare=prepare)


def conversation(package: Path) -> Conversation:
    manifest = read_manifest(package)
    session = make_session(package, manifest)
    session.load()
    context = manifest.driver.constants["max_tokens"] if manifest.driver else 0
    asked = Asked(Decoder(session, component_of(package, manifest), context), package, manifest)
    return Conversation(asked, read_template(package))


def say(talk: Conversation, words: str, most: int = 6) -> str:
    return "".join(piece for _, piece in talk.answer(talk.read(words), most, likeliest))


def test_a_turn_goes_on_from_what_the_cache_holds_and_says_the_same(package: Path) -> None:
    talk, fresh = conversation(package), conversation(package)
    first = say(talk, "abc")
    assert (talk.reused, talk.prompted) == (0, 5)
    row = talk.read("def")
    assert (talk.reused, talk.prompted) == (10, 14), "but for the last token said, all was held"
    fresh.asked.decoder.reset()
    expected = fresh.asked.decoder.prefill(np.array(talk._ids, np.int64))
    np.testing.assert_allclose(row, expected, atol=2e-2)
    assert first and first == talk.messages[1]["content"] and len(talk.messages) == 3


def test_an_answer_that_nobody_hears_to_its_end_stays_as_far_as_it_was_said(package: Path) -> None:
    talk = conversation(package)
    answer = talk.answer(talk.read("abc"), 50, likeliest)
    pieces = [next(answer)[1] for _ in range(3)]
    answer.close()
    assert talk.messages[-1] == {"role": "assistant", "content": talk.asked.words(talk._ids[-3:])}
    assert "".join(pieces) and talk.messages[-1]["content"].startswith("".join(pieces))
    say(talk, "go on")
    assert talk.reused == 7


def test_a_context_that_is_full_says_so_and_forgets_nothing(package: Path) -> None:
    talk = conversation(package)
    say(talk, "abc")
    before = list(talk.messages)
    with pytest.raises(ContextFull, match=r"the context of 256 tokens is full: .* has 3\d\d"):
        talk.read("x" * 300)
    assert talk.messages == before and say(talk, "y")
    talk.clear()
    assert say(talk, "abc") and talk.reused == 0 and talk.prompted == 5


def test_an_answer_ends_where_the_context_does(package: Path) -> None:
    talk = conversation(package)
    count = sum(1 for token, _ in talk.answer(talk.read("x" * 250), 100, likeliest) if token >= 0)
    assert count <= 4 and talk.asked.decoder.length <= 256
