"""What is counted of models: against their published sizes, and against the graph that is captured."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.graph import capture, op_name
from compiler.models.base import Model, read_model
from compiler.quantize.rules import assign
from compiler.slots import Schemes
from compiler.work import work_of
from edgewright import api

ROOT = Path(__file__).parents[2]


def recipe_model(name: str) -> tuple[Model, Schemes]:
    recipe = api.load_recipe(name)
    assert recipe.checkpoint.config or recipe.checkpoint.path
    path = recipe.resolve(recipe.checkpoint.config or f"{recipe.checkpoint.path}/config.json")
    model = read_model(api.read_config_file(path), None, recipe.context.max_tokens, recipe.vision)
    return model, assign(recipe.quantize.rules, model.slots).schemes


def test_a_token_reads_every_weight_but_the_embedding() -> None:
    token = work_of(*recipe_model("ministral-3-3b-int4")).token
    assert token is not None
    assert sum(token.weights.values()) + token.head_weights == pytest.approx(3.429e9, rel=1e-3)
    assert token.weights.keys() == {"4g64"} and token.head_weights == 131072 * 3072
    assert (token.layers, token.width, token.cached, token.context) == (26, 26 * 4096, 2 * 26 * 1024, 4096)


def test_a_tied_head_counts_once_by_its_own_scheme() -> None:
    token = work_of(*recipe_model("quickstart")).token
    assert token is not None and token.head == "8g32" and set(token.weights) == {"4g32"}


def test_a_model_that_sees_images_says_so() -> None:
    work = work_of(*recipe_model("smolvlm2-2.2b-int4"))
    assert work.images and work.token is not None and work.stream is None


@pytest.mark.parametrize(("name", "gmac", "window"), [("feathertalk-int8", 3.16, 0.43)])
def test_an_avatar_computes_what_was_published(name: str, gmac: float, window: float) -> None:
    stream = work_of(*recipe_model(name)).stream
    assert stream is not None and (stream.frames, stream.lookahead_ms) == (5, 280)
    frame, heard = (
        sum(part[kind] for kind in ("conv", "depthwise", "grouped", "matmul")) for part in (stream.frame, stream.window)
    )
    assert frame == pytest.approx(gmac * 1e9, rel=0.01)
    assert heard == pytest.approx(2 * window * 1e9, rel=0.02)  # a window is two seconds


@pytest.mark.parametrize("name", ["feathertalk-int8", "audio2expression-int8"])
def test_products_are_those_of_the_captured_graph(name: str) -> None:
    import math

    model, schemes = recipe_model(name)
    for component in model.components:
        assert component.work is not None
        counted = component.work()
        graph = capture(component, component.entries[0], schemes).graph
        products = 0.0
        for node in graph.nodes:
            if op_name(node) in ("edge::convolution", "edge::linear"):
                places = math.prod(node.meta["val"].shape)
                rows = {slot.name: slot for slot in component.slots}
                names = [node.args[1]] if isinstance(node.args[1], str) else list(node.args[1])
                products += places * rows[names[0]].columns
        attention = sum(1 for node in graph.nodes if "scaled_dot_product" in op_name(node))
        own = sum(counted[kind] for kind in ("conv", "conv3d", "grouped", "depthwise", "matmul"))
        assert own >= products and (own == products or attention), component.name
        assert own <= 1.1 * products
