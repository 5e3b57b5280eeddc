"""A captured graph as calibration walks through it: segments between cuts, points where matrices are quantized, and
the values that have to be kept in files there. Runs nothing, and knows the graph by its edges only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from artifacts import EdgewrightError
from compiler.graph import Captured, Node, slots_of
from compiler.quantize.calibrated.kinds import is_cheap, kind_of


@dataclass(frozen=True)
class Point:
    """Ops that read matrices and share their input: their slots are quantized together, from one Hessian.

    slots: those of `ops` that nothing before them reads. start: the place of the first op.
    """

    value: Node
    ops: tuple[Node, ...]
    slots: tuple[str, ...]
    start: int


@dataclass(frozen=True)
class Segment:
    """Nodes `start:stop` of the graph.

    cut: which of the cuts it begins at; None before the first.
    kept: values that have to be in files, or follow from those that are: where the segment starts, before each of its
    points, and where it ends.
    """

    index: int
    cut: int | None
    start: int
    stop: int
    points: tuple[Point, ...]
    kept: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True)
class Plan:
    """How some values follow from others: each node to run, in order, with the values that nobody needs after it."""

    known: tuple[Node, ...]
    steps: tuple[tuple[Node, tuple[Node, ...]], ...]
    wanted: tuple[Node, ...]


class Program:
    """A captured graph, cut.

    cuts: prefixes of slots' names. A segment begins at the first node that reads a slot of each.
    quantized: the slots that will be. Raises EdgewrightError when no slot has a prefix, or an op that reads a slot to
    quantize is not known.
    """

    def __init__(self, captured: Captured, cuts: Sequence[str], quantized: Collection[str]) -> None:
        self.captured = captured
        self.nodes = captured.nodes
        self._places = {node: at for at, node in enumerate(self.nodes)}
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for slot in slots_of(node):
                self.readers.setdefault(slot, []).append(node)
        self._check(quantized)
        self._last = self._last_places()
        cut_at = {self._cut(prefix): at for at, prefix in enumerate(cuts)}
        starts = sorted({0, *cut_at})
        stops = [*starts[1:], len(self.nodes)]
        self.segments = tuple(
            self._segment(i, cut_at.get(start), start, stop, quantized)
            for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
        )

    def _check(self, quantized: Collection[str]) -> None:
        for slot in quantized:
            if slot not in self.readers:
                raise EdgewrightError(f"calibration: no operation of the graph reads {slot}, which is to be quantized")
            for node in self.readers[slot]:
                if kind_of(node) is None:
                    raise EdgewrightError(
                        f"calibration: {node.target} reads {slot}, and nobody said what its inputs are"
                    )

    def _cut(self, prefix: str) -> int:
        for at, node in enumerate(self.nodes):
            if any(slot.startswith(prefix) for slot in slots_of(node)):
                return at
        raise EdgewrightError(f"calibration: no operation of the graph reads a slot of {prefix}, where it is to be cut")

    def _last_places(self) -> dict[Node, int]:
        """Of every value that an op with a slot depends on, the place of the last node that such an op needs it for."""
        last: dict[Node, int] = {}
        for node in reversed(self.nodes):
            if slots_of(node) or node in last:
                for source in node.all_input_nodes:
                    last.setdefault(source, self._places[node])
        return last

    def needs(self, node: Node) -> bool:
        """Whether anything that reads a slot depends on a node."""
        return node in self._last

    def segment_of(self, node: Node) -> Segment:
        return next(s for s in self.segments if s.start <= self._places[node] < s.stop)

    def _segment(self, index: int, cut: int | None, start: int, stop: int, quantized: Collection[str]) -> Segment:
        together: dict[tuple[Node, ...], list[Node]] = {}
        for node in self.nodes[start:stop]:
            if self._first_reads(node, quantized):
                kind = kind_of(node)
                key = (node.args[0], node.target) if kind is not None and kind.shares else (node,)
                together.setdefault(key, []).append(node)
        points = tuple(
            Point(
                ops[0].args[0],
                tuple(ops),
                tuple(slot for op in ops for slot in self._first_reads(op, quantized)),
                self._places[ops[0]],
            )
            for ops in together.values()
        )
        inner = [self._kept(point.start, start) for point in points]
        return Segment(index, cut, start, stop, points, (self._kept(start), *inner, self._kept(stop)))

    def _first_reads(self, node: Node, quantized: Collection[str]) -> list[str]:
        return [slot for slot in slots_of(node) if slot in quantized and self.readers[slot][0] is node]

    def _kept(self, place: int, start: int | None = None) -> tuple[Node, ...]:
        """The values to keep before the node at `place`: those still needed that do not follow cheaply from others.

        start: of the segment. A value never follows through a slot that was read before it: it may be folded there.
        """
        live = [n for n in self.nodes[:place] if self._last.get(n, 0) >= place]
        known = set(live)
        follows: dict[Node, bool] = {}

        def cheaply(node: Node) -> bool:
            if node not in follows:
                slotless = not slots_of(node) or (start is not None and self._places[node] >= start)
                follows[node] = is_cheap(node) and slotless and all(map(given, node.all_input_nodes))
            return follows[node]

        def given(node: Node) -> bool:
            return node.op == "placeholder" or node in known or cheaply(node)

        return tuple(node for node in live if not cheaply(node))

    def plan(self, known: Collection[Node], wanted: Sequence[Node]) -> Plan:
        """How `wanted` follows from `known`, the graph's inputs and its constants."""
        needed: set[Node] = set()
        left = list(wanted)
        while left:
            node = left.pop()
            if node not in known and node.op != "placeholder" and node not in needed:
                needed.add(node)
                left += node.all_input_nodes
        order = sorted(needed, key=self._places.__getitem__)
        dead: dict[Node, list[Node]] = {node: [] for node in order}
        kept = set(wanted)
        for node in reversed(order):
            for source in node.all_input_nodes:
                if source not in kept:
                    kept.add(source)
                    dead[node].append(source)
        used = [node for node in known if node in kept]
        return Plan(tuple(used), tuple((node, tuple(dead[node])) for node in order), tuple(wanted))
