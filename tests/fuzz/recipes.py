"""Sound recipes for a small checkpoint beside them, and the ways to damage their trees and their text."""

from __future__ import annotations

from random import Random
from typing import Any

import yaml

from tests.fuzz.mutants import mutate_bytes, mutate_tree, places

PLAIN = """\
name: small
checkpoint: {path: weights}
quantize:
  rules:
    - {match: model.embed_tokens, bits: 8, group: 64}
    - {match: "model.layers.*.mlp.*", bits: 4, group: 32, symmetric: true, method: mse, candidates: 4}
    - {match: "*", bits: 16}
context: {max_tokens: 64}
targets:
  mlx: {}
validate:
  quality: {max_perplexity_increase: 3%, min_top1_agreement: 0.9, max_mean_kl: 0.5}
  strict: false
  profiles:
    android-4gb: {peak_memory: 300MB, time_to_first_token: 4s, decode: 12 tok/s}
    phone.yaml:
"""
CALIBRATED = """\
name: small
checkpoint: {path: weights, config: weights/config.json}
quantize:
  rules:
    - {match: "*.q_proj", bits: 4, method: gptq, damping: 0.05, act_order: true, refinements: 1, correction: 1.0}
    - {match: "*.o_proj", bits: 4, method: awq, fold: false, powers: 4, candidates: 4}
    - {match: "*.down_proj", bits: 4, method: hqq, iterations: 2, norm: 0.7, beta: 10.0, growth: 1.01}
    - {match: "*", bits: 4, group: 32, method: rtn}
  calibration: {text: text.txt, tokens: 128, seed: 3}
context: {max_tokens: 48}
targets:
  onnx: {accuracy_level: 4, logits: last, kv_bits: 32, kv_scales: channel}
publish: {repo: acme/small, private: true}
"""
BUDGET = """\
name: small
checkpoint: {path: weights}
quantize:
  rules:
    - {match: "*", bits: 4, group: 32, symmetric: false, method: mlx_affine}
  calibration: {text: chat.jsonl, tokens: 64}
  budget: {size: 100kB}
context: {max_tokens: 32}
targets: {mlx: {kv_bits: 8}}
"""
EVERY_TARGET = """\
name: small
checkpoint: {hub: acme/small, revision: 0123456789012345678901234567890123456789, config: weights/config.json}
quantize: {rules: [{match: "*", bits: 4, group: 32}]}
context: {max_tokens: 64}
targets:
  onnx: {kv_bits: 8}
  coreml: {minimum: iOS18, cache: state, prompt: enumerated, prompt_lengths: [4, 16], compute_units: all}
  mlx: {mlxfn_prefill: 4}
  tvm: {triples: [aarch64-linux-android24], features: [neon], scales: float32, chunk: 16}
"""
BUILT = {"plain": PLAIN, "calibrated": CALIBRATED, "budget": BUDGET}
TEXTS = BUILT | {"every target": EVERY_TARGET}

_PATHS = [
    "~nosuchuser",
    "~nosuchuser/weights",
    "weights\x00",
    "x" * 300,
    "x/" * 3000,
    "pipe",
    "pipe.yaml",
    "pipe.txt",
    "loop.txt",
    "loop.yaml",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "weights/config.json",
    ".",
    "",
    "text.jsonl",
    "big.txt",
    "-",
    "\ud800",
]
_NUMBERS = [0, 1, 2, 3, 4, 8, 16, 17, 31, 64, -1, 2**24, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e-300, 1e300]
_OTHERS = [None, True, False, float("nan"), float("inf"), [], {}, [1], {"a": 1}, "channel", "3%", "1400MB", "9" * 5000]
_WORDS = ["*", "x", "[", "lm_head", "model.*", "rtn", "gptq", "awq", "keep", "mlx_affine", "onnx", "\x1b[31m", "null"]
NASTY: list[Any] = [*_PATHS, *_NUMBERS, *_OTHERS, *_WORDS]


def damaged(text: str, random: Random) -> bytes:
    """A recipe with its tree changed, a path exchanged, keys doubled, or its bytes damaged."""
    way = random.randrange(10)
    if way <= 4:
        return _dump(mutate_tree(yaml.safe_load(text), random, NASTY))
    if way <= 6:
        return _dump(_with_path(yaml.safe_load(text), random))
    if way == 7:
        lines = text.splitlines(keepends=True)
        lines.insert(random.randrange(len(lines)), random.choice(lines))
        return "".join(lines).encode()
    return mutate_bytes(text.encode(), random)


def _dump(tree: Any) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", errors="surrogatepass")


def _with_path(tree: Any, random: Random) -> Any:
    """A nasty path in one of the places that name a file."""
    found = [(n, k) for n, k in places(tree) if isinstance(n, dict) and k in ("path", "config", "text", "phone.yaml")]
    if not found:
        return tree
    node, key = random.choice(found)
    path = random.choice(_PATHS)
    if key == "phone.yaml":
        node[random.choice((path, path + ".yaml"))] = node.pop(key)
    else:
        node[key] = random.choice((path, path + ".txt", path + ".jsonl")) if key == "text" else path
    return tree


def neutral(text: str, random: Random) -> bytes:
    """The same recipe in another layout: comments, block style, a byte order mark, other line ends, an alias."""
    way = random.randrange(5)
    if way == 0:
        return _dump(yaml.safe_load(text))
    if way == 1:
        return b"\xef\xbb\xbf" + text.encode()
    if way == 2:
        return text.replace("\n", "  # ein Kommentar – ✓\n").encode()
    if way == 3:
        return text.replace("\n", "\r\n").encode()
    return yaml.safe_dump(yaml.safe_load(text), default_flow_style=True, indent=7).encode()
