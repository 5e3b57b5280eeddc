"""The decoder as Core ML sees it: token ids and the position of the first one in, logits of the last one out.

    forward(input_ids int32 [1, length], position int32 [1]) -> logits [1, 1, vocab]                    (states)
    forward(input_ids, position, caches) -> logits, caches                                             (explicit)

Positions count up from `position`, so the writes to a cache are one contiguous block. Caches are buffers that
forward changes (coremltools makes states of them) or inputs and outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.models import decoder
from compiler.slots import HALF, Schemes

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

LAST_POSITION = "last_position"


def cache_names(layers: int) -> list[str]:
    """Names of the cache tensors, layer by layer."""
    return [f"{kind}_cache_{i}" for i in range(layers) for kind in ("key", "value")]


def capture(
    spec: decoder.DecoderSpec, schemes: Schemes, max_tokens: int, *, length: int | None, stateful: bool
) -> ExportedProgram:
    """Export one function of the package; length: tokens per call, None for any up to max_tokens."""
    import torch
    from torch.export import Dim

    from compiler.dialect import edge

    body = decoder.build(spec, schemes, "hidden")
    head = decoder.head_slot(spec)
    scheme = schemes.get(head, HALF)
    names = cache_names(spec.layers)
    shape = (1, spec.kv_heads, max_tokens, spec.head_dim)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in names if stateful else ():
                # on the meta device: a long context's caches are gigabytes
                self.register_buffer(name, torch.zeros(shape, dtype=torch.float16, device="meta"))

        def forward(self, input_ids: torch.Tensor, position: torch.Tensor, *caches: torch.Tensor) -> Any:
            count = input_ids.shape[1]
            positions = (torch.arange(count, dtype=torch.int32) + position)[None]
            flat = [getattr(self, name) for name in names] if stateful else list(caches)
            hidden, new = body(input_ids, positions, list(zip(flat[0::2], flat[1::2], strict=True)))
            logits = edge.linear(
                hidden[:, -1:], [head], [spec.vocab], spec.hidden, scheme.bits, scheme.group, scheme.symmetric
            )
            written = [cache for pair in new for cache in pair]
            if not stateful:
                return logits, *written
            for old, cache in zip(flat, written, strict=True):
                old.copy_(cache)
            return logits

    count = length or min(3, max_tokens)
    ids = torch.zeros((1, count), dtype=torch.int32)
    position = torch.zeros(1, dtype=torch.int32)
    caches = () if stateful else tuple(torch.zeros(shape, device="meta") for _ in names)
    ids_dims = {1: Dim("length", min=1, max=max_tokens)} if length is None else {}
    dims: tuple[Any, ...] = (ids_dims, {}, *((tuple({} for _ in caches),) if caches else ()))
    with torch.no_grad():
        program: ExportedProgram = torch.export.export(Model(), (ids, position, *caches), dynamic_shapes=dims)
        program = program.run_decompositions({})  # functional: caches are replaced, not changed
    for node in program.graph.nodes:
        if str(node.target) == "aten.slice.Tensor" and node.args[2] == -1:
            node._rename(LAST_POSITION)
    return program
