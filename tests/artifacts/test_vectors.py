"""vectors.safetensors: what is written is what is read, inputs come from the seed alone, and damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from artifacts import EdgewrightError
from artifacts.formats import vectors
from artifacts.formats.interface import Component, Dimension, Entry, Port
from artifacts.formats.tensor_file import write_tensors

Arrays = dict[str, NDArray[Any]]

X = Port(name="x", dtype="float32", shape=(1, "tokens", 4))
IDS = Port(name="ids", dtype="int64", shape=(1, "tokens"), below=9)
AT = Port(name="at", dtype="int32", shape=(1, "tokens"), counts=True)
PIXELS = Port(name="pixels", dtype="uint8", shape=(5, 5))
Y = Port(name="y", dtype="float32", shape=(1, "tokens", 900))
BEST = Port(name="best", dtype="int32", shape=(1,))
PARTS = (
    Component(
        name="reader",
        entries=(
            Entry(
                name="read", inputs=(X, IDS, AT), outputs=(Y, BEST), dimensions={"tokens": Dimension(low=2, high=64)}
            ),
            Entry(
                name="chunk",
                inputs=(IDS, AT),
                outputs=(BEST,),
                dimensions={"tokens": Dimension(low=8, high=32, sizes=(8, 32))},
            ),
        ),
    ),
    Component(name="eye", entries=(Entry(name="look", inputs=(PIXELS,), outputs=(BEST,)),)),
)
PLAN = vectors.planned(PARTS, 7, 1e-4, 1e-2)


def outputs() -> list[Mapping[str, NDArray[Any]]]:
    random = np.random.default_rng(0)
    entries = [next(p for p in PARTS if p.name == call.component).entry(call.entry) for call in PLAN.calls]
    return [
        {
            port.name: random.standard_normal(port.sized(call.sizes)).astype(port.dtype)
            if port.dtype == "float32"
            else random.integers(0, 9, port.sized(call.sizes), port.dtype)
            for port in entry.outputs
        }
        for call, entry in zip(PLAN.calls, entries, strict=True)
    ]


def write(folder: Path, change: Callable[[Arrays, dict[str, str]], object] | None = None) -> Path:
    tensors, metadata = vectors.content(PLAN, outputs())
    if change is not None:
        change(tensors, metadata)
    path = folder / vectors.VECTORS
    write_tensors(path, tensors, metadata, 10 * vectors.MAX_BYTES)
    return path


def replan(**changes: Any) -> Callable[[Arrays, dict[str, str]], object]:
    """Change keys of the calls, which the metadata holds."""

    def change(tensors: Arrays, metadata: dict[str, str]) -> None:
        metadata["calls"] = json.dumps(json.loads(metadata["calls"]) | changes)

    return change


def recall(at: int, **changes: Any) -> Callable[[Arrays, dict[str, str]], object]:
    """Change keys of one call."""

    def change(tensors: Arrays, metadata: dict[str, str]) -> None:
        plan = json.loads(metadata["calls"])
        plan["calls"][at] |= changes
        metadata["calls"] = json.dumps(plan)

    return change


def reshaped(name: str, values: NDArray[Any]) -> Callable[[Arrays, dict[str, str]], object]:
    return lambda tensors, metadata: tensors.update({name: values})


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    found = vectors.read(path, PARTS)
    assert found.plan == PLAN and path.stat().st_size <= vectors.MAX_BYTES
    for written, read in zip(outputs(), found.outputs, strict=True):
        assert written.keys() == read.keys()
        for name, values in written.items():
            flat = values.reshape(-1)
            assert read[name].dtype == values.dtype and len(read[name]) == min(len(flat), vectors.SAMPLES)
            assert set(read[name]) <= set(flat) and read[name][0] == flat[0] and read[name][-1] == flat[-1]


def test_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    first = write(tmp_path).read_bytes()
    tensors, metadata = vectors.content(PLAN, outputs())
    write_tensors(tmp_path / "b", dict(reversed(tensors.items())), metadata, vectors.MAX_BYTES)
    assert (tmp_path / "b").read_bytes() == first


def test_sizes_differ_from_round_to_round_and_are_taken(tmp_path: Path) -> None:
    calls = [(call.component, call.entry, call.sizes) for call in PLAN.calls]
    assert calls == [
        ("reader", "read", {"tokens": 5}),
        ("reader", "chunk", {"tokens": 8}),
        ("reader", "read", {"tokens": 4}),
        ("reader", "chunk", {"tokens": 8}),
        ("eye", "look", {}),
        ("eye", "look", {}),
    ]


@pytest.mark.parametrize(
    ("edge", "most", "wanted"), [(8, 3, [3, 2]), (8, 1, [1, 1]), (300, 17, [3, 2]), (512, 17, [2, 1])]
)
def test_calls_with_tiles_take_fewer_the_larger_they_are(edge: int, most: int, wanted: list[int]) -> None:
    pixels = Port(name="pixels", dtype="float32", shape=("tiles", 3, edge, edge))
    entry = Entry(name="tile", inputs=(pixels,), outputs=(BEST,), dimensions={"tiles": Dimension(low=1, high=most)})
    plan = vectors.planned((Component(name="vision", entries=(entry,)),), 0, 1e-4, 1e-2)
    assert [call.sizes["tiles"] for call in plan.calls] == wanted


def test_inputs_are_what_the_format_says() -> None:
    found = list(vectors.inputs(PLAN, PARTS))
    again = list(vectors.inputs(PLAN, PARTS))
    for (call, arrays), (_, same) in zip(found, again, strict=True):
        ports = next(p for p in PARTS if p.name == call.component).entry(call.entry).inputs
        assert list(arrays) == [port.name for port in ports]
        for port in ports:
            assert arrays[port.name].shape == port.sized(call.sizes)
            assert arrays[port.name].dtype == np.dtype(port.dtype)
            np.testing.assert_array_equal(arrays[port.name], same[port.name])
    assert found[0][1]["ids"].min() >= 0 and max(int(a["ids"].max()) for c, a in found if "ids" in a) == 8
    # positions go on over all entries of a component, whichever counts them
    counted = np.concatenate([arrays["at"][0] for _, arrays in found if "at" in arrays])
    np.testing.assert_array_equal(counted, np.arange(5 + 8 + 4 + 8))
    expected = np.random.Generator(np.random.PCG64([7, 2, 0])).standard_normal((1, 4, 4), np.float32)
    np.testing.assert_array_equal(found[2][1]["x"], expected)
    other = list(vectors.inputs(PLAN.model_copy(update={"seed": 8}), PARTS))
    assert not np.array_equal(other[0][1]["x"], found[0][1]["x"])
    assert not np.array_equal(found[4][1]["pixels"], found[5][1]["pixels"])


CALL = {"component": "eye", "entry": "look", "sizes": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, metadata: metadata.update(calls="{"), "Expecting property name"),
        (lambda tensors, metadata: metadata.update(calls="[" * 100_000), "recursion|nested|Recursion"),
        (lambda tensors, metadata: metadata.update(calls="[]"), "Calls"),
        (lambda tensors, metadata: metadata.clear(), "Calls"),
        (replan(version=1), "version"),
        (replan(colour="red"), "colour"),
        (replan(seed=-1), "seed"),
        (replan(exact=0), "exact"),
        (replan(shipped=float("nan")), "shipped"),
        (replan(shipped=1.5), "shipped"),
        (replan(calls=[]), "calls"),
        (replan(calls=[CALL] * 1001), "calls"),
        (recall(4, component="ear"), "call 4: no component 'ear'"),
        (recall(4, entry="hear"), "call 4: eye has no entry 'hear'"),
        (recall(0, sizes={}), "call 0: sizes of nothing, expected tokens"),
        (recall(4, sizes={"tokens": 3}), "call 4: sizes of tokens, expected none"),
        (recall(0, sizes={"tokens": 1}), "call 0: tokens is 1, which reader.read does not take"),
        (recall(0, sizes={"tokens": 1 << 40}), f"call 0: tokens is {1 << 40}, which reader.read does not take"),
        (recall(1, sizes={"tokens": 9}), "call 1: tokens is 9, which reader.chunk does not take"),
        (recall(0, sizes={"tokens": 0}), "tokens"),
        (recall(2, sizes={"tokens": 2}), r"2\.y: float32 \(2048,\), expected float32 \[1800\]"),
        (replan(calls=[CALL]), "unknown tensors 0.y, 1.best, 2.best"),
        (lambda tensors, metadata: tensors.pop("4.best"), "no tensor '4.best'"),
        (lambda tensors, metadata: tensors.update({"9.z": np.zeros(1, np.float32)}), "unknown tensors 9.z"),
        (reshaped("0.y", np.zeros(2047, np.float32)), r"0\.y: float32 \(2047,\), expected float32 \[2048\]"),
        (reshaped("0.y", np.zeros((1, 2048), np.float32)), r"0\.y: float32 \(1, 2048\), expected"),
        (reshaped("4.best", np.zeros(1, np.int64)), r"4\.best: int64 \(1,\), expected int32 \[1\]"),
        (reshaped("0.y", np.full(2048, np.nan, np.float32)), r"0\.y: holds NaN or infinity"),
        (reshaped("2.y", np.full(2048, -np.inf, np.float32)), r"2\.y: holds NaN or infinity"),
        (reshaped("0.y", np.zeros(1 << 18, np.float32)), f"entry vectors take {vectors.MAX_BYTES} at most"),
    ],
)
def test_damage_is_named_with_its_place(
    tmp_path: Path, change: Callable[[Arrays, dict[str, str]], object], message: str
) -> None:
    path = write(tmp_path, change)
    with pytest.raises(EdgewrightError, match=rf"(?s)vectors\.safetensors: .*({message}).*build the artifact again"):
        vectors.read(path, PARTS)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EdgewrightError, match=r"vectors\.safetensors: cannot be read as safetensors"):
        vectors.read(path, PARTS)


def test_a_file_that_is_missing_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match=r"nowhere: cannot be read as safetensors"):
        vectors.read(tmp_path / "nowhere", PARTS)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / vectors.VECTORS
    path.write_bytes(content)
    with pytest.raises(EdgewrightError):
        vectors.read(path, PARTS)


def test_vectors_that_no_reader_would_take_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{vectors.MAX_BYTES} at most"):
        write_tensors(tmp_path / "v", {"0.y": np.zeros(1 << 18, np.float32)}, {}, vectors.MAX_BYTES)
    assert not (tmp_path / "v").exists()


def test_what_one_component_makes_for_another_is_what_that_gets() -> None:
    """An earlier output of the same name, from its first value on, cut or repeated to the port's shape."""
    size = Dimension(low=1, high=8)
    made = Port(name="rows", dtype="float32", shape=("n", 2))
    maker = Entry(name="make", inputs=(Port(name="x", dtype="float32", shape=(3,)),), outputs=(made,))
    taker = Entry(name="take", inputs=(made,), outputs=(BEST,), dimensions={"n": size})
    parts = (Component(name="a", entries=(maker,)), Component(name="b", entries=(taker,)))
    calls = tuple(vectors.Call(component="b", entry="take", sizes={"n": n}) for n in (1, 3))
    plan = vectors.Calls(seed=1, calls=calls, exact=1e-4, shipped=1e-2)
    values = np.arange(4, dtype=np.float32).reshape(2, 2)
    found = [arrays["rows"].tolist() for _, arrays in vectors.inputs(plan, parts, {"rows": values})]
    assert found == [[[0, 1]], [[0, 1], [2, 3], [0, 1]]]
    alone = [arrays["rows"] for _, arrays in vectors.inputs(plan, parts)]
    assert alone[1].shape == (3, 2) and not np.array_equal(alone[1][:2], values)
