"""A sweep: which variants there are, that each is what a run of its own gives, what beats what, and the one picked."""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts import EdgewrightError
from compiler import golden
from edgewright import api, sweep, sweep_command, sweep_picture, sweep_table
from edgewright.parallel.beside import Beside
from edgewright.parallel.stages import Arguments, Order
from edgewright.sweep import Choice
from edgewright.sweep_table import Row, dominates, parse_pick, picked, with_dominated
from tests.edgewright.processes import children, started, until

# of the random checkpoint any quantization is far from the original: nothing here limits quality
SWEEP = ("--bits", "4,8", "--method", "rtn,mse")


def row(name: str, divergence: float | None, size: int, **more) -> Row:
    given = {
        "variant": name,
        "bits": 4,
        "group": 32,
        "method": "rtn",
        "target": "onnx",
        "verdict": "passed",
        "manifest": "",
        "artifact": "",
        "bytes": size,
        "divergences": {} if divergence is None else {"mean_kl": divergence},
        "host_rate": 10.0,
        "host_rate_unit": "tok/s",
        "modelled": {},
    }
    return Row(**{**given, **more})


@pytest.fixture(scope="module")
def swept(workplace, tmp_path_factory):
    """A sweep of two variants, its --out, what came of it, and whose weights PyTorch looked at."""
    out = tmp_path_factory.mktemp("swept")
    passes: list[str] = []
    real = golden.vectors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "vectors", lambda *a, **k: [passes.append(type(a[3]).__name__), real(*a, **k)][1])
        recipe = api.load_recipe(workplace.recipe_file)
        found, left = sweep.variants(recipe, sweep.choices(recipe, [4, 8], [32], ["rtn"]), targets=["onnx"])
        ran = list(
            sweep.run(
                found,
                out=str(out),
                targets=["onnx"],
                profiles=[],
                checkpoint=None,
                progress=lambda *_: None,
            )
        )
    return out, ran, left, passes


def test_variants_keep_exceptions_and_leave_out_what_is_the_same_or_cannot_be(workplace):
    recipe = workplace.recipe(lambda text: text.replace('"*", bits: 4', '"*", bits: 4, method: gptq, damping: 0.05'))
    found, left = sweep.variants(recipe, sweep.choices(recipe, [4, 16], [32, 96, 1024], ["rtn", "gptq"]))
    assert [item.choice.name for item in found] == ["int4-g32-gptq", "half"]
    first, last = found[0].recipe.quantize.rules
    assert (first.match, first.bits) == ("model.embed_tokens", 8) and (last.bits, last.method) == (4, "gptq")
    assert found[0].recipe.name == "small-int4-g32-gptq" and last.damping == 0.05
    reasons = {item.choice.name: item.reason for item in left}
    assert "'damping' is no option of this method" in reasons["int4-g32-rtn"]
    assert "power of two" in reasons["int4-g96-gptq"] and "do not divide" in reasons["int4-g1024-gptq"]


def test_the_same_twice_is_run_once(workplace):
    recipe = workplace.recipe()
    found, left = sweep.variants(recipe, [Choice(4, 32, "rtn"), Choice(4, 32, "rtn")])
    assert [item.choice.name for item in found] == ["int4-g32-rtn"]
    assert [item.reason for item in left] == ["the same as int4-g32-rtn"]


def test_a_variant_is_what_a_run_of_its_own_gives(swept, tmp_path):
    """Same bytes, same figures but for what is timed; the unquantized model was looked at once for both."""
    _, ran, left, passes = swept
    assert left == [] and [item.error for item in ran] == ["", ""]
    assert sorted(passes) == ["OriginalWeights", "PackedWeights", "PackedWeights"]
    alone = api.run(ran[1].variant.recipe, out=tmp_path / "alone", targets=["onnx"])
    (mine,), (its,) = ran[1].report.targets, alone.targets
    assert mine.manifest == its.manifest
    timed = {"host_load", "host_time_to_first_token", "host_decode"}
    kept = [{f.name: f.value for f in t.figures if f.name not in timed} for t in (mine, its)]
    assert kept[0] == kept[1] and "mean_kl" in kept[0]


def test_a_rerun_does_nothing_again(swept, workplace, edgewright, monkeypatch):
    out, *_ = swept
    monkeypatch.setattr(Beside, "ended", lambda *_, **__: pytest.fail("validated again"))
    monkeypatch.setattr("compiler.pipeline.build", lambda *_, **__: pytest.fail("built again"))
    command = ("sweep", str(workplace.recipe_file), "--bits", "4,8", "--target", "onnx", "--out", str(out), "--json")
    code, said, _ = edgewright(*command)
    found = json.loads(said)
    assert code == 0 and [item["variant"] for item in found["variants"]] == ["int4-g32-rtn", "int8-g32-rtn"]
    assert (out / "small-sweep" / "sweep.md").is_file() and (out / "small-sweep" / "sweep-onnx.svg").is_file()
    assert json.loads((out / "small-sweep" / "sweep.json").read_text())["variants"] == found["variants"]
    code, said, _ = edgewright(*command, "--pick", "size=1GB")
    place = json.loads(said)["picked"]
    best = min(found["variants"], key=lambda item: item["divergences"]["mean_kl"])
    recipe = api.load_recipe(place)
    assert recipe.name == f"small-{best['variant']}" and recipe.quantize.rules[-1].bits == best["bits"]
    assert recipe.resolve(recipe.checkpoint.path).is_dir()
    text = (out / "small-sweep" / f"{recipe.name}.yaml").read_text()
    assert text.startswith("#") and "sweep by --pick size=1GB" in text
    (out / "small-sweep" / f"{recipe.name}.yaml").write_text("name: mine\n")
    code, _, error = edgewright(*command[:-1], "--pick", "size=1GB")
    assert code == 2 and "is there already" in error


def test_a_variant_that_fails_ends_no_other(workplace, tmp_path, edgewright, monkeypatch):
    def opened(recipe, **_):
        raise EdgewrightError(f"{recipe.name} is broken")

    monkeypatch.setattr(api, "opened", opened)
    code, said, _ = edgewright("sweep", str(workplace.recipe_file), *SWEEP, "--out", str(tmp_path), "--json")
    failed = json.loads(said)["failed"]
    assert code == 2 and [item["variant"] for item in failed] == [
        "int4-g32-rtn",
        "int4-g32-mse",
        "int8-g32-rtn",
        "int8-g32-mse",
    ]
    assert failed[0]["message"] == "small-int4-g32-rtn is broken"


def test_a_package_that_is_changed_meanwhile_ends_no_other(workplace, tmp_path, edgewright, monkeypatch):
    """The first variant's, after it was built and before it is validated in its own process."""
    real = Beside.ended

    def ended(self, order, progress):
        model = tmp_path / "small-int4-g32-rtn" / "onnx" / "model.onnx"
        if order.digest == variants[0].recipe.digest:
            model.write_bytes(model.read_bytes() + b"more")
        return real(self, order, progress)

    recipe = api.load_recipe(workplace.recipe_file)
    variants, _ = sweep.variants(recipe, sweep.choices(recipe, [4, 8], [32], ["rtn"]), targets=["onnx"])
    monkeypatch.setattr(Beside, "ended", ended)
    command = ("sweep", str(workplace.recipe_file), "--bits", "4,8", "--target", "onnx", "--out", str(tmp_path))
    code, said, _ = edgewright(*command, "--json")
    found = json.loads(said)
    assert code == 2 and [item["variant"] for item in found["failed"]] == ["int4-g32-rtn"]
    assert "model.onnx" in found["failed"][0]["message"]
    assert [(item["variant"], item["verdict"]) for item in found["variants"]] == [("int8-g32-rtn", "passed")]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.nightly)])
def test_a_signal_ends_the_validation_beside(workplace, tmp_path, number):
    process = started(tmp_path, workplace.recipe_file, "--bits", "4,8", "--target", "onnx", command="sweep")
    until(lambda: children(tmp_path), 120)
    time.sleep(1)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    until(lambda: not children(tmp_path), 30)


def test_what_is_timed_is_not_built_beside(monkeypatch):
    """The thread that builds stops at its next step, until the child says something else."""
    told: list[str] = []
    timed, over = threading.Event(), threading.Event()

    def attended(order, variables, folder, progress, started):
        progress("onnx: measuring speed", 0, 4)
        timed.set()
        over.wait(60)
        progress("onnx: measuring memory", 0, 4)
        return {"error": "none", "exit_code": 1}

    monkeypatch.setattr("edgewright.parallel.beside.attended", attended)
    with Beside() as beside:
        order = Order(version="", kind="validation", recipe="", digest="", arguments=Arguments(out=""))
        ended = beside.submit(lambda: beside.ended(order, lambda *_: None))
        assert timed.wait(60)
        building = threading.Thread(
            target=beside.building(lambda stage, *_: told.append(stage)), args=("quantizing", 0, 1)
        )
        building.start()
        building.join(0.2)
        assert told == [] and building.is_alive()
        over.set()
        building.join(60)
        assert told == ["quantizing"] and ended.result().error == "none"


def test_many_variants_are_not_run_without_a_yes(workplace, tmp_path, edgewright, monkeypatch):
    ran: list[str] = []

    def opened(recipe, **_):
        ran.append(recipe.name)
        raise EdgewrightError("none")

    monkeypatch.setattr(api, "opened", opened)
    monkeypatch.setattr("edgewright.sweep_command._MANY", 2)
    command = ("sweep", str(workplace.recipe_file), *SWEEP, "--out", str(tmp_path))
    code, _, error = edgewright(*command)
    assert (
        code == 2
        and len(ran) == 1
        and "4 variants: the first took 0 s, so the other 3 take at the most about 0 s" in error
    )
    assert "--yes" in error
    edgewright(*command, "--yes")
    assert len(ran) == 5


def test_what_is_no_worse_in_everything_and_better_in_something_dominates():
    small, large, worse = row("small", 0.2, 10), row("large", 0.1, 20), row("worse", 0.2, 20)
    assert [item.dominated_by for item in with_dominated([small, large, worse])] == [None, None, "large"]
    assert not dominates(small, small) and not dominates(small, row("none", None, 99))
    assert not dominates(large, replace(worse, target="mlx"))
    quick = replace(worse, modelled={"phone": 30.0})
    assert not dominates(replace(large, modelled={"phone": 20.0}), quick)
    assert dominates(replace(large, modelled={"phone": 30.0}), quick)


def test_the_best_within_a_limit_is_picked():
    found = [row("small", 0.2, 10), row("large", 0.1, 20), row("broken", 0.01, 5, verdict="failed")]
    assert picked(found, parse_pick("size=15B")) == "small" and picked(found, parse_pick("size=1GB")) == "large"
    assert picked(found, parse_pick("kl=0.3")) == "small" and picked(found, parse_pick("kl=0.1")) == "large"
    with pytest.raises(EdgewrightError, match="the nearest is small with 10 B"):
        picked(found, parse_pick("size=9B"))
    for wrong in ("size", "size=much", "weight=3kg", "kl="):
        with pytest.raises(EdgewrightError, match="--pick"):
            parse_pick(wrong)


def test_a_variant_is_one_line_of_the_table_and_what_beats_it_stands_below(capsys):
    found = [row("int4-g128-gptq", 0.2, 10**7), row("int8-g128-gptq", 0.1, 2 * 10**7)]
    found = with_dominated([*found, row("int4-channel-rtn", 0.2, 2 * 10**7, verdict="failed")])
    sweep_command._show(argparse.Namespace(json=False), Path("build/s-sweep"), "s", found, [], [], [], None)
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split() for line in lines if "MB" in line]
    assert [words[:2] for words in shown] == [["✓", item.variant] for item in found[:2]] + [["✗", "int4-channel-rtn"]]
    assert "dominated by int8-g128-gptq: int4-channel-rtn" in [line.strip() for line in lines]
    assert max(map(len, lines)) <= 80


def test_the_picture_names_the_variants_that_nothing_beats():
    found = with_dominated([row("small", 0.2, 10**7), row("large", 0.1, 2 * 10**7), row("worse", 0.2, 2 * 10**7)])
    drawn = sweep_picture.svg(found, "a sweep")
    words = {node.text for node in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert {"small", "large", "a sweep"} <= words and "worse" not in words
    assert sweep_picture.svg(found[:1], "one") is None


def test_what_cannot_be_swept(workplace, edgewright):
    recipe = str(workplace.recipe_file)
    for option, value, said in (
        ("--bits", "5", "must be 4, 8 or 16"),
        ("--group", "many", "a number of weights or channel"),
        ("--method", "gtpq", "did you mean"),
        ("--pick", "best", "is none of size=1.9GB"),
    ):
        code, _, error = edgewright("sweep", recipe, option, value)
        assert code == 2 and said in error
    with pytest.raises(EdgewrightError, match='matches "\\*", and there is none'):
        sweep.choices(workplace.recipe(lambda text: text.replace('"*"', '"m*"')), [4], [], [])
    assert sweep_table.rows([]) == []
