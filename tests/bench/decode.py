"""Decode rate of one package in a process of its own: 32 prompt tokens, then 64 greedy steps on two threads.

    python -m tests.bench.decode onnx FOLDER | llama FILE.gguf

ONNX packages are driven with IO binding over one shared past and present buffer, ours and others' alike.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, STEPS, THREADS, MAX_TOKENS = 32, 64, 2, 256


def onnx(folder: Path) -> Callable[[np.ndarray[Any, Any]], int]:
    """A function that appends tokens and returns the next one."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    inputs = [v.name for v in session.get_inputs()]
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    binding = session.io_binding()
    for name in inputs:
        if name.startswith("past"):
            shape = (1, decoder["num_key_value_heads"], MAX_TOKENS, decoder["head_size"])
            buffer = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
    done = 0

    def step(ids: np.ndarray[Any, Any]) -> int:
        nonlocal done
        total = done + len(ids)
        binding.bind_cpu_input("input_ids", ids[None])
        binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        if "position_ids" in inputs:
            binding.bind_cpu_input("position_ids", np.arange(done, total)[None])
        binding.bind_output("logits", "cpu")
        session.run_with_iobinding(binding)
        done = total
        logits = next(v for v in binding.get_outputs() if len(v.shape()) == 3)  # caches have four dimensions
        return int(logits.numpy()[0, -1].argmax())

    return step


def llama(file: Path) -> Callable[[np.ndarray[Any, Any]], int]:
    """llama.cpp with two threads, repacking weights at load as it does by default."""
    from tests.bench.llamacpp import quiet

    llama_cpp = quiet()
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
    if not model:
        raise SystemExit(f"{file}: llama.cpp does not load it")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    context_parameters = llama_cpp.llama_context_default_params()
    context_parameters.n_ctx = MAX_TOKENS
    context_parameters.n_threads = context_parameters.n_threads_batch = THREADS
    context = llama_cpp.llama_init_from_model(model, context_parameters)

    def step(ids: np.ndarray[Any, Any]) -> int:
        tokens = (llama_cpp.llama_token * len(ids))(*map(int, ids))
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("llama_decode failed")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(vocab,))
        return int(logits.argmax())

    step.keep = model  # type: ignore[attr-defined]  # the C side holds no references
    return step


def main() -> None:
    started = time.monotonic()
    step = {"onnx": onnx, "llama": llama}[sys.argv[1]](Path(sys.argv[2]))
    load = time.monotonic() - started
    token = step(np.random.default_rng(0).integers(16, 4000, PROMPT))
    times = []
    for _ in range(STEPS):
        started = time.monotonic()
        token = step(np.asarray([token], np.int64))
        times.append(time.monotonic() - started)
    print(json.dumps({"load_s": load, "tokens_per_s": 1 / float(np.median(times))}))


if __name__ == "__main__":
    main()
