"""The ONNX target: what it refuses, how large it gets, and the package it writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts import Progress
from artifacts.formats import onnx as formats
from compiler.models.base import Component
from compiler.slots import HALF, Scheme, Slot
from compiler.targets.base import BuildJob, Built, Estimate, Job, copy_tokenizer, shipped_files
from compiler.targets.card import write_card
from compiler.targets.onnx import generic, ort, prepack
from compiler.targets.onnx.geometry import BLOCKS, block_size, by_row, padded_head
from compiler.targets.onnx.packaging import Packaging
from compiler.targets.packaging import packaging_of

_PACKAGE = "compiler.targets.onnx"
_PLATFORMS = ("android", "ios")


class OnnxTarget:
    """Lowers every entry to ONNX Runtime's fused kernels over memory-mapped weights."""

    rounds = True
    tools: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime", "onnxruntime-genai")
    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 2e-4,
        "shipped_mean_kl": 2e-3,
        "shipped_min_top1": 0.97,
    }
    # As shipped activations have 8 bits. On random tokens, for which it was not trained, a small decoder was seen 0.08
    # off while 119 of 120 of its answers stayed the same; what a kernel gets wrong is off by about 1.
    entry_tolerances = (2e-5, 0.2)

    def refusals(self, job: Job) -> list[str]:
        """What of a job this target cannot express, one sentence each."""
        found = []
        for component, slot in ((c, slot) for c in job.model.components for slot in c.slots):
            scheme = job.schemes.get(slot.name, HALF)
            multiplied = scheme.bits != 16 and slot.kind != "convolution" and not by_row(scheme, component, job.options)
            if multiplied and block_size(slot.columns, scheme.group) is None:
                wanted = (
                    f"groups of {scheme.group}" if scheme.group else f"{slot.columns} columns and one scale per row"
                )
                found.append(
                    f"onnx: {slot.name} has {wanted}; MatMulNBits takes groups of {', '.join(map(str, BLOCKS))}, of "
                    "which none divides them; keep it at bits: 16"
                )
        if job.options.ort:
            packaged = packaging_of(_PACKAGE, job.model) is not None
            found += ort.refusals(job, self.estimate(job), packaged)
        if job.options.prepacked:
            found += prepack.refusals(job, self.estimate(job))
        return found + _packaging(job).refusals(job)

    def estimate(self, job: Job) -> list[Estimate]:
        """Sizes in bytes; activations are those of the largest call, in float32."""
        return [self._estimate(job, component) for component in job.model.components]

    def _estimate(self, job: Job, component: Component) -> Estimate:
        weights = sum(_weight_bytes(job, component, slot) for slot in component.slots)
        rounded = job.rounded.get(component.name, frozenset())
        matrices = (s for s in component.slots if s.kind == "linear" or s.name in {component.head, *rounded})
        copied = {slot.name: _copied_bytes(job, component, slot) for slot in matrices}
        packed = sum(copied[slot.name] for slot in _in_kernels(job, component) if slot.name in copied)
        states, tables = component.state_values * 4, 0
        if component.attention is not None:
            have, head = component.attention.head_dim, padded_head(component.attention.head_dim)
            states = states // have * head * job.options.kv_bits // 32
            tables = max(state.sized({})[2] for state in component.states) * head * 4
        total, kept = weights + tables, sum(copied.values())
        if job.options.prepacked:
            total, kept = total + packed, kept - packed
        app = dict.fromkeys(_PLATFORMS, total)
        estimate = Estimate(
            component.name, total, weights, states, 0, app, kept, packed, job.options.prepacked is not None
        )
        twice = weights if job.options.ort and ort.fits(component, estimate) else 0
        live = max(component.live(entry, entry.largest()) for entry in _packaging(job).entries(job, component))
        return replace(estimate, file_bytes=total + twice, activation_bytes=live * 4)

    def check(self, job: Job) -> object:
        """Lower every graph of the package, without weights. Returns them, unless they depend on what is measured."""
        from compiler.targets.onnx.layout import lower_all

        found = lower_all(job, _packaging(job).plans(job, None))
        return None if job.options.kv_bits == 8 or job.rounded else found

    def build(self, job: BuildJob, folder: Path, progress: Progress) -> Built:
        """Write graphs, their external data, the tokenizer's files and what the model's ecosystem wants."""
        from compiler.targets.onnx.external import ExternalData
        from compiler.targets.onnx.layout import lower_all
        from compiler.targets.onnx.weights import bind, write_model
        from compiler.targets.tensors import SlotReader

        packaging = _packaging(job)
        total = sum(slot.rows * slot.columns for slot in job.model.slots if not slot.is_vector)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("writing weights", done, total)

        cache = None
        if job.options.kv_bits == 8:
            progress("measuring the cache", 0, 1)
            cache = packaging.measured(job)
            progress("measuring the cache", 1, 1)
        reader = SlotReader(job.weights, advance)
        data: dict[str, ExternalData] = {}
        graphs = []
        plans = packaging.plans(job, cache)
        for plan, lowered in zip(plans, job.checked or lower_all(job, plans), strict=True):
            if plan.data not in data:
                (folder / plan.data).parent.mkdir(exist_ok=True)
                data[plan.data] = ExternalData(folder / plan.data)
            bind(lowered.model.graph, lowered.weights, data[plan.data], reader, plan.inline)
            write_model(lowered.model, folder / plan.file)
            if lowered.record is not None:
                graphs.append(lowered.record)
        packing = None
        if job.options.prepacked:
            graphs, packing = prepack.prepack(folder, graphs, data, prepack.SAVERS[job.options.prepacked], progress)
        for file in data.values():
            file.close()
        if job.options.ort:
            pairs = zip(job.model.components, self.estimate(job), strict=True)
            graphs = ort.convert(folder, graphs, {c.name for c, estimate in pairs if ort.fits(c, estimate)})
        copy_tokenizer(job.source, folder)
        packaging.write(job, folder, graphs)
        error = None
        if cache is not None:
            error = formats.CacheError(
                scales=job.options.kv_scales,
                worst_key_snr_db=round(min(c.key_snr_db for c in cache), 2),
                worst_value_snr_db=round(min(c.value_snr_db for c in cache), 2),
            )
        sections = [*packaging.sections(job, graphs), *ort.section(graphs)]
        sections += prepack.section(graphs, packing, _smallest(job))
        write_card(
            job,
            folder,
            runtime="ONNX Runtime",
            library=packaging.LIBRARY,
            tags=["onnx"],
            sections=sections,
            about=packaging.about(job),
        )
        runtime = formats.OnnxRuntime(
            graphs=tuple(graphs),
            payload=dict.fromkeys(_PLATFORMS, tuple(shipped_files(folder, formats.ORT))),
            genai_tokenizer_options=packaging.TOKENIZER_OPTIONS,
            kv_error=error,
            packing=packing,
        )
        return Built(runtime.model_dump(mode="json"))

    def traces(self, job: BuildJob) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """None: ONNX Runtime runs the graph as it is written."""
        return iter(())


def _packaging(job: Job) -> Packaging:
    found: Packaging = packaging_of(_PACKAGE, job.model) or generic
    return found


def _weight_bytes(job: Job, component: Component, slot: Slot) -> int:
    """Of a slot in the package: values in float32, or codes, scales and zero points."""
    scheme = job.schemes.get(slot.name, HALF)
    if scheme.bits == 16:
        return slot.rows * slot.columns * 4
    if slot.name in job.rounded.get(component.name, ()):
        return scheme.packed_bytes(slot.rows, slot.columns)
    if slot.kind == "convolution":  # DequantizeLinear wants zero points of symmetric codes too
        zeros = -(-slot.rows * scheme.groups(slot.columns) * scheme.bits // 8)
        return replace(scheme, symmetric=True).packed_bytes(slot.rows, slot.columns) + zeros
    return _in_blocks(job, component, slot, scheme).packed_bytes(slot.rows, slot.columns)


def _copied_bytes(job: Job, component: Component, slot: Slot) -> int:
    """Of a matrix as MatMulNBits packs it when a graph is loaded: codes, and a float32 scale and a float32 sum for each
    block; at 16 bits float32 values."""
    scheme = job.schemes.get(slot.name, HALF)
    if scheme.bits == 16:
        return slot.rows * slot.columns * 4
    return slot.rows * (
        slot.columns * scheme.bits // 8 + 8 * _in_blocks(job, component, slot, scheme).groups(slot.columns)
    )


def _smallest(job: Job) -> int | None:
    """Bytes of the smallest matrix as a kernel packs it; None where none of MatMulNBits is there."""
    if not any(_in_kernels(job, component) for component in job.model.components):
        return None
    return min(_copied_bytes(job, c, slot) for c in job.model.components for slot in c.slots if not slot.is_vector)


def _in_kernels(job: Job, component: Component) -> list[Slot]:
    """The matrices that MatMulNBits and DynamicQuantizeMatMul multiply by."""
    return [
        slot
        for slot in component.slots
        if (slot.kind == "linear" or slot.name == component.head) and job.schemes.get(slot.name, HALF).bits != 16
    ]


def _in_blocks(job: Job, component: Component, slot: Slot, scheme: Scheme) -> Scheme:
    """The scheme with the kernel's blocks for groups."""
    if slot.kind == "linear" and by_row(scheme, component, job.options):
        return scheme
    return replace(scheme, group=block_size(slot.columns, scheme.group) or scheme.group)
