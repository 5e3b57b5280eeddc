"""A conversation with a loaded artifact: what was said so far, what the cache holds of it, and the answer as it comes.

What lives here: turns, the choice of tokens, and tokens as text while they come. What must not: a runtime, how tokens
go through a model (`drivers/`), and any terminal or process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from artifacts import EdgewrightError
from artifacts.media.images import Pixels
from artifacts.media.video import Clip
from runtime_tests.chat import Template
from runtime_tests.drivers import text
from runtime_tests.drivers.text import Choose, Logits, likeliest

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class ContextFull(EdgewrightError):
    """What was said has no room in the context any more."""


def sampled(temperature: float, top_p: float, seed: int | None) -> Choose:
    """Chooses among the most likely tokens that have `top_p` of the probability together, at a temperature; the
    likeliest at 0. The same seed chooses the same."""
    if temperature == 0:
        return likeliest
    random = np.random.default_rng(seed)

    def choose(row: Logits) -> int:
        scores = row.astype(np.float64) / temperature
        chances = np.exp(scores - scores.max())
        order = np.argsort(-chances, kind="stable")
        reached = np.cumsum(chances[order]) / chances.sum()
        kept = order[: int(np.searchsorted(reached, top_p)) + 1]
        return int(random.choice(kept, p=chances[kept] / chances[kept].sum()))

    return choose


class Words:
    """Tokens as text while they come: never half a character, and all together what the tokens are as a whole."""

    def __init__(self, words: Callable[[Sequence[int]], str]) -> None:
        """words: the text of tokens."""
        self._words = words
        self.ids: list[int] = []
        self.said = ""

    def add(self, token: int) -> str:
        """The text that one more token makes certain."""
        self.ids.append(token)
        whole = self._words(self.ids)
        return "" if whole.endswith(_UNFINISHED) else self._grown(whole)

    def rest(self) -> str:
        """What is left when no more comes, halves of characters too."""
        return self._grown(self._words(self.ids))

    def _grown(self, whole: str) -> str:
        if not whole.startswith(self.said):  # a decoder that thinks again: what was said cannot be taken back
            return ""
        new, self.said = whole[len(self.said) :], whole
        return new


@dataclass
class Conversation:
    """Turns of a user and a model.

    template: None where the checkpoint has none; the text is then gone on with, as it stands. sees: whether the model
    takes images, so that its template wants what is said in parts. prompted, reused: tokens of the last prompt, and how
    many of them were held.
    """

    asked: text.Asked
    template: Template | None
    sees: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[Pixels] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    _prompt: str = ""
    _ids: list[int] = field(default_factory=list)
    reused: int = 0
    prompted: int = 0

    def clear(self) -> None:
        """Forget all of it."""
        self.messages, self.images, self.clips = [], [], []
        self._prompt, self._ids = "", []

    def read(self, said: str, images: Sequence[Pixels] = (), clips: Sequence[Clip] = ()) -> Logits:
        """What the user says, through the model: the next token's logits [V]. `prompted` is then how many tokens the
        conversation has, `reused` how many of them the cache held.

        Raises ContextFull, and the conversation is as before; EdgewrightError where the model cannot see, or the
        template refuses.
        """
        before = (list(self.messages), list(self.images), list(self.clips))
        self.images += images
        self.clips += clips
        media = [*({"type": "image"} for _ in images), *({"type": "video"} for _ in clips)]
        self.messages.append({"role": "user", "content": self._content(said, *media)})
        try:
            prompt, ids = self._tokens()
            decoder = self.asked.decoder
            if len(ids) >= decoder.max_tokens:
                raise ContextFull(
                    f"the context of {decoder.max_tokens:,} tokens is full: with this the conversation has "
                    f"{len(ids):,}, and an answer needs room too"
                )
            whole = np.array(ids, np.int64)
            self.reused, self.prompted = decoder.known(whole), len(ids)
            row = decoder.extend(whole)
        except EdgewrightError:
            self.messages, self.images, self.clips = before
            raise
        self._prompt, self._ids = prompt, ids
        return row

    def answer(self, row: Logits, most: int, choose: Choose) -> Generator[tuple[int, str]]:
        """Each token of the answer with the text that it makes certain, which may be none; the last with a token of
        -1 where something was left. Whoever stops asking stops the answer: what was said until then stays said."""
        words = Words(self.asked.words)
        try:
            for token in self.asked.decoder.say(row, most, self.asked.ends, choose):
                yield token, words.add(token)
            if left := words.rest():
                yield -1, left
        finally:
            said = self.asked.words(words.ids)
            self.messages.append({"role": "assistant", "content": self._content(said)})
            if said == self.asked.words(words.ids, special=True):
                self._prompt, self._ids = self._prompt + said, self._ids + words.ids
            else:  # it said special tokens, which a template does not say again
                self._prompt, self._ids = "", []

    def _tokens(self) -> tuple[str, list[int]]:
        """The whole conversation as text and tokens. Where the text goes on from what was read and said, so do the
        tokens: a model may have said with other tokens what a tokenizer makes of it."""
        shown = self._shown()
        answers = [message for message in self.messages if message["role"] == "assistant"]
        if answers and not self._goes_on(shown) and (words := _plain(answers[-1])) != words.strip():
            # a template may put the space there that the answer began with
            raw, answers[-1]["content"] = answers[-1]["content"], self._content(words.strip())
            if not self._goes_on(stripped := self._shown()):
                answers[-1]["content"] = raw
            else:
                shown = stripped
        if self._goes_on(shown):
            return shown, [*self._ids, *self.asked.encode(shown[len(self._prompt) :])]
        return shown, self.asked.encode(shown, special=self.template is None)

    def _shown(self) -> str:
        prompt = self.template.render(self.messages) if self.template else "".join(map(_plain, self.messages))
        return self.asked.shown(prompt, self.images, self.clips)

    def _goes_on(self, shown: str) -> bool:
        return bool(self._ids) and shown.startswith(self._prompt)

    def _content(self, words: str, *media: dict[str, str]) -> Any:
        return [*media, {"type": "text", "text": words}] if self.sees else words


def _plain(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else str(content[-1]["text"])
