"""What the terminal shows: tables and verdicts (`bars.py`: progress). Figures in words come from `text.py`.

Colour and bars only where a terminal is; elsewhere plain lines, 80 columns wide. Nothing that a document says can
style, move or reorder what is shown: markup is off, and control characters are spelled out on the way.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from artifacts import Manifest, Problem
from artifacts.payload import app_bytes
from compiler.plan import TargetPlan
from compiler.quantize.evidence import QuantizationEvidence
from device_farm import AndroidProfile, IosProfile
from edgewright import streams, tables, text
from edgewright.fit import PlanFit
from edgewright.matrix import cells
from edgewright.report import Report, TargetReport
from edgewright.standing import WEIGHTS, reasons, standings
from edgewright.streams import plain
from edgewright.text import size
from recipes.schema import Recipe

_MAX_ROWS = 500
_STYLES = {
    "passed": "green",
    "fits": "green",
    "tight": "yellow",
    "not assessed": "yellow",
    "not validated": "yellow",
    "throttled": "bold red",
    "failed": "bold red",
    "does not fit": "bold red",
}
_MARKS = {"green": "✓", "yellow": "!", "bold red": "✗"}


def console(*, stderr: bool = False) -> Console:
    """A console on stderr, or one that keeps what stdout is to show; 80 columns where there is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream if stderr else io.StringIO(),
        force_terminal=stream.isatty(),
        width=None if stream.isatty() else streams.COLUMNS,
        highlight=False,
        markup=False,
        emoji=False,
    )


def show(what: RenderableType) -> None:
    """Print on stdout; without the spaces at the ends of lines where there is no terminal. Raises OutputLost."""
    screen = console()
    screen.print(_Plain(what))
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    if not screen.is_terminal:
        shown = "".join(line.rstrip() + "\n" for line in shown.splitlines())
    streams.write(shown)


class _Plain:
    """Something to show, with the control characters of its text spelled out."""

    def __init__(self, what: RenderableType) -> None:
        self._what = what

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._what, options):
            yield segment._replace(text=plain(segment.text))


def show_reasons(targets: Sequence[TargetReport]) -> None:
    """Print why each failed target failed, one line each."""
    for item in targets:
        for reason in reasons(item):
            streams.write_lines(f"  {item.target}{_when(item)}: {plain(reason, lines=False)}")


def show_warnings(warnings: Sequence[str]) -> None:
    """Print each on a line."""
    for warning in warnings:
        show(tables.padded(Text(f"warning: {warning}", style="yellow"), (0, 1)))


def verdict(word: str) -> Text:
    """A verdict with its mark and colour."""
    style = _STYLES.get(word, "")
    return Text(f"{_MARKS[style]} {word}" if style else word, style=style)


def report(found: Report) -> RenderableType:
    """The table at the end of a run, and where everything is."""
    parts: list[RenderableType] = [target(item, found.recipe.name) for item in found.targets if not item.kept]
    parts += [tables.padded(_kept(item), (0, 1)) for item in found.targets if item.kept]
    parts += [
        tables.padded(Text(f"stale, in no verdict: {item.artifact}: {item.reason}", style="yellow"), (0, 1))
        for item in found.stale
    ]
    parts += [tables.padded(Text(f"warning: {warning}", style="yellow"), (0, 1, 1, 1)) for warning in found.warnings]
    where = tables.pairs(
        [
            *((f"{item.target} artifact", item.artifact) for item in found.targets),
            ("report", f"{found.folder}/report.md, report.html and report.json"),
        ]
    )
    return Group(*parts, tables.padded(where, (0, 1)), tables.padded(verdict_line(found), (1, 1, 0, 1)))


def _kept(item: TargetReport) -> Text:
    line = Text(f"{item.target}{_when(item)}: ")
    line.append_text(verdict(item.verdict))
    return line.append("".join(f"\n  {reason}" for reason in reasons(item)))


def _when(item: TargetReport) -> str:
    """Said beside a result that the run itself did not find."""
    return f", kept from {item.created or 'an earlier run'}" if item.kept else ""


def verdict_line(found: Report) -> Text:
    """One line: the recipe, its verdict, how long it took."""
    line = Text(f"{found.recipe.name}: ")
    line.append_text(verdict(found.verdict))
    kept = ", ".join(item.target for item in found.targets if item.kept)
    reused = ", ".join(f"{item.target} ({' and '.join(item.reused)})" for item in found.targets if item.reused)
    return line.append(
        f" in {text.quantity(found.seconds, 's')}"
        + (f"; reused: {', '.join([*found.reused, reused])}" if reused else "")
        + (f"; found by an earlier run: {kept}" if kept else "")
    )


def target(item: TargetReport, recipe: str | None = None) -> RenderableType:
    """One target: every check with its figure, limit and verdict."""
    head = Text.assemble(
        (f"{recipe} → {item.target}" if recipe else item.target, "bold"),
        (f"   {text.sizes(item.app_bytes, item.folder_bytes)}   {text.scheme(item)}", "dim"),
    )
    table = tables.table("check", ">figure", "limit", "obtained", "verdict")
    group = None
    rows = text.rows(item)
    for row in rows:
        if group != row.group:
            table.add_row(Text(row.group, style="bold"))
        table.add_row(
            tables.padded(row.name, (0, 0, 0, 1)),
            row.figure,
            Text(row.limit, style="dim"),
            Text(row.obtained, style="dim"),
            verdict(row.verdict),
        )
        group = row.group
    parts: list[RenderableType] = [tables.padded(head, (1, 1, 0, 1))]
    parts.append(table if rows else tables.padded(Text("built, not run", style="dim"), (0, 1)))
    remarks = dict.fromkeys((f"{row.group}: {row.reason}", row.verdict) for row in rows if row.remarkable)
    parts += [tables.padded(Text(reason, style=_STYLES.get(word, "")), (0, 1)) for reason, word in remarks]
    parts += [tables.padded(Text(line, style="dim"), (0, 1)) for line in text.stand_ins(rows)]
    for step in item.failed_steps:
        tail = "\n".join(step.stderr_tail.strip().splitlines()[-8:])
        parts.append(tables.padded(Text(f"{step.step} failed: {step.detail}\n{tail}", style="red"), (0, 1)))
    parts += [tables.padded(Text(f"warning: {warning}", style="yellow"), (0, 1)) for warning in item.warnings]
    said = (text.quality(item), text.speed(item), text.packed(item), text.reused(item))
    parts += [tables.padded(Text(line, style="dim"), (0, 1)) for line in said if line]
    return Group(*parts, Text(""))


def matrix(targets: Sequence[TargetReport]) -> RenderableType:
    """Every artifact on every phone: the verdict over its memory, where most was held, and what that is made of."""
    table = tables.table("<phone", "artifact", "<memory", ">peak", ">limit", "<phase", "largest")
    for cell in cells(targets):
        table.add_row(
            Text(cell.phone, style="bold"),
            cell.artifact,
            verdict(cell.memory),
            "" if cell.peak_bytes is None else size(cell.peak_bytes),
            "" if cell.limit_bytes is None else size(cell.limit_bytes),
            cell.phase or "",
            Text("; ".join(cell.largest[:2]), style="dim"),
        )
    return table


def plans(recipe: Recipe, items: Sequence[TargetPlan], fits: Sequence[PlanFit]) -> RenderableType:
    """Static estimates, a line for each component of each target, and whether they fit each phone."""
    table = tables.table("target", "component", "package", ">weights", ">state", ">activations", "")
    for item in items:
        refused = Text(f"refused: {item.refused}", style="bold red") if item.refused else Text("")
        for at, part in enumerate(item.components):
            table.add_row(
                Text("" if at else item.target, style="bold"),
                part.component,
                text.sizes(dict(part.app_bytes)),
                *(size(b) for b in (part.weight_bytes, part.state_bytes, part.activation_bytes)),
                Text("") if at else refused,
            )
    counts = not fits or any(item.longest_context is not None for item in fits)  # tokens of a context
    context = f", for {recipe.context.max_tokens:,} tokens of context" if counts else ""
    note = (
        f"Estimated from the checkpoint's config alone{context}: a package has the tokenizer's files besides, and a "
        "runtime may hold more. `edgewright run` measures both."
    )
    notes = [
        note,
        *filter(None, [text.budget(recipe)]),
        *(f"{i.target}: {line}" for i in items for line in (*text.packable(i), *i.notes)),
    ]
    head = Text(recipe.name, style="bold")
    parts: list[RenderableType] = [tables.padded(head, (1, 1, 0, 1)), table]
    if fits:
        parts.append(_fits(fits))
    return Group(*parts, *(tables.padded(Text(line, style="dim"), (0, 1)) for line in notes))


def _fits(fits: Sequence[PlanFit]) -> RenderableType:
    table = tables.table("phone", "target", ">least need", ">limit", ">longest context", "by estimate")
    for item in fits:
        word = verdict("fits" if item.verdict == "fits by estimate" else item.verdict)
        longest = "" if item.longest_context is None else f"{item.longest_context:,} tokens"
        table.add_row(item.profile, item.target, size(item.needed_bytes), size(item.limit_bytes), longest, word)
    reasons = dict.fromkeys(
        f"{item.target} on {item.profile}: {item.reason}" for item in fits if item.verdict != "fits by estimate"
    )
    parts: list[RenderableType] = [table, *(tables.padded(Text(line), (0, 1)) for line in reasons)]
    speeds = tables.table("speed", "modelled", "limit", "")
    for item in fits:
        known = [text.row(check) for check in item.latency if check.obtained]
        if known:
            speeds.add_row(Text(f"{item.target} on {item.profile}", style="bold"))
        for row in known:
            name = tables.padded(row.name, (0, 0, 0, 1))
            speeds.add_row(name, row.figure, row.limit, verdict(row.verdict))
    if speeds.row_count:
        parts.append(speeds)
    return Group(*parts, *(tables.padded(Text(line, style="dim"), (0, 1)) for line in text.speeds(fits)))


def standing(found: Manifest, artifact: Path) -> RenderableType:
    """What was found out about an artifact since it was built."""
    parts = []
    for item in standings(found, artifact):
        style = _STYLES.get(item.verdict, "")
        parts.append(Text(f"{_MARKS[style]} {plain(item.words, lines=False)}", style=style))
    return Group(*parts)


def manifest(found: Manifest, artifact: Path) -> RenderableType:
    """What an artifact is, without its file digests, and what was found out about it."""
    checkpoint = found.checkpoint
    about = tables.pairs(
        [
            ("recipe", f"{found.recipe.name}{_alone(found)}, digest {found.recipe.digest[:16]}"),
            ("target", f"{found.target} ({found.family})"),
            ("checkpoint", checkpoint.source + (f" at {checkpoint.revision}" if checkpoint.revision else "")),
            ("licence", checkpoint.license or "not stated by the checkpoint"),
            ("weights", f"digest {found.weights_digest[:16]}"),
            ("made with", ", ".join(f"{name} {version}" for name, version in found.created_by.items())),
            (
                "components",
                "; ".join(f"{part.name}: {', '.join(e.name for e in part.entries)}" for part in found.components),
            ),
            ("driver", f"{found.driver.name}: {_plain_values(found.driver.constants)}" if found.driver else ""),
            ("runtime", _plain_values(found.runtime)),
            ("in an app", text.sizes(app_bytes(Path(), found))),
        ]
    )
    weights = tables.table("bits", "group", "method", ">tensors", ">parameters", ">packed")
    for group in found.quantization:
        weights.add_row(
            str(group.bits),
            str(group.group or ""),
            group.method,
            str(group.tensors),
            f"{group.parameters:,}",
            size(group.bytes),
        )
    files = tables.table("file", ">size", "sha256")
    for file in found.files[:_MAX_ROWS]:
        files.add_row(file.path, size(file.size), Text(file.sha256[:16] + "…", style="dim"))
    if len(found.files) > _MAX_ROWS:
        files.add_row(f"and {len(found.files) - _MAX_ROWS:,} more", "", "")
    files.add_section()
    files.add_row("all", size(found.total_bytes), "")
    parts: list[RenderableType] = [
        tables.padded(about, (1, 1)),
        tables.padded(standing(found, artifact), (0, 1)),
        weights,
        files,
    ]
    if found.figures:
        figures = tables.table("figure", ">value", "obtained")
        for figure in found.figures:
            figures.add_row(figure.name, text.figure(figure), text.obtained(figure))
        parts.append(figures)
    return Group(*parts)


def _alone(found: Manifest) -> str:
    """Said beside a package's digest: it is that of the recipe with one target, not of the whole as in a report."""
    return "" if found.target == WEIGHTS else f" with target {found.target} alone"


def _plain_values(values: Mapping[str, object]) -> str:
    """Numbers, words and lists of them; what is nested deeper is for programs."""
    shown = []
    for key, value in values.items():
        items = value if isinstance(value, list) else [value]
        if value is not None and all(isinstance(item, str | int | float) for item in items):
            shown.append(f"{key} {', '.join(map(str, items))}")
    return "; ".join(shown)


def quantization(found: QuantizationEvidence, worst: int) -> RenderableType:
    """What quantization did: on held-out text, after every layer, and to the `worst` tensors."""
    parts: list[RenderableType] = []
    if text_ := found.held_out:
        rows = [
            ("on", f"{text_.text}, {text_.tokens:,} tokens"),
            ("perplexity", f"{text_.perplexity:.3f}, of the checkpoint {text_.perplexity_original:.3f}"),
            ("both", "in PyTorch, with dequantized weights; a run's report has the perplexity of the runtime"),
            ("divergence", f"at least {text_.mean_kl:.6f} nats on average (64 likeliest tokens, the rest as one)"),
            ("same top token", f"{text_.top1_agreement:.2%}"),
        ]
        parts.append(tables.padded(tables.pairs(rows), (1, 1)))
    tensors = tables.table("tensor", ">bits", ">group", "method", ">size", ">signal\nto noise", ">output\nerror")
    for tensor in found.tensors[: max(worst, 0)]:
        tensors.add_row(
            tensor.slot,
            str(tensor.bits),
            str(tensor.group),
            tensor.method,
            size(tensor.bytes),
            f"{tensor.snr_db:.1f} dB",
            "" if tensor.output_error is None else f"{tensor.output_error:.2%}",
        )
    parts.append(tensors)
    if found.activations:
        parts += [tables.padded(Text(line), (0, 1)) for line in text.activations(found.activations)]
    if found.layers:
        layers = tables.table("after layer", ">error of hidden states")
        for layer in found.layers:
            layers.add_row(str(layer.layer), f"{layer.output_error:.2%}")
        parts.append(layers)
    return Group(*parts)


def problems(folder: Path, found: Sequence[Problem], manifest: Manifest) -> RenderableType:
    """The outcome of a verification, and what was found out about the files if they are what they were."""
    if not found:
        intact = Text(f"✓ {folder}: {len(manifest.files)} files, every digest matches", style="green")
        return Group(intact, standing(manifest, folder))
    table = tables.table("file", "problem")
    for problem in found[:_MAX_ROWS]:
        table.add_row(problem.path, Text(problem.message, style="red"))
    more = f", {_MAX_ROWS} of them shown" if len(found) > _MAX_ROWS else ""
    return Group(
        table,
        Text(f"✗ {folder}: {len(found):,} {'problem' if len(found) == 1 else 'problems'}{more}", style="bold red"),
    )


def recipes(found: Sequence[tuple[str, Recipe]]) -> RenderableType:
    """The recipes that ship."""
    table = tables.table("<recipe", "checkpoint", "weights", "targets", "<phones")
    for name, recipe in found:
        bits = ", ".join(dict.fromkeys(f"INT{r.bits}" if r.bits < 16 else "half" for r in recipe.quantize.rules))
        table.add_row(
            Text(name, style="bold"),
            recipe.checkpoint.hub or Path(recipe.checkpoint.path or "").name,
            bits,
            ", ".join(recipe.targets),
            "\n".join(recipe.validation.profiles),
        )
    return table


def profiles(found: Sequence[AndroidProfile | IosProfile]) -> RenderableType:
    """The phones that ship."""
    table = tables.table("<profile", "phone", "<system", ">memory", ">budget", "<confidence")
    for profile in found:
        budget = profile.budget()
        table.add_row(
            Text(profile.name, style="bold"),
            profile.title,
            f"{profile.platform} {profile.os_version.value}",
            size(profile.ram_bytes.value),
            size(budget.limit_bytes),
            budget.confidence,
        )
    return table
