"""`edgewright try`: talk to an artifact in its real runtime.

What lives here: which artifact is meant, the conversation at a terminal or through pipes, and its figures in words.
What must not: the process that answers (`trial.py`), and how an answer comes to be.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewright import streams
from edgewright.arguments import command

if TYPE_CHECKING:
    from artifacts import Manifest
    from device_farm import Profile
    from edgewright.screen import Screen
    from edgewright.trial import Trial

_ORDER = ("onnx", "tvm", "mlx", "coreml")  # what runs here itself first, what something slow stands in for last
_HELP = "/exit or Ctrl-D ends it, Ctrl-C stops an answer, /clear begins another conversation"
_HEARS = "talking_head"
_ENDINGS = {
    "context": "the context is full: /clear begins another conversation",
    "most": "as long as --max-tokens allows",
    "stopped": "stopped",
}


def declare(commands: Any) -> None:
    """The command's arguments."""
    made: argparse.ArgumentParser = command(commands, "try", _run, "talk to an artifact in its real runtime")
    made.add_argument("artifact", metavar="ARTIFACT", help="folder of the artifact, or of a run with several")
    made.add_argument("--target", metavar="NAME", help="which of several (default: the first that runs here)")
    made.add_argument("--prompt", metavar="TEXT", help="answer this alone: the answer on stdout, figures on stderr")
    made.add_argument("--image", action="append", default=[], metavar="FILE", help="shown with the first prompt")
    made.add_argument("--video", action="append", default=[], metavar="FILE", help="shown with the first prompt")
    made.add_argument("--audio", metavar="FILE.wav", help="what an avatar hears; it writes a clip")
    made.add_argument("--out", metavar="PATH", help="where to: .mp4, .motion, .npy or a folder of pictures")
    made.add_argument("--profile", metavar="NAME", help="under this phone's memory limit")
    made.add_argument("--max-tokens", type=int, default=256, metavar="N", help="of an answer (default: 256)")
    made.add_argument("--greedy", action="store_true", help="always the likeliest token")
    made.add_argument("--temperature", type=float, default=0.7, metavar="T", help="of the choice (default: 0.7)")
    made.add_argument(
        "--top-p", type=float, default=0.95, metavar="P", help="probability to choose from (default: 0.95)"
    )
    made.add_argument("--seed", type=int, metavar="N", help="choose the same tokens again")


def _run(args: argparse.Namespace) -> int:
    from artifacts import MissingTool, require_intact, user_path
    from artifacts.errors import EdgewrightError
    from device_farm import load_profile
    from edgewright.screen import Screen
    from edgewright.trial import Gone, Trial

    talk = _choice(args)
    _check_files(args)
    phone = load_profile(str(user_path(args.profile, "--profile"))) if args.profile is not None else None
    found = _candidates(args.artifact, args.target)
    screen = Screen(live=args.prompt is None and args.audio is None)
    for artifact in found:
        manifest = require_intact(artifact)
        _check_kind(args, artifact, manifest)
        try:
            with Trial(artifact, manifest, talk, phone) as trial:
                try:
                    loaded = trial.loaded()
                except (EdgewrightError, MissingTool) as error:
                    if isinstance(error, Gone) or artifact == found[-1]:
                        raise
                    screen.note(f"{manifest.target} does not run here: {error}")
                    continue
                return _Session(args, artifact, manifest, trial, screen, phone).hold(loaded, found)
        except Gone as gone:
            screen.end()
            screen.note(str(gone))
            return 1
    raise AssertionError("the last candidate returns or raises")


def _choice(args: argparse.Namespace) -> dict[str, Any]:
    """How tokens are chosen, as fields of `Talk`. Raises EdgewrightError."""
    from artifacts.errors import EdgewrightError

    bounds = (
        ("--max-tokens", args.max_tokens, args.max_tokens >= 1, "1 or more"),
        ("--temperature", args.temperature, 0 <= args.temperature <= 100, "0 to 100"),
        ("--top-p", args.top_p, 0 < args.top_p <= 1, "more than 0, and 1 at most"),
        ("--seed", args.seed, args.seed is None or args.seed >= 0, "0 or more"),
    )
    for name, value, fits, wanted in bounds:
        if not fits:
            raise EdgewrightError(f"{name}: must be {wanted}, not {value}")
    return {"temperature": 0.0 if args.greedy else args.temperature, "top_p": args.top_p, "seed": args.seed}


def _check_files(args: argparse.Namespace) -> None:
    from artifacts import user_path
    from artifacts.errors import EdgewrightError

    given = [("--image", args.image), ("--video", args.video), ("--audio", [] if args.audio is None else [args.audio])]
    for option, paths in given:
        for path in paths:
            if not user_path(path, option).exists():
                raise EdgewrightError(f"{option}: {path}: no such file")
    if args.out is not None and user_path(args.out, "--out").exists():
        raise EdgewrightError(f"--out: {args.out}: is there already; name another place")


def _check_kind(args: argparse.Namespace, artifact: Path, manifest: Manifest) -> None:
    from artifacts.errors import EdgewrightError

    driver = manifest.driver.name if manifest.driver else None
    if driver is None or driver == "plain":
        raise EdgewrightError(f"{artifact}: takes arrays, no words and no sound; `edgewright validate` runs it")
    if driver == _HEARS and (args.audio is None or args.prompt is not None or args.image or args.video):
        raise EdgewrightError(f"{artifact}: an avatar, which hears sound and nothing else: give it --audio FILE.wav")
    if driver != _HEARS and (args.audio is not None or args.out is not None):
        raise EdgewrightError(f"{artifact}: hears no sound; --audio and --out are for avatars")
    if driver == "text" and (args.image or args.video):
        raise EdgewrightError(f"{artifact}: reads text alone; it sees no --image and no --video")


def _candidates(given: str, target: str | None) -> list[Path]:
    """The artifacts that may be meant, best first. Raises EdgewrightError."""
    from artifacts import MANIFEST, read_manifest, user_path
    from artifacts.errors import EdgewrightError

    folder = user_path(given, "ARTIFACT")
    if (folder / MANIFEST).is_file():
        found = {read_manifest(folder).target: folder}
    else:
        below = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
        found = {path.name: path for path in below if read_manifest(path).driver is not None}
    if not found:
        raise EdgewrightError(_nothing(given, folder))
    if target is not None:
        if target not in found:
            raise EdgewrightError(f"--target: {folder} has no {target!r}; it has {', '.join(sorted(found))}")
        return [found[target]]
    return [found[name] for name in sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else 9, name))]


def _nothing(given: str, folder: Path) -> str:
    from recipes.load import shipped

    if given in shipped() or folder.suffix in (".yaml", ".yml"):
        name = folder.stem if folder.suffix else given
        return (
            f"{given}: is a recipe, and no artifact; `edgewright run {given}` builds it, then talk to it by "
            f"`edgewright try build/{name}`"
        )
    what = "holds no artifact" if folder.is_dir() else "no such artifact folder"
    return f"{folder}: {what}; `edgewright run RECIPE` builds one in build/<recipe>/<target>"


class _Session:
    """One sitting with one artifact."""

    def __init__(
        self,
        args: argparse.Namespace,
        artifact: Path,
        manifest: Manifest,
        trial: Trial,
        screen: Screen,
        phone: Profile | None,
    ) -> None:
        self._args, self._artifact, self._manifest = args, artifact, manifest
        self._trial, self._screen, self._phone = trial, screen, phone
        self._media = {"images": [str(Path(p).absolute()) for p in args.image]}
        self._media["clips"] = [str(Path(p).absolute()) for p in args.video]

    def hold(self, loaded: dict[str, Any], found: Sequence[Path]) -> int:
        """Answers what is asked, to the end; the exit code."""
        args, screen = self._args, self._screen
        if args.audio:
            return self._hear(args.audio) or self._verdict()
        if args.prompt is not None:
            self._answer(args.prompt)
            return self._verdict()
        name, stand_in = self._manifest.recipe.name, loaded["stand_in"]
        others = [path.name for path in found if path != self._artifact]
        more = f" (also here: --target {', '.join(others)})" if others else ""
        screen.note(f"{name} → {self._manifest.target}{more}, loaded in {loaded['seconds']:.1f} s")
        if stand_in:
            screen.note(f"{stand_in} stands in for the phone's runtime: speed here says nothing of a phone")
        screen.note(f"{self._limit()}{_HELP}")
        for line in self._lines():
            if line.strip() == "/exit":
                break
            if line.strip() == "/clear":
                self._trial.ask(clear=True)
            elif line.strip():
                with self._trial.interruptible():
                    self._answer(line)
        return self._verdict()

    def _limit(self) -> str:
        if self._phone is None:
            return ""
        if self._trial.modelled is not None:
            return f"{self._phone.name}: memory is counted from the program, {self._trial.modelled.verdict}. "
        return f"under the limit of {self._phone.name}, {self._phone.budget().limit_bytes / 1e6:,.0f} MB. "

    def _lines(self) -> Iterator[str]:
        """What somebody types or a pipe holds, to its end. Ctrl-C begins the line anew."""
        if sys.stdin is None:  # closed: nobody asks
            return
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        typed = sys.stdin.isatty()
        if typed:
            import readline  # noqa: F401  # makes `input` edit and remember lines
        while True:
            try:
                yield input("> " if typed and self._screen.terminal else "")
            except EOFError:
                if typed:
                    self._screen.words("\n")
                return
            except KeyboardInterrupt as ended:
                if not typed or getattr(ended, "number", signal.SIGINT) != signal.SIGINT:
                    raise
                self._screen.words("\n")

    def _answer(self, said: str) -> None:
        """Asks, and shows what comes. Raises EdgewrightError for a lone prompt that is refused."""
        from artifacts.errors import EdgewrightError

        screen, media = self._screen, self._media
        self._trial.ask(say=said, most=self._args.max_tokens, **media)
        with screen.answering():
            screen.figures("reading…")
            while (event := self._trial.next()).get("phase") != "answer":
                if "refused" in event and self._args.prompt is not None:
                    raise EdgewrightError(event["refused"])
                if "refused" in event:
                    screen.note(event["refused"])
                    return
                if "token" in event:
                    screen.words(event["text"])
                    screen.figures(_live(event, self._trial.counts))
            screen.end()
        self._media = {"images": [], "clips": []}
        screen.note(_figures(event, self._trial.counts))

    def _hear(self, audio: str) -> int:
        """Lets an avatar hear, and writes what it makes of it."""
        import numpy as np

        from artifacts import EdgewrightError
        from runtime_tests.drivers.talking_head import constants_of
        from runtime_tests.talking import form, write_frames

        constants = constants_of(self._artifact, self._manifest)
        sound = Path(audio).absolute()
        place = Path(self._args.out) if self._args.out else Path(sound.stem + form(constants))
        if place.exists():
            raise EdgewrightError(f"{place}: is there already; name another place with --out")
        self._trial.ask(hear=str(sound))
        while (event := self._trial.next()).get("phase") != "answer":
            if "refused" in event:
                raise EdgewrightError(event["refused"])
        frames = np.memmap(event["made"], event["dtype"], "r", shape=(event["frames"], *event["shape"]))
        try:
            what = write_frames(frames, constants, sound, place)
        except OSError as error:
            raise EdgewrightError(
                f"--out: {place}: cannot be written ({error.strerror}); name another place"
            ) from error
        rate = event["frames"] / max(event["seconds"] + event["first"], 1e-9)
        memory = _memory(event, self._trial.counts)
        self._screen.note(
            f"{event['frames']:,} frames at {rate:.1f} frames/s ({constants.frames.rate} are real time), the first "
            f"after {event['first']:.2f} s{memory}"
        )
        streams.write(f"{streams.plain(str(place), lines=False)}\n")
        self._screen.note(what)
        return 0

    def _verdict(self) -> int:
        """What the phone says to it, and the exit code."""
        from edgewright.trial import in_words

        check = self._trial.verdict()
        if check is None:
            return 0
        self._screen.note(in_words(check))
        for line in self._trial.weakened:
            self._screen.note(f"memory: {line}")
        return 1 if check.verdict == "does not fit" else 0


def _live(event: dict[str, Any], counts: bool) -> str:
    return f"{_tokens(event['token'], event['seconds'])}{_memory(event, counts)}"


def _figures(event: dict[str, Any], counts: bool) -> str:
    ended = f" · {_ENDINGS[event['ended']]}" if event["ended"] in _ENDINGS else ""
    held = f", {event['reused']:,} of them held" if event["reused"] else ""
    length, room = event["context"]
    return (
        f"{_tokens(event['tokens'], event['seconds'])}, first after {event['first']:.2f} s "
        f"({event['prompt']:,} read{held}) · context {length:,} of {room:,}{_memory(event, counts)}{ended}"
    )


def _tokens(count: int, seconds: float) -> str:
    rate = f", {(count - 1) / seconds:.1f} tok/s" if count > 1 and seconds > 0 else ""
    return f"{count:,} token{'' if count == 1 else 's'}{rate}"


def _memory(event: dict[str, Any], counts: bool) -> str:
    """Memory by kind, where it is the artifact's and not that of something that stands in for its runtime."""
    if event["memory"] is None or not counts:
        return ""
    anonymous, file, swap = event["memory"]
    swapped = f", {swap / 1e6:.0f} MB swap" if swap else ""
    return f" · {anonymous / 1e6:.0f} MB anonymous, {file / 1e6:.0f} MB file{swapped}"
