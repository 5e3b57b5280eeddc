"""The finished segments of a calibrated run: one file for each, from which a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.codes import Codes, unpack
from compiler.quantize.evidence import LayerEvidence, TensorEvidence

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix as `quantize_matrix` leaves it: uint8 [rows, columns * bits / 8], and what belongs to its rows."""

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.int8] | None
    bits: int

    def codes(self, rows: Any) -> Codes:
        """Of some rows, a slice or an array of their numbers."""
        zeros = None if self.zeros is None else self.zeros[rows]
        return Codes(unpack(self.packed[rows], self.bits), self.scales[rows], zeros)


class SegmentFile:
    """The packed matrices of one segment by slot, its folded norms by slot, and the evidence of both."""

    def __init__(self, work: Path, index: int) -> None:
        self.path = work / f"segment-{index:03d}.safetensors"

    @property
    def done(self) -> bool:
        return self.path.is_file()

    def save(
        self,
        matrices: dict[str, PackedMatrix],
        norms: dict[str, NDArray[np.float32]],
        tensors: list[TensorEvidence],
        layer: LayerEvidence | None,
    ) -> None:
        from safetensors.numpy import save_file

        arrays: Arrays = {f"{slot}.norm": norm for slot, norm in norms.items()}
        for slot, matrix in matrices.items():
            arrays |= {f"{slot}.packed": matrix.packed, f"{slot}.scales": matrix.scales}
            if matrix.zeros is not None:
                arrays[f"{slot}.zeros"] = matrix.zeros
        metadata = {
            "bits": json.dumps({slot: matrix.bits for slot, matrix in matrices.items()}),
            "norms": json.dumps(list(norms)),
            "tensors": json.dumps([e.model_dump() for e in tensors]),
            "layer": json.dumps(layer and layer.model_dump()),
        }
        partial = self.path.with_suffix(".partial")
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()} or {"empty": np.zeros(1)}, partial, metadata)
        partial.rename(self.path)

    def evidence(self) -> tuple[list[TensorEvidence], LayerEvidence | None]:
        found = self._metadata()
        layer = found["layer"]
        return [TensorEvidence.model_validate(e) for e in found["tensors"]], layer and LayerEvidence(**layer)

    def slots(self) -> list[str]:
        """The slots whose packed matrices are here."""
        return list(self._metadata()["bits"])

    def matrices(self) -> Iterator[tuple[str, PackedMatrix]]:
        """Every matrix with its slot, read one by one."""
        for slot in self.slots():
            yield slot, self.matrix(slot)

    def matrix(self, slot: str) -> PackedMatrix:
        from safetensors import safe_open

        with safe_open(self.path, "numpy") as file:
            zeros = file.get_tensor(f"{slot}.zeros") if f"{slot}.zeros" in file.keys() else None  # noqa: SIM118
            packed, scales = file.get_tensor(f"{slot}.packed"), file.get_tensor(f"{slot}.scales")
        return PackedMatrix(packed, scales, zeros, self._metadata()["bits"][slot])

    def norms(self) -> dict[str, NDArray[np.float32]]:
        """The folded norms by slot."""
        from safetensors import safe_open

        with safe_open(self.path, "numpy") as file:
            return {slot: file.get_tensor(f"{slot}.norm") for slot in self._metadata()["norms"]}

    def _metadata(self) -> dict[str, Any]:
        from safetensors import safe_open

        with safe_open(self.path, "numpy") as file:
            return {name: json.loads(text) for name, text in file.metadata().items()}
