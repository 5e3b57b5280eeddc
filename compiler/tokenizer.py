"""The checkpoint's tokenizer.json: opened once in one way, and checked before any work depends on it.

What lives here: from a file to an encoder that gives ids of the model's vocabulary, and the documents beside it. What
must not: texts, and which of them are encoded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import EdgewrightError
from artifacts.documents import read_bytes, read_json

if TYPE_CHECKING:
    from tokenizers import Encoding

FILE = "tokenizer.json"
MAX_BYTES = 256 << 20
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
_SAMPLE = (
    "def load(self, path: str) -> dict[str, int]:\n    # Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.\n"
    "    return {key: int(value) for key, value in self.read(path).items() if value != 0x1F}  # 日本語 🙂\n"
)
_FEWEST = 10


def check_tokenizer(checkpoint: Path, vocab: int) -> None:
    """Raises EdgewrightError when a checkpoint's tokenizer cannot be used with a model of `vocab` tokens.

    It may be missing; what is there must be sound.
    """
    for name in _BESIDE:
        if os.path.lexists(checkpoint / name):
            read_json(checkpoint / name)
    file = checkpoint / FILE
    if not os.path.lexists(file):
        return
    encoder = Encoder(file)
    word, largest = encoder.largest()
    if largest >= vocab:
        raise EdgewrightError(
            f"{file}: the token {word[:40]!r} has id {largest}, and the model knows {vocab} tokens: it is another "
            "model's tokenizer, or the embedding was not resized (model.resize_token_embeddings) when a token was added"
        )
    found = encoder.encode(_SAMPLE, add_special_tokens=False).ids
    if len(found) < _FEWEST:
        raise EdgewrightError(
            f"{file}: gives {len(found)} tokens for a text of {len(_SAMPLE)} characters: it is empty, or damaged"
        )
    if max(encoder.encode(_SAMPLE, add_special_tokens=True).ids) >= vocab:
        raise EdgewrightError(f"{file}: its post_processor adds tokens that the model's {vocab} tokens do not have")


class Encoder:
    """A tokenizer that neither cuts nor pads. Raises EdgewrightError for a file that cannot be read or used."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._file = file
        raw = read_bytes(file, MAX_BYTES)
        self._tokenizer: Any = self._explained("is not a tokenizer that can be read", Tokenizer.from_buffer, raw)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, add_special_tokens: bool = False) -> Encoding:
        """A text's tokens, as `tokenizers` gives them."""
        encode, special = self._tokenizer.encode, add_special_tokens
        found: Encoding = self._explained("cannot encode text", lambda: encode(text, add_special_tokens=special))
        return found

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, special ones left out."""
        decode = self._tokenizer.decode
        text: str = self._explained("cannot decode tokens", lambda: decode(ids, skip_special_tokens=True))
        return text

    def leading(self) -> list[int]:
        """What it puts before every text by itself: a BOS token, or nothing, whatever config.json names."""
        plain, whole = (self.encode(_SAMPLE, add_special_tokens=special).ids for special in (False, True))
        at = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
        found: list[int] = whole[:at]
        return found

    def largest(self) -> tuple[str, int]:
        """The token with the largest id, and that id; -1 when there is no token."""
        vocabulary = self._explained("has no readable vocabulary", self._tokenizer.get_vocab)
        return max(vocabulary.items(), key=lambda item: item[1], default=("", -1))

    def _explained(self, what: str, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BaseException as error:
            # tokenizers raises ValueError or plain Exception, and where its Rust code panics what is no Exception
            if type(error) not in (ValueError, Exception) and type(error).__name__ != "PanicException":
                raise
            raise EdgewrightError(f"{self._file}: {what}: {str(error)[:200]}; take it from the model again") from error
