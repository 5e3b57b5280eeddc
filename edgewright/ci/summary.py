"""A report in a screen of Markdown, for the page of a CI run: verdicts, why, and what the baseline says of it."""

from __future__ import annotations

from collections.abc import Iterator

from edgewright import text
from edgewright.ci.baseline import Comparison
from edgewright.markdown import table
from edgewright.report import Report, TargetReport
from edgewright.standing import reasons
from edgewright.streams import plain

_SIGNS = {"passed": "✅", "fits": "✅", "tight": "⚠️", "failed": "❌", "does not fit": "❌", "throttled": "❌"}
_MOST = 20  # differences that are shown


def summary(report: Report, comparison: Comparison | None = None) -> str:
    """Markdown. comparison: with a baseline, where there is one."""
    phones = list(dict.fromkeys(phone.profile for target in report.targets for phone in target.phones))
    lines = [f"## {_SIGNS.get(report.verdict, '')} {report.recipe.name}: {report.verdict}".replace("  ", " "), ""]
    lines += table(
        ["target", "in an app", "weights", "parity and quality", *phones],
        [[target.target, text.sizes(target.app_bytes, target.folder_bytes), text.scheme(target), _own(target)]
         + [_phone(target, phone) for phone in phones] for target in report.targets],
    )  # fmt: skip
    lines.append("")
    for target in report.targets:
        lines += [f"- **{target.target}**: {line}" for line in reasons(target)]
        kept = f"from {target.created}: this run did not test it" if target.kept else ""
        lines += [f"- {target.target}: kept {kept}"] if kept else []
    lines += [f"- **Warning**: {line}" for line in report.warnings]
    lines += [f"- **Stale**: `{item.artifact}`: {item.reason}" for item in report.stale]
    if comparison is not None:
        lines += ["", *_compared(comparison)]
    lines += ["", "Memory is over the interpreter's baseline, at the whole context; nothing was measured on a phone. "
              "`report.md` says of every figure how it was obtained.", ""]  # fmt: skip
    return plain("\n".join(lines))


def _own(target: TargetReport) -> str:
    verdicts = [check.verdict for check in target.checks if check.verdict is not None]
    if not verdicts:
        return target.verdict
    bad = sum(verdict == "failed" for verdict in verdicts)
    return f"❌ {bad} of {len(verdicts)} failed" if bad else f"✅ {len(verdicts)} passed"


def _phone(target: TargetReport, name: str) -> str:
    phone = next((phone for phone in target.phones if phone.profile == name), None)
    if phone is None:
        return ""
    found = next((check for check in phone.checks if check.name == "peak_memory"), None)
    if found is None or found.value is None:
        return phone.verdict
    word = found.verdict or phone.verdict
    limit = "" if found.limit is None else f" of {text.quantity(found.limit, found.unit)}"
    return f"{_SIGNS.get(word, '')} {word}: {text.quantity(found.value, found.unit)}{limit}".strip()


def _compared(found: Comparison) -> Iterator[str]:
    yield f"### {'❌ Worse than the baseline' if found.regressed else '✅ Within the baseline'}"
    yield ""
    if not found.differences:
        yield "Every figure is what it was."
        return
    yield from table(
        ["", "target", "figure", "change"],
        [["❌" if d.worse else "", d.target, d.label, d.change] for d in found.differences[:_MOST]],
    )
    yield ""
    if len(found.differences) > _MOST:
        yield f"and {len(found.differences) - _MOST} more"
    if found.reasons:
        yield "What changed:"
        yield ""
        yield from (f"- {reason}" for reason in found.reasons)
