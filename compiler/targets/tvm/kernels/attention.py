"""Attention over a cache that is written in place.

The caches are laid out for the loops that read them: keys [kv_heads, max_tokens / 16, head_dim, 16], so that a query
meets sixteen positions in one vector, and values [kv_heads, max_tokens, head_dim]. Tokens come at consecutive
positions; keys at later positions than a query's are never read, whatever they hold.
"""

from __future__ import annotations

from compiler.targets.tvm.geometry import BLOCK, Heads
from compiler.targets.tvm.isa import Isa
from compiler.targets.tvm.kernels.tir import (
    Expr,
    T,
    argument,
    bind,
    exponential,
    f32,
    local,
    prim_func,
    span,
    splat,
    store,
    total,
)

_SHARED_QUERIES = 4


def append(name: str, tokens: Expr, at: Heads) -> Expr:
    """Rotate the keys of qkv float32 [1, tokens, width] by cos, sin [1, tokens, head_dim / 2] and write keys and
    values into the caches at positions int64 [1, tokens]. Arguments: qkv, cos, sin, positions, keys, values."""
    half = at.head_dim // 2

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        qkv = argument("qkv", (1, count, at.width), "float32")
        cos = argument("cos", (1, count, half), "float32")
        sin = argument("sin", (1, count, half), "float32")
        positions = argument("positions", (1, count), "int64")
        keys = argument("keys", at.key_shape, "float32")
        values = argument("values", at.value_shape, "float32")
        with T.parallel(0, at.kv_heads) as h:
            with T.serial(0, count) as s:
                position = bind(T.cast(positions[0, s], "int32"))
                block, lane = bind(T.floordiv(position, BLOCK)), bind(T.floormod(position, BLOCK))
                k = (at.heads + h) * at.head_dim
                v = (at.heads + at.kv_heads + h) * at.head_dim
                with T.serial(0, half) as d:
                    first, second = bind(qkv[0, s, k + d]), bind(qkv[0, s, k + half + d])
                    c, n = bind(cos[0, s, d]), bind(sin[0, s, d])
                    store(keys, (h, block, d, lane), first * c - second * n)
                    store(keys, (h, block, half + d, lane), second * c + first * n)
                with T.serial(0, at.head_dim) as d:
                    store(values, (h, position, d), qkv[0, s, v + d])

    return prim_func(name, body)


def attend(name: str, tokens: Expr, at: Heads, scaled: bool, isa: Isa) -> Expr:
    """Causal attention of the queries in qkv over the caches → out float32 [1, tokens, heads * head_dim].

    Arguments: qkv, cos, sin, positions, (with `scaled`: factors float32 [max_tokens], on queries by position,) keys,
    values, out. A thread works on the queries of one token that share a key head.
    """
    half, dim = at.head_dim // 2, at.head_dim
    per_key = at.heads // at.kv_heads
    shared = next(n for n in range(_SHARED_QUERIES, 0, -1) if per_key % n == 0)
    teams = at.heads // shared
    lanes = next(n for n in (isa.float_lanes, 8, 4, 2, 1) if dim % n == 0)
    wide = 2 if dim % (2 * lanes) == 0 else 1
    every = span(0, BLOCK)
    size = at.max_tokens + dim

    def body() -> None:
        count = tokens if tokens is not None else T.int64()
        qkv = argument("qkv", (1, count, at.width), "float32")
        cos = argument("cos", (1, count, half), "float32")
        sin = argument("sin", (1, count, half), "float32")
        positions = argument("positions", (1, count), "int64")
        factors = argument("factors", (at.max_tokens,), "float32") if scaled else None
        keys = argument("keys", at.key_shape, "float32")
        values = argument("values", at.value_shape, "float32")
        out = argument("out", (1, count, at.heads * dim), "float32")

        def team(s: Expr, first: Expr) -> None:
            """Queries first : first + shared of one token; `room` holds each one's scores, then its rotated self."""
            room = T.alloc_buffer((shared, size), "float32")
            position = bind(T.cast(positions[0, s], "int32"))
            head = bind(T.floordiv(first, per_key))
            gain = T.float32(at.scale) if factors is None else factors[position] * T.float32(at.scale)
            gain = bind(gain)
            for r in range(shared):
                q = (first + r) * dim
                with T.serial(0, half) as d:
                    low, high = bind(qkv[0, s, q + d] * gain), bind(qkv[0, s, q + half + d] * gain)
                    c, n = bind(cos[0, s, d]), bind(sin[0, s, d])
                    store(room, (r, at.max_tokens + d), low * c - high * n)
                    store(room, (r, at.max_tokens + half + d), high * c + low * n)
            peaks = [local(BLOCK) for _ in range(shared)]
            for peak in peaks:
                store(peak, (every,), f32(-3.0e38, BLOCK))
            blocks = bind(T.floordiv(position, BLOCK) + 1)
            with T.serial(0, blocks) as b:
                scores = [local(BLOCK) for _ in range(shared)]
                for score in scores:
                    store(score, (every,), f32(0.0, BLOCK))
                with T.serial(0, dim) as d:
                    key = bind(keys[head, b, d, every])
                    for r, score in enumerate(scores):
                        query = splat(room[r, at.max_tokens + d], BLOCK)
                        store(score, (every,), score[every] + query * key)
                seen = T.ramp(b * BLOCK, 1, BLOCK) <= splat(position, BLOCK)
                for r, score in enumerate(scores):
                    masked = bind(T.Select(seen, score[every], f32(-3.0e38, BLOCK)))
                    store(room, (r, span(b * BLOCK, BLOCK)), masked)
                    store(peaks[r], (every,), T.max(peaks[r][every], masked))
            inverses = []
            for r in range(shared):
                top = bind(total(peaks[r][every], BLOCK, T.max))
                weight = local(BLOCK)
                store(weight, (every,), f32(0.0, BLOCK))
                with T.serial(0, blocks) as b:
                    where = span(b * BLOCK, BLOCK)
                    seen = T.ramp(b * BLOCK, 1, BLOCK) <= splat(position, BLOCK)
                    e = exponential(room[r, where] - splat(top, BLOCK), BLOCK)
                    e = bind(T.Select(seen, e, f32(0.0, BLOCK)))
                    store(room, (r, where), e)
                    store(weight, (every,), weight[every] + e)
                inverses.append(bind(T.float32(1) / total(weight[every], BLOCK)))
            columns = lanes * wide
            all_lanes = span(0, lanes)
            with T.serial(0, dim // columns) as c:
                sums = [[local(lanes) for _ in range(wide)] for _ in range(shared)]
                for row in sums:
                    for cell in row:
                        store(cell, (all_lanes,), f32(0.0, lanes))
                with T.serial(0, position + 1) as t:
                    read = [bind(values[head, t, span(c * columns + w * lanes, lanes)]) for w in range(wide)]
                    for r in range(shared):
                        weight = splat(room[r, t], lanes)
                        for w in range(wide):
                            store(sums[r][w], (all_lanes,), sums[r][w][all_lanes] + weight * read[w])
                for r in range(shared):
                    for w in range(wide):
                        where = span((first + r) * dim + c * columns + w * lanes, lanes)
                        store(out, (0, s, where), sums[r][w][all_lanes] * splat(inverses[r], lanes))

        with T.parallel(0, teams * count) as task:
            # a thread takes whole runs of tasks: heads first, since later tokens have more to read
            team(T.floormod(task, count), T.cast(T.floordiv(task, count), "int32") * shared)

    return prim_func(name, body)
