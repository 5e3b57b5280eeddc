"""The table of a decoder that is entered by embeddings, as a component of its own. Knows no family."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from compiler.models.base import Component, Entry, Port, scheme_arguments
from compiler.models.decoder_spec import DecoderSpec
from compiler.slots import Schemes, Slot

if TYPE_CHECKING:
    import torch


def component(spec: DecoderSpec, max_tokens: int, prefix: str, tensors: str) -> Component:
    """Entry embed: token ids to embeddings. prefix: of its slot's name; tensors: of its tensor's."""
    ids = Port("input_ids", "int64", ("batch", "tokens"), below=spec.vocab)
    embeddings = Port("embeddings", "float32", ("batch", "tokens", spec.hidden))
    sizes = {"batch": (1, 1), "tokens": (1, max_tokens)}
    table = Slot(f"{prefix}embed_tokens", f"{tensors}embed_tokens.weight", spec.vocab, spec.hidden, "embedding")
    return Component(
        name="embed",
        slots=(table,),
        entries=(Entry("embed", (ids,), (embeddings,), sizes),),
        module=partial(_module, table),
        live=partial(_live, spec),
    )


def _live(spec: DecoderSpec, entry: Entry, sizes: Mapping[str, int]) -> int:
    return sizes["batch"] * sizes["tokens"] * spec.hidden


def _module(table: Slot, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    """forward(input_ids int64 [batch, tokens]) -> embeddings float32 [batch, tokens, hidden]."""
    import torch

    from compiler.dialect import edge

    scheme = scheme_arguments(schemes, table.name)

    class Embed(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
            return (edge.embedding(input_ids, table.name, table.rows, table.columns, *scheme),)

    return Embed()
