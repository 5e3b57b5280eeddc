"""The pictures of a report as Vega-Lite specifications, which are plain data: one for the page and for an SVG file.

What lives here: what is drawn, and handing it to vl-convert, which draws. What must not: files, HTML
(`html_report.py`), and deciding anything. Names that others chose are values of the data, never the name of a field and
never part of an expression.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final
from xml.sax.saxutils import escape

from artifacts import Check
from compiler.quantize.evidence import TensorEvidence
from edgewright import vega
from edgewright.report import MemoryRun, PhoneReport, TargetReport
from edgewright.streams import plain
from edgewright.text import size

Spec = dict[str, Any]
Rows = list[dict[str, Any]]

SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v6.json"
_VERSION: Final = "6.4"
_WIDTH = 720
_MB = 1e6
# a limit that is farther from what was held than this leaves nothing to see of it, and is named instead
_IN_SIGHT = 4
# the least part of a run's time in which a phase's name has room
_NAMED_SHARE = 0.12
_KINDS = ("anonymous", "swapped", "file-backed")
# middle tones, which stand out from white and from black
_KIND_COLOURS = ("#bc4c00", "#8250df", "#0969da")
_LIMIT, _GREY = "#d1242f", "#59636e"
_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#1b7c83", "#59636e")
_CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": _GREY, "gridOpacity": 0.25, "domainColor": _GREY, "tickColor": _GREY},
    "text": {"fill": _GREY},
    "title": {"color": _GREY, "anchor": "start", "fontWeight": "normal", "fontSize": 12},
    "axisX": {"labelColor": _GREY, "titleColor": _GREY, "titleFontWeight": "normal"},
    "axisY": {"labelColor": _GREY, "titleColor": _GREY, "titleFontWeight": "normal", "labelLimit": 180},
    "legend": {"labelColor": _GREY, "titleColor": _GREY, "orient": "top", "title": None},
}
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# names of rows above them, inside of the picture: beside them they would leave a phone no room
_ABOVE: Spec = {
    "grid": True,
    "ticks": False,
    "domain": False,
    "zindex": 1,
    "labelLimit": 340,
    "labelAlign": "left",
    "labelPadding": -2,
    "labelOffset": -20,
}
_SVG_STYLE = f"text{{fill:{_GREY}}}@media(prefers-color-scheme:dark){{text{{fill:#9198a1}}}}"


def missing() -> str | None:
    """What is to be installed for pictures and the page; None where nothing is."""
    if importlib.util.find_spec("vl_convert") is not None:
        return None
    return "no report.html and no pictures: vl-convert-python is not installed; pip install vl-convert-python"


@cache
def runtime() -> str:
    """The interactive runtime, JavaScript that defines `vegaEmbed`, in the version that draws SVG files too."""
    return vega.bundled("window.vegaEmbed = vegaEmbed;", _VERSION)


def svg(spec: Spec, title: str) -> str:
    """A specification drawn for a file that is seen alone, on light and dark pages."""
    import vl_convert

    drawn = str(vl_convert.vegalite_to_svg({**spec, "width": _WIDTH, "title": safe(title)}, vl_version=_VERSION))
    head, _, rest = drawn.partition(">")
    return f'{head} role="img">\n<title>{escape(safe(title))}</title><style>{_SVG_STYLE}</style>{rest}\n'


def memory(run: MemoryRun, phones: Sequence[PhoneReport]) -> Spec | None:
    """What a run held over time, kind upon kind, what cannot be dropped at the bottom; None where it was too short.

    Dashed lines end a phase. A red line is the limit of a phone, the red band below it what is not known of that limit.
    """
    line = run.time_line
    if len(line) < 2:
        return None
    end = max(line[-1].time_s, 1e-3)
    held = [
        {"s": round(one.time_s, 4), "anonymous": one.anonymous_bytes / _MB, "swapped": one.swap_bytes / _MB}
        | {"file-backed": one.file_bytes / _MB}
        for one in line
    ]
    layers = [
        {
            "data": {"values": held},
            "transform": [
                {"fold": list(_KINDS), "as": ["kind", "MB"]},
                {"calculate": f"indexof({list(_KINDS)}, datum.kind)", "as": "at"},
            ],
            "mark": {"type": "area", "opacity": 0.75},
            "encoding": {
                "x": {"field": "s", "type": "quantitative", "title": "seconds", "scale": {"domain": [0, end]}},
                "y": {"field": "MB", "type": "quantitative", "title": "MB over the baseline", "stack": "zero"},
                "color": _colours("kind", _KINDS, _KIND_COLOURS),
                "order": {"field": "at"},
                "tooltip": [tip("kind"), tip("MB", ",.1f"), tip("s", ".2f")],
            },
        },
        *_phases(run, end),
        *_limits(phones, _most(run)),
    ]
    return specification(
        240, "Memory over time", {"layer": layers, "resolve": {"scale": {"x": "shared", "y": "shared"}}}
    )


def _phases(run: MemoryRun, end: float) -> Iterable[Spec]:
    rows: Rows = []
    before = 0.0
    for phase in run.phases:
        shown = (phase.end_s - before) / end >= _NAMED_SHARE
        name = phase.phase
        rows.append({"phase": name, "from": before, "to": min(phase.end_s, end), "name": name if shown else ""})
        before = phase.end_s
    x = {"type": "quantitative"}
    yield {
        "data": {"values": rows},
        "mark": {"type": "rule", "strokeDash": [2, 3], "stroke": _GREY},
        "encoding": {"x": {"field": "to", **x}, "tooltip": [tip("phase"), tip("to", ".2f")]},
    }
    yield {
        "data": {"values": [{**row, "middle": (row["from"] + row["to"]) / 2} for row in rows]},
        "mark": {"type": "text", "baseline": "bottom", "dy": -3},
        "encoding": {"x": {"field": "middle", **x}, "y": {"value": 0}, "text": {"field": "name"}},
    }


def _limits(phones: Sequence[PhoneReport], most: float) -> Iterable[Spec]:
    rows: Rows = []
    for phone, limit, safe in limits(phones):
        if limit <= _IN_SIGHT * most:
            rows.append({"phone": phone, "limit": limit / _MB, "safe": safe / _MB})
    if not rows:
        return
    together: dict[float, list[str]] = {}
    for row in rows:
        together.setdefault(row["limit"], []).append(row["phone"])
    tips = [tip("phone"), tip("limit", ",.1f"), tip("safe", ",.1f")]
    y = {"field": "limit", "type": "quantitative"}
    yield {
        "data": {"values": rows},
        "mark": {"type": "rect", "color": _LIMIT, "opacity": 0.12},
        "encoding": {"y": y, "y2": {"field": "safe"}, "tooltip": tips},
    }
    yield {
        "data": {"values": rows},
        "mark": {"type": "rule", "stroke": _LIMIT, "strokeDash": [6, 4], "strokeWidth": 1.5},
        "encoding": {"y": y, "tooltip": tips},
    }
    yield {
        "data": {"values": [{"limit": at, "name": few(names)} for at, names in together.items()]},
        "mark": {"type": "text", "align": "right", "baseline": "top", "dx": -4, "dy": 4},
        "encoding": {"x": {"value": "width"}, "y": y, "text": {"field": "name"}},
    }


def beyond(run: MemoryRun, phones: Sequence[PhoneReport]) -> list[tuple[str, float]]:
    """The phones whose limit is above the picture, and that limit in bytes."""
    most = _most(run)
    return [(phone, limit) for phone, limit, _ in limits(phones) if limit > _IN_SIGHT * most]


def _most(run: MemoryRun) -> int:
    return max((sample.resident_bytes + sample.swap_bytes for sample in run.time_line), default=0)


def limits(phones: Sequence[PhoneReport]) -> list[tuple[str, float, float]]:
    """Phones with the limit in bytes that their memory was judged by, and what of it is certain."""
    found = []
    for phone in phones:
        limit = next((check.limit for check in phone.checks if check.name == "peak_memory"), None)
        if limit is not None:
            found.append((phone.profile, limit, min(limit, phone.safe_bytes or limit)))
    return found


def shares(targets: Sequence[TargetReport]) -> Spec | None:
    """How much of what its limit allows each check of parity and quality uses; None where nothing is limited."""
    rows: Rows = []
    for target in targets:
        for check in target.checks:
            share = used(check, check.value)
            if share is None:
                continue
            ends = sorted(filter(None, (used(check, end) for end in check.interval or ())))
            row = {"check": f"{check.group}: {check.label}", "target": target.target, "share": share}
            row |= {"low": ends[0], "high": ends[-1]} if ends else {}
            rows.append(row)
    if not rows:
        return None
    names = list(dict.fromkeys(target.target for target in targets))
    y = {"field": "check", "type": "nominal", "sort": None, "title": None}
    x = {"field": "share", "type": "quantitative", "scale": {"type": "log"}, "title": "share of the limit, log scale"}
    # the first place of each row is its name's: a point there would cover it
    side = {"field": "target", "type": "nominal", "scale": {"domain": ["", *names]}}
    colour = _colours("target", names, _COLOURS)
    sampled = [row for row in rows if "low" in row]
    interval = {
        "data": {"values": sampled},
        "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.6},
        "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "yOffset": side, "color": colour},
    }
    layers = [
        *([interval] if sampled else []),  # of no rows Vega would warn
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {
                "yOffset": side,
                "x": {**x, "axis": {"format": "~%", "labelOverlap": True}},
                "y": {**y, "axis": _ABOVE},
                "color": colour,
                "shape": {"field": "target", "type": "nominal", "scale": {"domain": names}, "title": None},
                "tooltip": [tip("target"), tip("check"), tip("share", ".2%")],
            },
        },
        {"data": {"values": [{"share": 1}]}, "mark": {"type": "rule", "stroke": _LIMIT, "strokeDash": [6, 4]}}
        | {"encoding": {"x": x}},
    ]
    height = 52 * len({row["check"] for row in rows}) + 20
    return specification(height, "Share of each limit that is used", {"data": {"values": rows}, "layer": layers})


def used(check: Check, value: float | None) -> float | None:
    """The share of its limit that a value uses, 1 at the limit; None where there is no such share to draw.

    Of what may be lost where a fraction must be kept: 99 % where 97 % are asked for uses a third.
    """
    if value is None or not check.limit:
        return None
    if check.direction == "at most":
        share = value / check.limit
    elif check.unit == "fraction" and check.limit < 1:
        share = (1 - value) / (1 - check.limit)
    else:
        return None
    return max(share, 1e-4)


def sizes(targets: Sequence[TargetReport]) -> Spec:
    """What an app ships of each target, by platform, and what its folder holds."""
    rows: Rows = []
    for target in targets:
        found = {f"app, {platform}": count for platform, count in (target.app_bytes or {}).items()}
        for what, count in {**found, "folder": target.folder_bytes}.items():
            row = {"target": target.target, "what": what, "MB": count / _MB, "size": size(count)}
            rows.append(row)
    names = list(dict.fromkeys(row["what"] for row in rows if row["what"] != "folder"))
    encoding = {
        "y": {"field": "target", "type": "nominal", "sort": None, "title": None},
        "yOffset": {"field": "what", "type": "nominal", "sort": [*names, "folder"]},
        "x": {"field": "MB", "type": "quantitative", "title": "MB"},
        "color": _colours("what", [*names, "folder"], [*_COLOURS[: len(names)], _GREY]),
        "tooltip": [tip("target"), tip("what"), tip("size")],
    }
    drawn = {"data": {"values": rows}, "mark": {"type": "bar", "opacity": 0.8}, "encoding": encoding}
    return specification(18 * len(rows) + 12, "Sizes", drawn)


def tensors(found: Sequence[TensorEvidence]) -> Spec:
    """Every quantized tensor as a bar, worst first: the noise that quantization put into its weights."""
    rows: Rows = [
        {
            "at": at,
            "tensor": one.slot,
            "error": round(weight_error(one), 6),
            "bits": f"INT{one.bits}",
        }
        for at, one in enumerate(found, 1)
    ]
    bits = sorted({row["bits"] for row in rows})
    encoding = {
        "x": {"field": "at", "type": "quantitative", "title": "tensors, worst first", "bin": "binned"}
        | {"axis": {"grid": False, "tickMinStep": 1}, "scale": {"nice": False, "domain": [0.5, len(rows) + 0.5]}},
        "x2": {"field": "end"},
        "y": {"field": "error", "type": "quantitative", "title": "error of weights", "axis": {"format": "~%"}},
        "color": _colours("bits", bits, _COLOURS),
        "tooltip": [tip("tensor"), tip("bits"), tip("error", ".2%")],
    }
    sides = [{"calculate": f"datum.at {sign} 0.45", "as": name} for sign, name in (("+", "end"), ("-", "at"))]
    drawn = {"data": {"values": rows}, "transform": sides, "mark": {"type": "bar", "opacity": 0.85}}
    return specification(160, "Error of every tensor", {**drawn, "encoding": encoding})


def weight_error(tensor: TensorEvidence) -> float:
    """|W - Ŵ| / |W|, which is what its signal-to-noise ratio says."""
    return float(10 ** (-tensor.snr_db / 20))


def latency(name: str, unit: str, found: Sequence[tuple[str, str, Check]]) -> Spec:
    """A modelled figure with its band on each phone; found: target, phone and check. A red mark is the limit."""
    rows: Rows = []
    for target, phone, check in found:
        assert check.band is not None  # the shape of a check: what is modelled carries it
        words = {"target": target, "phone": phone}
        rows.append({**words, "value": check.value, "low": check.band[0], "high": check.band[1], "limit": check.limit})
    targets = list(dict.fromkeys(row["target"] for row in rows))
    y = {"field": "phone", "type": "nominal", "sort": None, "title": None, "axis": {"grid": True}}
    place = {"y": y, "yOffset": {"field": "target", "type": "nominal", "sort": targets}}
    x = {"type": "quantitative", "title": unit, "scale": {"zero": True}}
    ends: Spec = {"x": {"field": "low", **x}, "x2": {"field": "high"}}
    tips = [tip("target"), tip("phone"), *(tip(key, ".3~r") for key in ("value", "low", "high", "limit"))]
    colour = _colours("target", targets, _COLOURS)
    layers: Rows = [
        {"mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.4}}
        | {"encoding": {**place, **ends, "color": colour, "tooltip": tips}},
        {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1}}
        | {"encoding": {**place, "x": {"field": "value", **x}, "color": colour, "tooltip": tips}},
    ]
    limited = [row for row in rows if row["limit"] is not None]
    mark = {"type": "tick", "color": _LIMIT, "thickness": 2}
    if limited:
        layers.append(
            {"data": {"values": limited}, "mark": mark}
            | {"encoding": {**place, "x": {"field": "limit", **x}, "tooltip": tips}}
        )
    height = 16 * len(rows) + 20
    return specification(height, f"Modelled {name}", {"data": {"values": rows}, "layer": layers})


def specification(height: int, description: str, drawn: Spec) -> Spec:
    """What is drawn, `height` pixels high and as wide as there is room, in the colours that all pictures share."""
    fit = {"type": "fit-x", "contains": "padding"}
    drawn = _safe_in(drawn)
    head = {"$schema": SCHEMA, "description": description, "width": "container", "height": height, "autosize": fit}
    return {**head, "config": _CONFIG, **drawn}


def safe(text: str) -> str:
    """Text in one line, without control characters and what XML forbids, at which vl-convert ends the process."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", plain(text, lines=False))


def _safe_in(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _safe_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_safe_in(item) for item in value]
    return safe(value) if isinstance(value, str) else value


def _colours(field: str, domain: Sequence[str], colours: Sequence[str]) -> Spec:
    values = list(domain)
    drawn = [colours[at % len(colours)] for at in range(len(values))]
    return {"field": field, "type": "nominal", "scale": {"domain": values, "range": drawn}, "title": None}


def tip(field: str, form: str | None = None) -> Spec:
    """What is shown of a field where one points at it; form: of a number."""
    return {"field": field, "type": "quantitative", "format": form} if form else {"field": field, "type": "nominal"}


def few(names: Sequence[str]) -> str:
    """The first three of them, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
