"""Text: a prompt through the decoder, then token by token, over the cache that the session keeps.

What lives here: which calls a prompt becomes, and what is particular to tokens. What must not: a runtime.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import MANIFEST, EdgewrightError, Figure, Manifest, Progress, ran_here
from artifacts.formats.interface import Component, Dimension
from artifacts.manifest import payload_file
from artifacts.media.images import Pixels
from artifacts.media.video import Clip
from runtime_tests import genai
from runtime_tests.drivers import Asker, Judged, Phase, positive
from runtime_tests.from_text import (
    TOKENIZER,
    Prompt,
    no_tokens_check,
    options_in_words,
    read_prompt,
    text_check,
    tokens_checks,
)
from runtime_tests.golden import GOLDEN, read_golden
from runtime_tests.sessions import Session

if TYPE_CHECKING:
    from runtime_tests.jobs import Job
    from runtime_tests.process import Ended, Failure

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]

Choose = Callable[[Logits], int]
"""The next token, of logits [V]."""

DECODER = "decoder"
_TURNS = 4
_NO_TOKENIZER = f"the package has no {TOKENIZER}: nothing was tested from text"


def load(artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
    """See `Driver`: the context, prompt and answer together."""
    return f"{positive(artifact, manifest, 'max_tokens'):,} tokens"


def judge(session: Session, manifest: Manifest, job: Job, progress: Progress) -> Judged:
    """Parity and quality over the golden vectors, and a prompt with its greedy continuation.

    `more`: the prompt's text and ids, the continuation ("greedy"), what stood in, and what a session that reads text
    itself made of the prompt's ("own").
    """
    from runtime_tests.parity import Ran, observe, observe_decode, parity
    from runtime_tests.quality import quality

    golden = read_golden(payload_file(job.artifact, GOLDEN))
    if job.golden_tokens is not None:
        golden = golden.beginning(job.golden_tokens)
    room = positive(job.artifact, manifest, "max_tokens") - 1
    decoder = Decoder(session, component_of(job.artifact, manifest), room + 1)
    session.load(exact=True, threads=job.threads)
    exact_stand_in = session.stand_in
    exact_decode = observe_decode(decoder, golden, progress, "decoding exactly")
    exact = observe(decoder, golden, progress, "comparing exact logits")
    session.load(exact=False, threads=job.threads)
    ran = Ran(exact_stand_in, session.stand_in)
    shipped_decode = observe_decode(decoder, golden, progress, "decoding as shipped")
    prompt = read_prompt(job.artifact, golden, room)
    count = min(job.steps, room + 1 - len(prompt.ids))
    continuation = decoder.greedy(prompt.array(), count)
    own = _own(session, prompt, count)
    shipped = observe(decoder, golden, progress, "comparing shipped logits")
    figures, checks = parity(golden, exact, shipped, exact_decode, shipped_decode, ran)
    more_figures, more_checks = quality(golden, shipped, job.limits, ran.shipped)
    return Judged(
        [*figures, *more_figures],
        [*checks, *more_checks],
        list(session.warnings),
        golden.text,
        {"prompt": prompt.ids, "text": prompt.text, "greedy": continuation, "own": own, "stand_in": ran.shipped},
    )


def component_of(artifact: Path, manifest: Manifest, name: str = DECODER) -> Component:
    """A component that a driver needs. Raises EdgewrightError."""
    for component in manifest.components:
        if component.name == name:
            return component
    raise EdgewrightError(f"{artifact / MANIFEST}: no component {name!r}, which its driver needs")


def _own(session: Session, prompt: Prompt, count: int) -> dict[str, Any] | None:
    generate = getattr(session, "generate", None)
    return None if prompt.text is None or generate is None else generate(prompt.text, count)


def run(session: Session, manifest: Manifest, job: Job, phase: Phase) -> None:
    """The phases "prefill" and "steady", the tokens decoded after it; any tokens do, their number is what counts.

    The job's prompt, or one as long as the context has room for beside what is decoded, and then the phase
    "long conversation".
    """
    context = positive(job.artifact, manifest, "max_tokens")
    vocabulary = positive(job.artifact, manifest, "vocab_size")
    decoder = Decoder(session, component_of(job.artifact, manifest), context)
    steps = min(job.steps, context - 1)
    room = context - steps
    prompt = np.arange(min(job.prompt_tokens or room, room), dtype=np.int64) % vocabulary
    begin = time.perf_counter()
    token = int(decoder.prefill(prompt).argmax())
    phase("prefill", tokens=len(prompt), seconds=time.perf_counter() - begin)
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        token = int(decoder.decode(token).argmax())
        seconds.append(time.perf_counter() - begin)
    phase("steady", tokens=steps, seconds=sum(seconds), median_seconds=statistics.median(seconds))
    if job.prompt_tokens is None:
        converse(decoder, prompt, context, steps, phase)


def converse(decoder: Decoder, words: Ids, context: int, steps: int, phase: Phase, first: int = 1) -> None:
    """The phase "long conversation": several turns, each a question and its answer, until the context is full.

    words [most of the context]: what the questions are cut out of. first: what of them the first question must hold.
    steps: tokens of all answers together.
    """
    begin, turns = time.perf_counter(), 1
    each, answer = max(1, context // _TURNS), max(1, steps // _TURNS)
    token = int(decoder.prefill(words[: max(first, each - answer)]).argmax())
    while True:
        for _ in range(min(answer, context - decoder.length)):
            token = int(decoder.decode(token).argmax())
        left = min(max(1, each - answer), context - decoder.length)
        if not left:
            break
        token, turns = int(decoder.go_on(words[-left:]).argmax()), turns + 1
    phase("long conversation", tokens=decoder.length, turns=turns, seconds=time.perf_counter() - begin)


def asker(session: Session, artifact: Path, manifest: Manifest) -> Asker:
    """See `Driver`."""
    context = positive(artifact, manifest, "max_tokens")
    return Asked(Decoder(session, component_of(artifact, manifest), context), artifact, manifest)


def speed(events: Mapping[str, Mapping[str, Any]]) -> Sequence[Figure]:
    """Seconds to the first token, and tokens a second after it."""
    stand_in, tokens = events["load"]["stand_in"], events["prefill"]["tokens"]
    prompt, after = f"{tokens:,} tokens", f"after {tokens:,} tokens"
    return [
        Figure(name="host_prompt_tokens", value=tokens, unit="tokens", obtained="declared"),
        ran_here("host_time_to_first_token", events["prefill"]["seconds"], "s", stand_in, at=prompt),
        ran_here("host_decode", 1.0 / events["steady"]["median_seconds"], "tok/s", stand_in, at=after),
    ]


def conclude(manifest: Manifest, judged: Judged, ask: Callable[..., Ended]) -> Sequence[Failure]:
    """From text: what runtimes that read it themselves made of the prompt's, in the session or in a process."""
    found = judged.more
    if found["text"] is None:
        judged.warnings.append(_NO_TOKENIZER)
    eos = manifest.driver.constants.get("eos") if manifest.driver else None
    if (own := found["own"]) is not None:
        name = own["runtime"]
        judged.checks += tokens_checks(name, found["prompt"], own["ids"], own["ids"], "")
        judged.checks.append(text_check(name, own["continuation"], found["greedy"], eos, found["stand_in"]))
    if any(entry.path == genai.CONFIG for entry in manifest.files):
        return compared_with_genai(manifest, judged, ask, eos)
    return ()


def compared_with_genai(
    manifest: Manifest, judged: Judged, ask: Callable[..., Ended], eos: Any, image: str | None = None
) -> Sequence[Failure]:
    """The package in onnxruntime-genai, from the text on that the plain prompt is of. image: a file in base64, which
    the text has a marker for."""
    from runtime_tests.process import failure_of

    plain: list[int] = judged.more["greedy"]
    prompt, text = judged.more["prompt"], judged.more["text"]
    asked = {"prompt": tuple(prompt), "text": text, "image": image, "steps": len(plain)}
    ended = ask(f"comparing with {genai.NAME}", kind="genai", **asked)
    if (failure := failure_of(genai.NAME, ended)) is not None:
        return (failure,)
    said: Mapping[str, Any] = ended.result
    if said["problem"] is not None:
        judged.checks.append(no_tokens_check(genai.SHORT, said["problem"]))
        if image is not None:
            return ()
    elif said["as_asked"] is not None:
        options = manifest.runtime.get("genai_tokenizer_options")
        how = options_in_words(options) if isinstance(options, dict) else ""
        judged.checks += tokens_checks(genai.SHORT, prompt, said["by_default"], said["as_asked"], how)
    judged.checks.append(text_check(genai.SHORT, said["continuation"], plain, eos))
    return ()


class Asked:
    """See `Asker`. decoder: of the artifact."""

    def __init__(self, decoder: Decoder, artifact: Path, manifest: Manifest) -> None:
        """Reads tokenizer.json. Raises EdgewrightError where it is missing."""
        from tokenizers import Tokenizer

        self.decoder = decoder
        self._tokenizer: Any = Tokenizer.from_file(str(payload_file(artifact, TOKENIZER)))
        eos: Any = manifest.driver.constants.get("eos") if manifest.driver else None
        self.ends = frozenset(eos or ())

    def shown(self, prompt: str, images: Sequence[Pixels], clips: Sequence[Clip]) -> str:
        """Shows the decoder what the prompt speaks of; the text for the tokenizer."""
        if images or clips:
            raise EdgewrightError("the model sees neither images nor clips")
        return prompt

    def answer(
        self,
        prompt: str,
        images: Sequence[Pixels] = (),
        clips: Sequence[Clip] = (),
        *,
        leading: Sequence[int] = (),
        most: int = 64,
    ) -> str:
        """See `Asker`."""
        text = self.shown(prompt, images, clips)
        said = self.decoder.answer(np.array([*leading, *self.encode(text)], np.int64), most, self.ends)
        return self.words(said).strip()

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text; special: with those that the tokenizer puts around one."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def words(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; special: with that of special ones."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=not special)
        return text


class Decoder:
    """One conversation of batch size 1, in a context of `max_tokens`."""

    def __init__(self, session: Session, component: Component, max_tokens: int) -> None:
        self.session = session
        self.max_tokens = max_tokens
        self._tokens = component.entry("prefill").dimensions["tokens"]
        self._held: list[int] = []

    def logits(self, ids: Ids) -> Logits:
        """[S, V]: of all positions of a prefill of `ids` [S] from an empty cache."""
        self.reset()
        found: Logits | None = None
        for start, stop in self._calls(len(ids)):
            rows: Logits = self._call("score", ids[start:stop], start)[0]
            if stop - start == len(ids):
                return rows
            found = np.empty((len(ids), rows.shape[1]), np.float32) if found is None else found
            found[start:stop] = rows
        assert found is not None
        return found

    @property
    def length(self) -> int:
        """Tokens of the conversation so far."""
        return len(self._held)

    def prefill(self, ids: Ids) -> Logits:
        """[V] of the last position, from an empty cache."""
        self.reset()
        return self.go_on(ids)

    def go_on(self, ids: Ids) -> Logits:
        """[V] of the last position, after what was said before."""
        row, before = np.empty(0, np.float32), self.length
        for start, stop in self._calls(len(ids)):
            one = stop - start == 1 and not takes(self._tokens, 1)
            row = self._call("decode" if one else "prefill", ids[start:stop], before + start)[0, -1]
        return row

    def known(self, ids: Ids) -> int:
        """How many tokens of `ids`, a whole conversation, need no computing: all that are held, where it goes on from
        them; else none."""
        length = self.length
        return length if length < len(ids) and ids[:length].tolist() == self._held else 0

    def extend(self, ids: Ids) -> Logits:
        """[V] of the last position of `ids`, a whole conversation: what is known of it is not computed again."""
        known = self.known(ids)
        return self.go_on(ids[known:]) if known else self.prefill(ids)

    def decode(self, token: int) -> Logits:
        """[V] after one more token."""
        row: Logits = self._call("decode", np.array([token], np.int64), self.length)[0, -1]
        return row

    def greedy(self, prompt: Ids, tokens: int) -> list[int]:
        """The `tokens` most likely tokens after `prompt`, one by one, each fed back."""
        produced = [int(self.prefill(prompt).argmax())]
        while len(produced) < tokens:
            produced.append(int(self.decode(produced[-1]).argmax()))
        return produced

    def answer(self, prompt: Ids, most: int, ends: Collection[int]) -> list[int]:
        """The most likely tokens after `prompt`: `most` of them, fewer where one of `ends` or the context ends them."""
        return list(self.say(self.prefill(prompt), most, ends, likeliest))

    def say(self, row: Logits, most: int, ends: Collection[int], choose: Choose) -> Iterator[int]:
        """The tokens of an answer as they come, the first chosen from `row` [V]; each is fed back before the next one
        is asked for. One of `ends` ends it and is neither given nor held."""
        most = min(most, self.max_tokens - self.length)
        for left in range(most - 1, -1, -1):
            token = choose(row)
            if token in ends:
                return
            yield token
            if left:
                row = self.decode(token)

    def reset(self) -> None:
        """Forget the conversation."""
        self.session.reset()
        self._held = []

    def _call(self, entry: str, ids: Ids, start: int) -> Logits:
        if len(ids) == 0 or start + len(ids) > self.max_tokens:
            raise EdgewrightError(f"{len(ids)} tokens after {start} do not fit the context of {self.max_tokens}")
        positions = np.arange(start, start + len(ids), dtype=np.int64)[None]
        found = self.session.call(DECODER, entry, **self.entered(ids, start), positions=positions)
        self._held[start:] = ids.tolist()
        logits: Logits = found["logits"]
        return logits

    def entered(self, ids: Ids, start: int) -> dict[str, NDArray[Any]]:
        """What the decoder gets for tokens [S] from position `start` on, by port."""
        return {"input_ids": ids[None].astype(np.int64)}

    def _calls(self, count: int) -> Iterator[tuple[int, int]]:
        if count == 0 or count > self.max_tokens:
            raise EdgewrightError(f"a prompt of {count} tokens does not fit the context of {self.max_tokens}")
        return calls(count, self._tokens)


def likeliest(row: Logits) -> int:
    """The greedy choice."""
    return int(row.argmax())


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
