"""llama.cpp beside us: a checkpoint as bf16 GGUF, quantized by llama.cpp itself. Needs llama-cpp-python and gguf."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compiler.checkpoint import Checkpoint, row_blocks
from compiler.models import decoder

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


def available() -> bool:
    """Whether the optional packages are installed."""
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


def write_gguf(source: Path, out: Path) -> Path:
    """A decoder as bf16 GGUF of architecture "llama" with plain rotary positions: for speed, not for quality."""
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
    for slot in slots:
        if slot.kind == "norm":
            writer.add_tensor_info(_name(slot.name), [slot.columns], np.dtype(np.float32), slot.columns * 4)
        else:
            size = slot.rows * slot.columns * 2
            shape = gguf.quant_shape_to_byte_shape([slot.rows, slot.columns], bf16)
            writer.add_tensor_info(_name(slot.name), shape, np.dtype(np.uint8), size, raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for slot in slots:
        if slot.kind == "norm":
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


def quantize_q4_0(source: Path, out: Path, *, pure: bool = False) -> Path:
    """llama.cpp's own Q4_0; `pure` keeps no tensor at more bits."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.nthread = 2
    parameters.pure = pure
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), parameters):
        raise RuntimeError(f"llama.cpp could not quantize {source}")
    return out
