"""Capturing a component: from a module of edge ops to an exported program that holds no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.models import decoder
from compiler.slots import Schemes

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Node = Any
"""A `torch.fx.Node`, whose arguments torch types as a union of everything they could be."""


def capture_decoder(
    spec: decoder.DecoderSpec,
    schemes: Schemes,
    *,
    output: decoder.Output = "all",
    length: int | None = None,
    max_tokens: int | None = None,
) -> ExportedProgram:
    """Export the decoder's graph.

    length, max_tokens: fixed prompt length and cache size; None leaves batch and length, or the cache, dynamic.
    """
    import torch
    from torch.export import Dim

    module = decoder.build(spec, schemes, output)
    batch = 1 if length is not None else 2
    seq, cache = length or 3, max_tokens or 7
    ids = torch.zeros((batch, seq), dtype=torch.int64)
    positions = torch.arange(seq).expand(batch, seq).contiguous()
    caches = decoder.empty_caches(spec, cache, batch)
    dims: dict[int, Dim] = {} if length is not None else {0: Dim("batch"), 1: Dim("seq")}
    cache_dims = {k: v for k, v in ((0, dims.get(0)), (2, None if max_tokens else Dim("cache"))) if v is not None}
    shapes = (dims, dims, [(cache_dims, cache_dims)] * spec.layers)
    with torch.no_grad():
        return torch.export.export(module, (ids, positions, caches), dynamic_shapes=shapes)
