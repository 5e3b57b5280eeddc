"""Text: a prompt through the decoder, then token by token, over the cache that the session keeps.

What lives here: which calls a prompt becomes, and what is particular to tokens. What must not: a runtime.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from artifacts.formats.interface import Component, Dimension
from runtime_tests.sessions import Session

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]

DECODER = "decoder"


class Decoder:
    """One conversation of batch size 1. constants: `max_tokens` and `vocab_size` of the manifest's driver."""

    def __init__(self, session: Session, component: Component, max_tokens: int) -> None:
        self.session = session
        self._max_tokens = max_tokens
        self._tokens = component.entry("prefill").dimensions["tokens"]
        self._length = 0

    def logits(self, ids: Ids) -> Logits:
        """[S, V]: of all positions of a prefill of `ids` [S] from an empty cache."""
        self.reset()
        found: Logits | None = None
        for start, stop in self._calls(len(ids)):
            rows = self._call("score", ids[start:stop], start)[0]
            if stop - start == len(ids):
                return rows
            found = np.empty((len(ids), rows.shape[1]), np.float32) if found is None else found
            found[start:stop] = rows
        assert found is not None
        return found

    def prefill(self, ids: Ids) -> Logits:
        """[V] of the last position, from an empty cache."""
        self.reset()
        row = np.empty(0, np.float32)
        for start, stop in self._calls(len(ids)):
            one = stop - start == 1 and not takes(self._tokens, 1)
            row = self._call("decode" if one else "prefill", ids[start:stop], start)[0, -1]
        return row

    def decode(self, token: int) -> Logits:
        """[V] after one more token."""
        row: Logits = self._call("decode", np.array([token], np.int64), self._length)[0, -1]
        return row

    def greedy(self, prompt: Ids, tokens: int) -> list[int]:
        """The `tokens` most likely tokens after `prompt`, one by one, each fed back."""
        produced = [int(self.prefill(prompt).argmax())]
        while len(produced) < tokens:
            produced.append(int(self.decode(produced[-1]).argmax()))
        return produced

    def reset(self) -> None:
        """Forget the conversation."""
        self.session.reset()
        self._length = 0

    def _call(self, entry: str, ids: Ids, start: int) -> Logits:
        if len(ids) == 0 or start + len(ids) > self._max_tokens:
            raise EdgewrightError(f"{len(ids)} tokens after {start} do not fit the context of {self._max_tokens}")
        positions = np.arange(start, start + len(ids), dtype=np.int64)[None]
        found = self.session.call(DECODER, entry, input_ids=ids[None].astype(np.int64), positions=positions)
        self._length = start + len(ids)
        logits: Logits = found["logits"]
        return logits

    def _calls(self, count: int) -> Iterator[tuple[int, int]]:
        if count == 0 or count > self._max_tokens:
            raise EdgewrightError(f"a prompt of {count} tokens does not fit the context of {self._max_tokens}")
        return calls(count, self._tokens)


def takes(dimension: Dimension, size: int) -> bool:
    """Whether a call may have this size."""
    return size in dimension.sizes if dimension.sizes else dimension.low <= size <= dimension.high


def calls(count: int, dimension: Dimension) -> Iterator[tuple[int, int]]:
    """Ranges of a prompt of `count` tokens, call by call, in sizes that an entry takes (one token it takes always, by
    decoding). Where sizes are listed, the last call may reach back over tokens that are in the cache already: it
    computes them again, to the same values."""
    if not dimension.sizes:
        for start in range(0, count, dimension.high):
            yield start, min(count, start + dimension.high)
        return
    known = sorted({1, *dimension.sizes})
    done = 0
    while done < count:
        left = count - done
        covering = [size for size in known if left <= size <= count]
        size = covering[0] if covering else max(size for size in known if size <= left)
        done = count if covering else done + size
        yield done - size, done
