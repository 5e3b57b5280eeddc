"""`report.md`: the report for people who read it beside the artifact."""

from __future__ import annotations

from edgewright import text
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
        f"- Recipe: `{report.recipe.name}`, digest `{report.recipe.digest[:16]}`",
        f"- Checkpoint: `{report.checkpoint.source}`{at}",
        f"- Made: {report.created} in {report.seconds} s on {host.cpu}, {host.cores} cores, "
        f"{size(host.memory_bytes)} memory, {host.system}",
        f"- With: {', '.join(f'{name} {version}' for name, version in report.tools.items())}",
        *(f"- **Warning:** {warning}" for warning in report.warnings),
        *(f"- **Stale**, in no verdict here: `{item.artifact}`: {item.reason}" for item in report.stale),
        "",
        "Every figure says how it was obtained; *measured* figures ran here, in the real runtime. Parity compares with "
        "a PyTorch reference that holds the same dequantized weights, quality with the unquantized checkpoint, both on "
        "held-out text. Memory is over the interpreter's own baseline, with a cold page cache.",
        "",
    ]
    for target in report.targets:
        lines += _target(target)
    return plain("\n".join(lines).rstrip() + "\n")


def _target(target: TargetReport) -> list[str]:
    lines = [f"## {target.target}: {size(target.bytes)}, {text.scheme(target)}: {target.verdict}", ""]
    if target.kept:
        lines += [f"Kept from {target.created or 'an earlier run'}: this run did not build or test it.", ""]
        lines += [*(f"- {reason}" for reason in reasons(target)), ""]
    rows = text.rows(target)
    if rows:
        lines += _table(
            ["", "check", "figure", "limit", "obtained", "verdict"],
            [[row.group, row.name, row.figure, row.limit, row.obtained, row.verdict] for row in rows],
        )
        lines += ["", *(f"- {row.group}: {row.reason}" for row in rows if row.reason), ""]
    lines += [line for warning in target.warnings for line in (f"**Warning**: {warning}", "")]
    for step in target.failed_steps:
        lines += [f"**{step.step} failed**: {step.detail}", "", "```", step.stderr_tail.strip(), "```", ""]
    for phone in target.phones:
        if phone.run and phone.run.phases:
            lines += [f"Memory on {phone.profile} ({phone.run.mechanism}), over the interpreter's baseline:", ""]
            lines += _table(
                ["phase", "anonymous", "file-backed", "swap", "peak anonymous", "peak file-backed"],
                [
                    [
                        phase.phase,
                        *(size(b) for b in (phase.anonymous_bytes, phase.file_bytes, phase.swap_bytes)),
                        *(size(b) for b in (phase.peak_anonymous_bytes, phase.peak_file_bytes)),
                    ]
                    for phase in phone.run.phases
                ],
            )
            lines.append("")
    if target.figures:
        lines += ["All figures:", ""]
        lines += _table(
            ["figure", "value", "obtained"],
            [[f.name, text.figure(f), f.obtained] for f in target.figures],
        )
        lines.append("")
    lines += ["Weights:", ""]
    lines += _table(
        ["bits", "group", "method", "tensors", "parameters", "bytes"],
        [
            [str(g.bits), str(g.group or ""), g.method, str(g.tensors), f"{g.parameters:,}", size(g.bytes)]
            for g in target.quantization
        ],
    )
    return [*lines, ""]


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in body)]
    return ["| " + " | ".join(row) + " |" for row in rows]
