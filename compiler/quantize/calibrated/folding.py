"""Where factors of a matrix's input channels can go, found from the graph: into the norm or the matrix before it.

Dividing channel i of a value by a factor is the same as dividing what makes it, as long as every step between is
linear in that channel and nothing else looks at it: a norm's weight, a factor of a product, a part of a split, the
values of an attention, the rows of a matrix. Any other step, or another reader on the way, and the factors have no
place. All entries of a component connect its slots alike, so what holds for the captured graph holds for them.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from compiler.graph import Node, arguments, op_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Place:
    """The slot to divide, read by `node`. rows: int64 [columns of the value], of its matrix, or of its weight if it is
    a `norm`'s."""

    node: Node
    slot: str
    rows: Tensor
    norm: bool


def place_of(value: Node, ops: Collection[Node]) -> Place | None:
    """Where factors for the channels (the last dimension) of a value can go, if only `ops` read it."""
    if any(user not in ops for user in _users(value)):
        return None
    return _behind(value, torch.arange(value.meta["val"].shape[-1]))


def _behind(node: Node, channels: Tensor) -> Place | None:
    """Where factors go that divide some channels of a node's value; nothing else than the chain so far reads these."""
    name = op_name(node)
    if name == "edge::rms_norm":
        return Place(node, arguments(node)["slot"], channels, norm=True)
    if name == "edge::linear":
        return _in_rows(node, channels)
    if name == "aten::mul":
        return _behind_product(node, channels)
    if node.target is operator.getitem:
        whole = op_name(node.args[0])
        if whole == "edge::attention":
            return _behind_attention(node, channels)
        if whole in ("aten::split", "aten::split_with_sizes"):
            return _behind_split(node, channels)
    return None


def _in_rows(node: Node, channels: Tensor) -> Place | None:
    found, first = arguments(node), 0
    for slot, rows in zip(found["slots"], found["rows"], strict=True):
        if int(channels.min()) >= first and int(channels.max()) < first + rows:
            return Place(node, slot, channels - first, norm=False)
        first += rows
    return None


def _behind_product(node: Node, channels: Tensor) -> Place | None:
    for factor, other in (node.args[:2], node.args[1::-1]):
        if not isinstance(factor, torch.fx.Node) or factor is other or len(_users(factor)) > 1:
            continue
        if factor.meta["val"].shape[-1] == node.meta["val"].shape[-1]:
            found = _behind(factor, channels)
            if found is not None:
                return found
    return None


def _behind_split(node: Node, channels: Tensor) -> Place | None:
    parts, which = node.args
    whole = parts.args[0]
    along = parts.args[2] if len(parts.args) > 2 else parts.kwargs.get("dim", 0)
    if along not in (-1, whole.meta["val"].ndim - 1) or _users(whole) != [parts]:
        return None
    if sum(user.args[1] == which for user in _users(parts)) > 1:
        return None
    before = sum(part.shape[-1] for part in parts.meta["val"][:which])
    return _behind(whole, channels + before)


def _behind_attention(node: Node, channels: Tensor) -> Place | None:
    """Its output is linear in its values, of which query heads of a group read the same."""
    attention, which = node.args
    if which != 0 or _users(attention) != [node]:
        return None  # the caches hold the values too
    found = arguments(attention)
    heads, kv_heads, size = found["heads"], found["kv_heads"], found["head_dim"]
    if _users(found["qkv"]) != [attention]:
        return None
    head, inside = channels // size, channels % size
    values = (heads + kv_heads) * size
    return _behind(found["qkv"], values + head // (heads // kv_heads) * size + inside)


def _users(node: Node) -> list[Node]:
    """What reads a value; a part that is taken and not used does not."""
    return [user for user in node.users if user.users or user.target is not operator.getitem]
