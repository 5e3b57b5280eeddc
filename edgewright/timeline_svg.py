"""A memory run as a picture: what it held over time, by kind and phase, as SVG that reads on light and dark pages.

What lives here: the drawing. What must not: reading memory, and deciding anything by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from xml.sax.saxutils import escape

from edgewright.report import MemoryRun
from edgewright.text import size

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 12, 46, 34
# one grey for lines and words that stands out from white and from black, and middle tones for the kinds
_STYLE = """\
text{font:12px system-ui,sans-serif;fill:#59636e}.axis{stroke:#59636e;stroke-width:1}.end{stroke:#59636e;\
stroke-dasharray:2 3}.limit{stroke:#d1242f;stroke-width:1.5;stroke-dasharray:6 4}.anonymous{fill:#bc4c00}\
.swap{fill:#8250df}.file{fill:#0969da}path{fill-opacity:.75}\
@media(prefers-color-scheme:dark){text{fill:#9198a1}.axis,.end{stroke:#9198a1}.limit{stroke:#f85149}\
.anonymous{fill:#f0883e}.swap{fill:#a371f7}.file{fill:#58a6ff}}"""
_KINDS = ("anonymous", "swap", "file")
_LEGEND = {"anonymous": "anonymous", "swap": "swapped", "file": "file-backed"}


def svg(run: MemoryRun, title: str) -> str | None:
    """The picture of a run; None where it was too short to have a line."""
    line = run.time_line
    if len(line) < 2:
        return None
    end = max(line[-1].time_s, 1e-3)
    tops = [sample.resident_bytes + sample.swap_bytes for sample in line]
    step = _step(max(*tops, run.limit_bytes or 0, 1))
    high = step * math.ceil(max(*tops, run.limit_bytes or 0) / step)

    def x(time_s: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(time_s / end, 1.0)

    def y(count: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * count / high

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<text x="{_LEFT}" y="16">{escape(title)}</text>',
        *_legend(),
        *_areas(run, x, y),
        *_phases(run, x),
        *_axes(end, high, step, x, y),
    ]
    if run.limit_bytes is not None:
        at = y(run.limit_bytes)
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _areas(run: MemoryRun, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[str]:
    """Each kind on top of the one before: what cannot be dropped lies at the bottom."""
    below = [0] * len(run.time_line)
    for kind in _KINDS:
        above = [base + getattr(one, f"{kind}_bytes") for base, one in zip(below, run.time_line, strict=True)]
        if above != below:
            there = [f"{x(one.time_s):.1f} {y(top):.1f}" for one, top in zip(run.time_line, above, strict=True)]
            back = [f"{x(one.time_s):.1f} {y(low):.1f}" for one, low in zip(run.time_line, below, strict=True)]
            yield f'<path class="{kind}" d="M{"L".join([*there, *reversed(back)])}Z"/>'
        below = above


def _phases(run: MemoryRun, x: Callable[[float], float]) -> Iterator[str]:
    """A line at the end of each, its name before it where there is room."""
    before = float(_LEFT)
    for phase in run.phases:
        at = x(phase.end_s)
        yield f'<line class="end" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        if at - before > 7 * len(phase.phase):
            yield f'<text x="{(before + at) / 2:.1f}" y="{_TOP - 4}" text-anchor="middle">{escape(phase.phase)}</text>'
        before = at


def _axes(
    end: float, high: float, step: float, x: Callable[[float], float], y: Callable[[float], float]
) -> Iterator[str]:
    bottom = _HEIGHT - _BOTTOM
    yield f'<path class="axis" style="fill:none" d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}"/>'
    for at in range(round(high / step) + 1):
        yield f'<text x="{_LEFT - 6}" y="{y(at * step) + 4:.1f}" text-anchor="end">{size(at * step)}</text>'
    each = _step(end)
    for at in range(int(end / each) + 1):
        yield f'<text x="{x(at * each):.1f}" y="{bottom + 16}" text-anchor="middle">{at * each:g} s</text>'


def _legend() -> Iterator[str]:
    at = _WIDTH - _RIGHT
    for kind in reversed(_KINDS):
        at -= 8 * len(_LEGEND[kind]) + 18
        yield f'<rect class="{kind}" x="{at}" y="7" width="10" height="10"/>'
        yield f'<text x="{at + 14}" y="16">{_LEGEND[kind]}</text>'


def _step(most: float) -> float:
    """A round number of which at most five and at least two make up `most`."""
    power = 10.0 ** math.floor(math.log10(most / 2))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if most / (power * factor) <= 5)
