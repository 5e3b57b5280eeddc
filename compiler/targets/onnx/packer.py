"""ONNX Runtime saving a graph with weights as its kernels pack them, in the process that this is called in.

On its own so that another Python can run it too: one for ARM64, emulated, which has nothing but a runtime. What must
not live here: which graphs are saved, and what becomes of the copies (`prepack.py`).

    python -m compiler.targets.onnx.packer WANTED GRAPH WEIGHTS SAVED      prints the Packing as JSON
"""

from __future__ import annotations

import sys
from pathlib import Path

from artifacts.formats.onnx import Packing, packing_here


def save(wanted: str, graph: Path, weights: Path, saved: Path) -> Packing:
    """Load a graph whose external data lies in the folder `weights` and write it packed to `saved`, its data beside it.

    wanted: the recipe's word for the processor. What is packed stays in memory: call it in a process that ends.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(saved)
    entries = {
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": f"{saved.name}.data",
        "session.model_external_initializers_file_folder_path": str(weights.resolve()),
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
    return packing_here(wanted, onnxruntime.__version__)


if __name__ == "__main__":
    print(save(sys.argv[1], *map(Path, sys.argv[2:])).model_dump_json())
