"""The job "try" in its process: somebody talks to the artifact, and it answers as it comes.

What lives here: the requests, the events that tell of the answer, and what a head that talks leaves behind. What must
not: how an answer comes to be (`conversation.py`, `drivers/`), and anything that somebody looks at (`edgewright`).

It speaks the sandbox's protocol. The phase "baseline" comes once the runtime, the tokenizer and the template are there
and nothing of the model is: what limits hold and figures count is then what a validation's do. After "load" it takes
requests, one JSON object per line of a pipe: ``{"say": text, "images": [paths], "clips": [paths], "most": tokens}``,
``{"hear": path}`` (WAV), ``{"clear": true}``, and while it answers ``{"stop": true}``. After
the phase "prompt" or "first" it tells ``{"token": n, "text": …, "seconds": since the first}``, or ``{"frame": n}``, and
ends an answer with the phase "answer". ``{"refused": message}`` is an answer too: the request was not one, and the next
may be. ``memory`` is [anonymous, file, swap] in bytes over the baseline, None where this system does not tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from artifacts import EdgewrightError, Manifest
from artifacts.formats.preprocessing import Preprocessing
from artifacts.media.images import read_image
from artifacts.media.video import read_clip
from device_farm import Split, read_split
from runtime_tests.chat import read_template
from runtime_tests.conversation import Conversation, sampled
from runtime_tests.drivers import Phase, driver_of, text
from runtime_tests.jobs import Job, Talk
from runtime_tests.sessions import make_session

Emit = Callable[[dict[str, Any]], None]
_PATIENCE_S = 2.0  # for a call that nobody waits for any more


class Requests:
    """What is asked, in order; a thread reads it, so that a stop is heard while an answer comes."""

    def __init__(self, pipe: Path) -> None:
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.stopped = threading.Event()
        threading.Thread(target=self._read, args=(pipe,), daemon=True).start()

    def next(self) -> dict[str, Any] | None:
        """The next one; None when nobody asks any more."""
        return self._waiting.get()

    def _read(self, pipe: Path) -> None:
        with pipe.open(encoding="utf-8") as lines:
            for line in lines:
                request = json.loads(line)
                if "stop" in request:
                    self.stopped.set()
                else:
                    self.stopped.clear()  # an earlier stop was of an earlier answer
                    self._waiting.put(request)
        self.stopped.set()
        self._waiting.put(None)
        time.sleep(_PATIENCE_S)
        os._exit(0)


class Memory:
    """What this process holds over its baseline."""

    def __init__(self) -> None:
        self._before = _split()

    def now(self) -> list[int] | None:
        """[anonymous, file, swap] in bytes."""
        if (now := _split()) is None or (before := self._before) is None:
            return None
        kinds = ((now.anonymous, before.anonymous), (now.file, before.file), (now.swap, before.swap))
        return [max(0, after - at_first) for after, at_first in kinds]


def _split() -> Split | None:
    return read_split() if sys.platform.startswith("linux") else None


class Partner(Protocol):
    """Who answers requests of one kind."""

    def answer(self, request: dict[str, Any], stopped: threading.Event, emit: Emit, phase: Phase) -> dict[str, Any]:
        """Answers one, until it is stopped; what the phase "answer" tells. Raises EdgewrightError for one that is
        none."""

    def clear(self) -> None:
        """Forget what was said."""


def serve(job: Job, manifest: Manifest, emit: Emit, phase: Phase) -> None:
    """Answer until nobody asks any more. Raises EdgewrightError for an artifact that nobody can talk to."""
    assert job.talk is not None
    requests = Requests(job.talk.requests)
    driver = driver_of(job.artifact, manifest)
    session = make_session(job.artifact, manifest)
    partner: Partner
    if manifest.driver is not None and manifest.driver.name == "talking_head":
        from runtime_tests.talking import Listener

        partner = Listener(session, job.artifact, manifest, Path(tempfile.gettempdir()))
    else:
        partner = Talker(driver.asker(session, job.artifact, manifest), job.artifact, job.talk)
    memory = Memory()
    phase("baseline")
    begin = time.perf_counter()
    session.load(threads=job.threads)
    phase("load", seconds=time.perf_counter() - begin, stand_in=session.stand_in, memory=memory.now())

    def tell(event: dict[str, Any]) -> None:
        emit({**event, "memory": memory.now()})

    while (request := requests.next()) is not None:
        if "clear" in request:
            partner.clear()
            continue
        try:
            found = partner.answer(request, requests.stopped, tell, phase)
        except EdgewrightError as error:
            emit({"refused": str(error)})
            continue
        phase("answer", memory=memory.now(), **found)


class Talker:
    """Answers in words."""

    def __init__(self, asked: Any, artifact: Path, talk: Talk) -> None:
        """asked: the driver's asker. Raises EdgewrightError for one without words."""
        if not isinstance(asked, text.Asked):
            raise EdgewrightError(f"{artifact}: nobody can talk to this kind of model")
        self._asked = asked
        self._description: Preprocessing | None = getattr(asked, "description", None)
        self._talk = Conversation(asked, read_template(artifact), sees=self._description is not None)
        self._choose = sampled(talk.temperature, talk.top_p, talk.seed)

    def clear(self) -> None:
        """See `Partner`."""
        self._talk.clear()

    def answer(self, request: dict[str, Any], stopped: threading.Event, emit: Emit, phase: Phase) -> dict[str, Any]:
        """See `Partner`."""
        description = self._description
        if description is None and (request["images"] or request["clips"]):
            raise EdgewrightError("the model sees neither images nor clips")
        images = [read_image(Path(path)) for path in request["images"]]
        clips = [read_clip(Path(path), description) for path in request["clips"]] if description else []
        begin = time.perf_counter()
        row = self._talk.read(request["say"], images, clips)
        first = time.perf_counter()
        phase("prompt")
        most, count, ended = request["most"], 0, "ended"
        # closed, so that what was said until then stays said
        with contextlib.closing(self._talk.answer(row, most, self._choose)) as answer:
            for token, words in () if stopped.is_set() else answer:
                count += token >= 0
                emit({"token": count, "text": words, "seconds": time.perf_counter() - first})
                if stopped.is_set():
                    break
        length = self._asked.decoder.length
        room = self._asked.decoder.max_tokens
        if stopped.is_set():
            ended = "stopped"
        elif self._talk.prompted + count >= room:
            ended = "context"
        elif count >= most:
            ended = "most"
        return {
            "tokens": count,
            "prompt": self._talk.prompted,
            "reused": self._talk.reused,
            "first": first - begin,
            "seconds": time.perf_counter() - first,
            "ended": ended,
            "context": [length, room],
        }
