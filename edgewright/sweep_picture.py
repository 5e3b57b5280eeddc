"""A sweep as a picture: divergence by bytes, the variants that nothing beats joined by a line, as SVG.

What lives here: the Vega-Lite specification; `charts.py` draws it. What must not: which variant beats which
(`sweep_table.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgewright import charts, text
from edgewright.sweep_table import DIVERGENCES, Row

_HEIGHT = 360
_GREY = "#59636e"  # for lines and words: it stands out from white and from black


def specification(found: Sequence[Row]) -> charts.Spec | None:
    """Vega-Lite of the rows of one target; None where fewer than two can be compared."""
    known = [(row, row.divergence) for row in found if row.divergence is not None]
    if len(known) < 2:
        return None
    first, _ = known[0]
    axis = next(d for d in DIVERGENCES if d.figure in first.divergences)
    values = [
        {
            "variant": row.variant,
            "size": row.bytes / 1e6,
            "divergence": divergence,
            "method": row.method,
            "bits": f"{row.bits} bits",
            "rate": row.host_rate or 0,
            "dominated": f"dominated by {row.dominated_by}" if row.dominated_by else "not dominated",
            "label": row.variant if row.dominated_by is None else "",
            "shown": 0.35 if row.dominated_by else 1.0,
            "words": text.size(row.bytes),
        }
        for row, divergence in known
    ]
    scale = {"type": "log" if all(divergence > 0 for _, divergence in known) else "linear", "zero": False}
    unit = {"change": "share"}.get(axis.unit, axis.unit)
    x = {"field": "size", "type": "quantitative", "title": "in an app, MB", "scale": {"zero": False, "nice": True}}
    y = {"field": "divergence", "type": "quantitative", "scale": scale}
    y["title"] = f"{axis.words}, {unit} (less is better)"
    rate = f"on this host, {first.host_rate_unit or 'tok/s'}"
    tips = ("variant", "words", "divergence", "rate", "dominated")
    front = {
        "transform": [{"filter": "datum.label != ''"}],
        "mark": {"type": "line", "color": _GREY, "strokeDash": [4, 3]},
        "encoding": {"x": x, "y": y, "order": {"field": "size", "type": "quantitative"}},
    }
    points = {
        "mark": {"type": "point", "filled": True},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "method", "type": "nominal", "legend": {"title": "method"}},
            "shape": {"field": "bits", "type": "nominal", "legend": {"title": "stored in"}},
            "size": {"field": "rate", "type": "quantitative", "legend": {"title": rate}},
            "opacity": {"field": "shown", "type": "quantitative", "scale": None, "legend": None},
            "tooltip": [charts.tip(name) for name in tips],
        },
    }
    names = {
        "mark": {"type": "text", "align": "left", "dx": 9, "dy": -7, "fontSize": 11},
        "encoding": {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}},
    }
    drawn = {"data": {"values": values}, "layer": [front, points, names]}
    return charts.specification(_HEIGHT, "Divergence by size", drawn)


def svg(found: Sequence[Row], title: str) -> str | None:
    """The picture of one target's rows, for light and dark pages; None where fewer than two can be compared."""
    made = specification(found)
    return None if made is None else charts.svg(made, title)
