"""llama.cpp beside us: a checkpoint as bf16 GGUF, quantized by llama.cpp itself. Needs llama-cpp-python and gguf."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.tensors import row_blocks

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

_kept: list[Any] = []  # the C side holds no references


def available() -> bool:
    """Whether the optional packages are installed."""
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


def write_gguf(source: Path, out: Path) -> Path:
    """A decoder as bf16 GGUF of architecture "llama".

    Rotary frequencies are exact, as factors on llama.cpp's own; queries are not scaled by position, which changes
    nothing before the original context ends.
    """
    import gguf

    checkpoint = Checkpoint(source)
    spec = decoder.read_spec(checkpoint.config)
    slots = decoder.slots(spec, list(checkpoint.tensors.names()))
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.intermediate)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_layer_norm_rms_eps(spec.eps)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_freq_base(spec.rope["rope_theta"])
    writer.add_vocab_size(spec.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(32)
    bf16 = gguf.GGMLQuantizationType.BF16
    inverse = np.asarray(decoder.rotary_frequencies(spec)[0])
    plain = spec.rope["rope_theta"] ** (-np.arange(len(inverse)) * 2.0 / spec.head_dim)
    factors = (plain / inverse).astype(np.float32)
    writer.add_tensor_info("rope_freqs.weight", list(factors.shape), factors.dtype, factors.nbytes)
    for slot in slots:
        if slot.is_vector:
            writer.add_tensor_info(_name(slot.name), [slot.columns], np.dtype(np.float32), slot.columns * 4)
        else:
            size = slot.rows * slot.columns * 2
            shape = gguf.quant_shape_to_byte_shape([slot.rows, slot.columns], bf16)
            writer.add_tensor_info(_name(slot.name), shape, np.dtype(np.uint8), size, raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_tensor_data(factors)
    for slot in slots:
        if slot.is_vector:
            writer.write_tensor_data(checkpoint.rows(slot.tensor))
            continue
        blocks = [checkpoint.rows(slot.tensor, *block) for block in row_blocks(slot.rows, slot.columns)]
        values = (np.concatenate(blocks).view(np.uint32) >> 16).astype(np.uint16)
        heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}.get(slot.name.rsplit(".", 1)[-1])
        if heads:  # llama.cpp rotates neighbouring pairs where Hugging Face rotates halves
            pairs = values.reshape(heads, 2, spec.head_dim // 2, slot.columns)
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(slot.rows, slot.columns)
        writer.write_tensor_data(values.view(np.uint8))
    writer.close()
    return out


def _name(slot: str) -> str:
    if slot in ("model.embed_tokens", "model.norm", "lm_head"):
        return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[slot] + ".weight"
    _, _, layer, kind = slot.split(".", 3)
    return f"blk.{layer}.{_NAMES[kind]}.weight"


@functools.cache
def quiet() -> Any:
    """llama_cpp, whose C side then prints nothing; it would print every tensor."""
    import llama_cpp

    _kept.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    llama_cpp.llama_log_set(_kept[-1], None)
    return llama_cpp


def quantize_q4_0(source: Path, out: Path, *, pure: bool = False) -> Path:
    """llama.cpp's own Q4_0; `pure` keeps no tensor at more bits."""
    llama_cpp = quiet()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.nthread = 2
    parameters.pure = pure
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), parameters):
        raise RuntimeError(f"llama.cpp could not quantize {source}")
    return out


def quantized_copy(source: Path, out: Path, *, pure: bool = False) -> Path:
    """A checkpoint as Q4_0 in `out`, unless it is there already."""
    if not out.exists():
        bf16 = write_gguf(source, out.with_suffix(".bf16.gguf"))
        quantize_q4_0(bf16, out, pure=pure)
        bf16.unlink()
    return out


def runner(file: Path, window: int) -> Callable[[NDArray[np.int64]], Any]:
    """A function from token windows [n, window] to logits of all positions, float32 [n, window, vocab], as a tensor."""
    import torch

    llama_cpp = quiet()
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = window
    settings.n_threads = settings.n_threads_batch = 2
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(window, 0, 1)

    def logits(windows: NDArray[np.int64]) -> Any:
        found = torch.empty(len(windows), window, vocab)
        for row, ids in enumerate(windows):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            batch.n_tokens = window
            for at, token in enumerate(ids):
                batch.token[at], batch.pos[at], batch.logits[at] = int(token), at, 1
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            if llama_cpp.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            values = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(window, vocab))
            found[row] = torch.from_numpy(values.copy())
        return found

    logits.keep = (model, context, batch)  # type: ignore[attr-defined]  # the C side holds no references
    return logits
