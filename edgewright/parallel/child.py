"""The process of one stage: an order on stdin, events on stdout, each one line of JSON.

It ends when its stdin does: whoever started it is gone. What must not live here: what a stage does (`steps.py`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from artifacts import EdgewrightError, Progress, read_manifest
from artifacts.locks import locked
from edgewright import __version__, api, rooms, signals
from edgewright.parallel.stages import Done, Order


def perform(order: Order, progress: Progress) -> Done:
    """One stage of a run that another process holds. Raises EdgewrightError and MissingTool as `api.run` does."""
    if order.version != __version__:
        raise EdgewrightError(
            f"Edgewright is {__version__} here and {order.version} where the run began; install the same on all nodes"
        )
    given, first = order.arguments, order.kind == "quantize"
    run = api.opened(
        order.recipe if order.content is None else api.recipe_type().made(order.content, order.recipe),
        out=given.out,
        targets=given.targets,
        profiles=given.profiles,
        checkpoint=given.checkpoint,
        validate=given.validate_,
        fresh=given.fresh and first,
        since=order.since if given.fresh and not first else 0,
    )
    if run.whole.digest != order.digest:
        raise EdgewrightError(f"{order.recipe}: was changed while it was run; run it again")
    if order.kind == "validation":
        manifest = read_manifest(run.finals[order.target])
        return Done(judged=run.judge(order.target, manifest, progress))
    found = run.locate(progress)
    if order.kind == "report":
        run.asked.begin(found.checkpoint.path)
    quantized = run.quantize(found, progress)
    if first:
        return Done(reused_weights=quantized.reused)
    started = time.monotonic() - order.took
    if order.kind == "package":
        manifest, reused = run.package(found, quantized, order.target, progress)
        with locked(run.folder):  # the report of all that is there now; another package may be ready at the same time
            ledger = run.ledger(found, quantized, started, reused=order.reused_weights)
            ledger.enter_built(run.finals[order.target], manifest, reused)
        return Done(reused=reused)
    ledger = run.ledger(found, quantized, started, reused=order.reused_weights)
    for target, final in run.finals.items():
        reused, judged = order.reused.get(target, ()), order.judged.get(target)
        if judged is None:
            ledger.enter_built(final, read_manifest(final), reused)
        else:
            ledger.enter(judged.model_copy(update={"reused": (*reused, *judged.reused)}))
    return Done(report=run.end(found, ledger))


def main() -> int:
    """Take an order, and say how it went."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no event
    speaking = threading.Lock()

    def say(**event: Any) -> None:
        with speaking:
            events.write(json.dumps(event) + "\n")
            events.flush()

    try:
        with signals.raised():
            rooms.check()
            order = Order.model_validate_json(sys.stdin.readline())
            threading.Thread(target=_end_with_stdin, daemon=True).start()
            done = perform(order, lambda stage, at, total: say(progress=[stage, at, total]))
            say(done=done.model_dump_json())
            return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    except Exception as error:  # the last frame of a process: what it was is said, whatever it was
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            traceback.print_exc()
            error, code = RuntimeError(f"this is a defect of Edgewright, not of your input: {error!r}"), 70
        say(error=str(error), exit_code=code)
        return code


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # a thread waits for stdin
