"""The shapes of attention and its cache, as the kernels and the loaders share them. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 16


def in_blocks(positions: int) -> int:
    """Positions in whole blocks of keys."""
    return -(-positions // BLOCK) * BLOCK


@dataclass(frozen=True)
class Heads:
    """Geometry of grouped-query attention; `max_tokens` a multiple of BLOCK, `scale` on the scores."""

    heads: int
    kv_heads: int
    head_dim: int
    max_tokens: int
    scale: float

    @property
    def width(self) -> int:
        """Columns of queries, keys and values side by side."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def key_shape(self) -> tuple[int, ...]:
        return (self.kv_heads, self.max_tokens // BLOCK, self.head_dim, BLOCK)

    @property
    def value_shape(self) -> tuple[int, ...]:
        return (self.kv_heads, self.max_tokens, self.head_dim)
