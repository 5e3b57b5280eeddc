"""The pass pipeline: the same module gives the same code, wherever its parts lie in memory."""

from __future__ import annotations

import random
from typing import Any

from compiler.targets.tvm import triples
from compiler.targets.tvm.compilation import _pipeline


def test_symbolic_shapes_are_computed_in_one_order() -> None:
    """TVM takes them from a table hashed by addresses: lowered again and again, at ever other addresses."""
    import tvm
    from tvm import relax

    kept: list[Any] = []
    generator = random.Random(0)

    def lowered() -> str:
        kept.append([bytearray(generator.randrange(10, 5000)) for _ in range(generator.randrange(50))])
        tokens = tvm.tirx.Var("tokens", "int64")
        kept.append(tokens)
        x = relax.Var("x", relax.TensorType((tokens,), "float32"))
        builder = relax.BlockBuilder()
        with builder.function("main", [x]):
            sizes = [tokens + 1, tokens * 3, (tokens + 1) // 2, tokens * 4 + 5, tokens // 7]
            parts = [builder.emit(relax.op.zeros((size,), "float32")) for size in sizes]
            builder.emit_func_output(relax.Tuple(parts))
        module = builder.get()
        with tvm.target.Target(triples.host().target(triples.host().variants[0])):
            return str(_pipeline(["main"])(module).script())

    texts = {lowered() for _ in range(20)}
    assert len(texts) == 1
    (text,) = texts
    places = [text.index(f"H[T.int64({i})] = ") for i in range(1, 6)]
    assert places == sorted(places)
