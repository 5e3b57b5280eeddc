"""`edgewright explain WORD`: what a word of a verdict means, when it is given, and what to do. One screen each.

What lives here: the words, for every command and document. What must not: deciding any of them. Like `cli.py`, loads
nothing but the standard library.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from edgewright import streams
from edgewright.arguments import command, output


@dataclass(frozen=True)
class Explanation:
    """meaning: in a sentence. when: what has to be so for it to be said. then: what follows, and what to do."""

    meaning: str
    when: str
    then: str


WORDS: dict[str, Explanation] = {
    "passed": Explanation(
        "The figure meets its limit; of a target, a phone or a run: nothing of it failed.",
        "A figure is at most, or at least, its limit. A modelled one passes only if the bad end of its band does. A "
        "target passes with parity, quality and every phone of a platform on which it runs.",
        "Exit code 0, and `edgewright publish` takes the package. It is a statement about the phones and limits that "
        "were asked for, on this machine: the report says how each figure was obtained.",
    ),
    "failed": Explanation(
        "A figure misses its limit, or a step did not end by itself.",
        "Parity with PyTorch, a limit of quality or of a phone was missed; or something was not assessed, throttled or "
        "tight that the recipe does not allow; or a runtime crashed.",
        "Exit code 1. The report names the figure and its limit; `edgewright validate ARTIFACT` tries again, "
        "`edgewright quantize-report ARTIFACT` shows which tensors lost most. More bits, smaller groups, gptq or awq "
        "mend quality; fewer bits, a smaller context or `edgewright init` mend memory.",
    ),
    "fits": Explanation(
        "The memory that the package held stays within what is certain of the phone's limit.",
        "The peak, charged by the platform's rule (iOS: anonymous and swapped memory; Android: file pages too), is "
        "below the limit by more than the limit's own uncertainty.",
        "It passes. The limit is the phone profile's, or `peak_memory` of the recipe where that is smaller: "
        "`edgewright profiles show NAME` has it with its source.",
    ),
    "fits by estimate": Explanation(
        "The least that the package can hold, counted from the config alone, stays below the phone's limit.",
        "`edgewright plan` adds up caches, activations and copies of weights; on Android mapped weights too. Nothing "
        "was built or run.",
        "A lower bound: what does not fit here cannot fit, what does is for `edgewright run` to prove.",
    ),
    "tight": Explanation(
        "Within the uncertainty: the figure meets its limit, but it is not certain that the limit is right.",
        "Memory lies between what is certain of a phone's limit and the limit itself, since Apple and Google publish "
        "none; or the limit lies within the band of a modelled speed.",
        "It passes, with a warning, unless the recipe says `validate: {strict: true}`. Try it on the phone, or leave "
        "more room: a smaller context, fewer tiles, fewer bits.",
    ),
    "throttled": Explanation(
        "Android 17's Memory Limiter would evict the app's file pages again and again: it runs, but slowly.",
        "The package held more than the limiter allows, but what only the app can give back stayed below the size at "
        "which it is killed.",
        "It fails unless the recipe says `validate: {allow_throttled: true}`. A foreground service has a smaller limit "
        "than an app on screen (`app_state`). Fewer bits or a smaller context help; copies of weights do not.",
    ),
    "does not fit": Explanation(
        "The package needs more memory than the phone leaves an app.",
        "In a run: the peak is above the limit, or the process was killed by it. In a plan: its caches, activations "
        "and copies of weights alone are more.",
        "It fails, exit code 1. The report names the phase of the peak and what most of it is made of. Fewer bits, a "
        "smaller context, fewer tiles or a runtime that maps its weights help: `edgewright init CHECKPOINT --phone "
        "NAME` looks for such a choice.",
    ),
    "not assessed": Explanation(
        "Nothing is known that could decide: neither passed nor failed.",
        "No speed of such a phone or runtime was ever published; a run swapped or held less than it had mapped, and "
        "measured nothing; mapped weights may not all stay in an Android phone's memory; no phone of a platform that "
        "the package runs on was named.",
        "It fails unless the recipe says `validate: {allow_unassessed: true}`; the reason stands beside it. Take the "
        "limit out, or measure on the phone.",
    ),
    "not validated": Explanation(
        "Built, and never run: nothing shows yet that it works.",
        "`edgewright run --no-validate`, or a folder of quantized weights, from which packages are built.",
        "`edgewright validate ARTIFACT --profile NAME` runs it. `edgewright publish` refuses it until then.",
    ),
    "not for this platform": Explanation(
        "Packages of this target do not run on the phone's system at all.",
        "Core ML and MLX run on iOS; an Android phone was named beside them.",
        "It neither passes nor fails and proves nothing about that phone: name a target that runs there, such as onnx.",
    ),
    "measured": Explanation(
        "Found by running the real runtime on this machine, or, in a phone profile, by its source on that phone.",
        "Parity, quality and tokens are measured wherever the runtime itself ran.",
        "Speed that was measured here is this machine's, not a phone's.",
    ),
    "emulated": Explanation(
        "Found by running with something in the place of the phone or its runtime; the report names the stand-in.",
        "Memory under a phone's byte limit on this machine; Core ML packages in our own executor; ARM64 code under "
        "qemu.",
        "Good for correctness and for memory by kind, never for time. What counts in the end is the phone.",
    ),
    "modelled": Explanation(
        "Calculated by a model that was fitted on published measurements; always with its band.",
        "Speed on phones, and the memory of Core ML packages, counted from the program. Nine of ten measurements lie "
        "within the band.",
        "A limit passes if the bad end of the band meets it, and is tight if it lies within. `edgewright latency` "
        "models other geometries.",
    ),
    "declared": Explanation(
        "Stated by a file, and taken as it is.",
        "PyTorch's perplexities in the golden vectors; sizes that a plan counts from config.json.",
        "As good as the file: its digest is checked, what it says is not measured again.",
    ),
    "estimated": Explanation(
        "A share of the peak that was calculated from sizes, beside others that were measured.",
        "What most of a phone's memory is made of, where the runtime does not tell: caches, activations, weights.",
        "It names what to make smaller first; the sum of the peak itself was measured.",
    ),
    "published": Explanation(
        "Of a phone's figure: stated by the maker, the operating system's source or a standard.",
        "A phone profile says so beside every number, with the source and its date.",
        "Trustworthy, but not seen on the phone itself.",
    ),
    "weak": Explanation(
        "Of a phone's figure: from aggregators, communities, or carried over from another phone.",
        "Apple publishes no memory limit of apps; those of most iPhones come from developers who tried.",
        "The profile's uncertainty takes it into account: what comes near to such a limit is tight.",
    ),
    "policy": Explanation(
        "Of a phone's figure: our choice, without a source.",
        "Android publishes no budget of an app; a share of the phone's memory stands for it.",
        "`peak_memory` in the recipe, or a profile of one's own, sets another.",
    ),
    "ok": Explanation(
        "Of a memory run: it ended by itself.",
        "The package loaded, ran its phases under the limit, or without one, and left.",
        "Its figures are used for the verdict.",
    ),
    "over_budget": Explanation(
        "Of a memory run: the limit ended it.",
        "The kernel killed it at the phone's byte limit, or the watchdog saw it beyond.",
        "The phone's verdict is `does not fit`.",
    ),
    "crashed": Explanation(
        "Of a memory run: a signal ended it that was not the limit's.",
        "The runtime has a defect, or met a file that it does not bear.",
        "It fails; the report has the end of what the runtime said.",
    ),
    "error": Explanation(
        "Of a memory run: it ended with an error of its own.",
        "The runtime refused the package, or ran out of something other than memory.",
        "It fails; the report has the end of what the runtime said.",
    ),
}


def declare(commands: Any) -> None:
    """Add it to the command line."""
    made = command(commands, "explain", run, "say what a word of a verdict means, and what to do")
    made.add_argument("word", nargs="*", metavar="WORD", help="such as tight, or not assessed (default: list them)")
    output(made)


def run(args: argparse.Namespace) -> int:
    """Run `edgewright explain`. Raises EdgewrightError."""
    from textwrap import shorten

    if not args.word:
        if args.json:
            streams.write_json({word: asdict(one) for word, one in WORDS.items()})
        else:
            streams.write_lines(
                "\n".join(f"{word:22} {shorten(one.meaning, 57, placeholder=' …')}" for word, one in WORDS.items())
            )
        return 0
    word = " ".join(" ".join(args.word).lower().split())
    found = WORDS.get(word)
    if found is None:
        from difflib import get_close_matches

        from artifacts import EdgewrightError

        near = get_close_matches(word, WORDS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(WORDS)}"
        raise EdgewrightError(f"{word!r} is no word of a verdict; {hint}")
    if args.json:
        streams.write_json({"word": word, **asdict(found)})
    else:
        streams.write(shown(word, found))
    return 0


def shown(word: str, found: Explanation) -> str:
    """The screen of a word: at most 24 lines of 80 columns."""
    parts = {"What": found.meaning, "When": found.when, "Then": found.then}
    lines = [word, ""]
    for name, said in parts.items():
        lines += [f"{name if not at else '':6}{line}" for at, line in enumerate(streams.folded(said, 72))]
    return "\n".join(line.rstrip() for line in lines) + "\n"
