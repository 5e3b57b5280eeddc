"""Counting what a model computes, from its slots, heads and shapes: no framework, no weight, no time.

The count travels in the manifest (`artifacts/formats/work.py`), so that whoever holds a package can model its speed.
"""

from __future__ import annotations

from collections import Counter

from artifacts.formats.work import StreamWork, TokenWork, Work
from compiler.models.base import Component, Model
from compiler.slots import HALF, Scheme, Schemes


def work_of(model: Model, schemes: Schemes) -> Work:
    """Of a text decoder the work of a token, of an avatar that of a window and of a frame."""
    decoder = next((part for part in model.components if part.attention is not None), None)
    images = decoder is not None and len(model.components) > 1
    token = None if decoder is None else _token(decoder, schemes, model)
    return Work(token=token, stream=None if decoder is not None else _stream(model), images=images)


def _token(component: Component, schemes: Schemes, model: Model) -> TokenWork:
    assert component.attention is not None
    heads, layers = component.attention, len(component.states) // 2
    weights: Counter[str] = Counter()
    for slot in component.slots:
        if slot.kind == "linear" and slot.name != component.head:
            weights[_label(schemes.get(slot.name, HALF))] += slot.rows * slot.columns
    head = next(slot for slot in component.slots if slot.name == component.head)
    context = model.constants["max_tokens"]
    assert isinstance(context, int)
    return TokenWork(
        weights={name: float(count) for name, count in weights.items()},
        head=_label(schemes.get(head.name, HALF)),
        head_weights=float(head.rows * head.columns),
        layers=layers,
        width=float(layers * heads.heads * heads.head_dim),
        cached=float(2 * layers * heads.kv_heads * heads.head_dim),
        context=context,
    )


def _stream(model: Model) -> StreamWork | None:
    """None where a component did not count what it computes. The last one gives frames, the others hear: alone it
    hears where its driver cuts sound into windows, and draws where nothing does."""
    parts = model.components
    if any(part.work is None for part in parts):
        return None
    counted = [dict(part.work() if part.work else {}) for part in parts]
    audio, frames = (model.constants.get(name) for name in ("audio", "frames"))
    if not isinstance(audio, dict) or not isinstance(frames, dict):
        return StreamWork(frame=counted[-1])
    each = {
        "frames": int(str(audio["hop"])) // int(str(frames["tokens"])),
        "lookahead_ms": int(str(frames["lookahead_ms"])),
    }
    if len(parts) == 1:
        return StreamWork(window=counted[0], **each)
    return StreamWork(window=counted[0], frame=counted[-1], **each)


def _label(scheme: Scheme) -> str:
    return "16" if scheme.bits == 16 else f"{scheme.bits}g{scheme.group}"
