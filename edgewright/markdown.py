"""`report.md`: the report for people who read it beside the artifact."""

from __future__ import annotations

from edgewright import matrix, text
from edgewright.report import Report, TargetReport
from edgewright.standing import reasons
from edgewright.streams import plain
from edgewright.text import size


def markdown(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    at = f" at `{report.checkpoint.revision}`" if report.checkpoint.revision else ""
    host = report.host
    lines = [
        f"# {report.recipe.name}: {report.verdict}",
        "",
        f"- Recipe: `{report.recipe.name}`, digest `{report.recipe.digest[:16]}` with all targets of the run; the "
        "manifest of a package has the digest with its target alone",
        f"- Checkpoint: `{report.checkpoint.source}`{at}",
        f"- Made: {report.created} in {report.seconds} s on {host.cpu}, {host.cores} cores, "
        f"{size(host.memory_bytes)} memory, {host.system}",
        f"- With: {', '.join(f'{name} {version}' for name, version in report.tools.items())}",
        *(f"- Reused from an earlier run: {what}" for what in report.reused),
        *(f"- **Warning:** {warning}" for warning in report.warnings),
        *(f"- **Stale**, in no verdict here: `{item.artifact}`: {item.reason}" for item in report.stale),
        "",
        "Every figure says how it was obtained. *measured*: in the real runtime, on this machine. *emulated*: with "
        "something in place of the phone or its runtime, which is named. *modelled*: calculated, with its band in "
        "brackets. *declared*: stated by "
        "a file. Parity compares with a PyTorch reference that holds the same dequantized weights, quality with the "
        "unquantized checkpoint in PyTorch, both on held-out text; ± is half of a 95 % confidence interval. Memory is "
        "that of the whole context; where it is not modelled, over the interpreter's own baseline, with a cold page "
        "cache.",
        "",
    ]
    found = matrix.cells(report.targets)
    if any(len(target.phones) > 1 for target in report.targets):
        lines += ["## Phones", "", *table(*matrix.rows(found)), ""]
        lines += [f"{line}\n" for line in matrix.least(found)]
    for target in report.targets:
        lines += _target(target)
    return plain("\n".join(lines).rstrip() + "\n")


def _target(target: TargetReport) -> list[str]:
    shipped = text.sizes(target.app_bytes, target.folder_bytes)
    lines = [f"## {target.target}: {shipped}, {text.scheme(target)}: {target.verdict}", ""]
    held = size(target.folder_bytes)
    lines += [f"Beside edgewright.json the folder holds {held}: golden vectors and all that no app needs too.", ""]
    if target.kept:
        lines += [f"Kept from {target.created or 'an earlier run'}: this run did not test it.", ""]
        lines += [*(f"- {reason}" for reason in reasons(target)), ""]
    if reused := text.reused(target):
        lines += [f"{reused[0].upper()}{reused[1:]}.", ""]
    rows = text.rows(target)
    if rows:
        lines += table(
            ["", "check", "figure", "limit", "obtained", "verdict"],
            [[row.group, row.name, row.figure, row.limit, text.obtained(row), row.verdict] for row in rows],
        )
        lines += ["", *(f"- {row.group}: {row.reason}" for row in rows if row.reason), ""]
        for line in filter(None, (text.quality(target), text.speed(target), text.packed(target))):
            lines += [line, ""]
    if target.film:
        lines += [
            f"[{target.film}]({target.film}) shows a clip by the original weights, by the quantized ones and as it "
            "runs here, and how far it is from the original.",
            "",
        ]
    lines += [line for warning in target.warnings for line in (f"**Warning**: {warning}", "")]
    for step in target.failed_steps:
        lines += [f"**{step.step} failed**: {step.detail}", "", "```", step.stderr_tail.strip(), "```", ""]
    for name, run, phones in matrix.runs(target):
        if run.phases:
            where = f"{', '.join(phones[:-1])} and {phones[-1]}" if phones[1:] else phones[0]
            lines += [f"Memory on {where}, {matrix.conditions(run)}, over the interpreter's baseline:", ""]
            lines += table(
                ["phase", "anonymous", "file-backed", "swap", "peak anonymous", "peak file-backed"],
                [
                    [
                        phase.phase,
                        *(size(b) for b in (phase.anonymous_bytes, phase.file_bytes, phase.swap_bytes)),
                        *(size(b) for b in (phase.peak_anonymous_bytes, phase.peak_file_bytes)),
                    ]
                    for phase in run.phases
                ],
            )
            lines += ["", *([f"![Memory over time]({name})", ""] if len(run.time_line) > 1 else [])]
    if target.figures:
        lines += ["All figures:", ""]
        lines += table(
            ["figure", "value", "obtained"],
            [[f.name, text.figure(f), text.obtained(f)] for f in target.figures],
        )
        lines.append("")
    lines += ["Weights, with their bytes in `quantized/`:", ""]
    lines += table(
        ["bits", "group", "method", "tensors", "parameters", "bytes"],
        [
            [str(g.bits), str(g.group or ""), g.method, str(g.tensors), f"{g.parameters:,}", size(g.bytes)]
            for g in target.quantization
        ],
    )
    return [*lines, ""]


def table(head: list[str], body: list[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in body)]
    return ["| " + " | ".join(row) + " |" for row in rows]
