"""Norms of weights and of batches, folded into the weights they belong to: exactly, computed in float64.

| published | becomes |
|---|---|
| `weight_g`, `weight_v`; `parametrizations.weight.original0`, `1` | v · g / ‖v‖, over the dimensions that g has not |
| `weight_orig`, `weight_u`, `weight_v`; `parametrizations.weight.original`, `0._u`, `0._v` | w / (uᵀ W v) |
| `rbr_conv`, `rbr_scale`, `rbr_skip` of MobileOne | `reparam_conv`, their sum as one convolution |
| a batch norm behind a convolution | the convolution, with a bias |
| a batch norm behind something else | `weight` and `bias`, its factor and its bias |

Sources: torch.nn.utils.weight_norm and spectral_norm; MobileOne, https://arxiv.org/abs/2206.04040, section 3.2.
What must not live here: which batch norm stands behind which convolution (`published/` knows).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from compiler.tensors import CheckpointError

EPS = 1e-5  # PyTorch's, which is stored nowhere
State = dict[str, Tensor]
Pairs = Iterable[tuple[str, str]]
"""Patterns of the modules of batch norms, and templates of the modules of the convolutions before them; of a norm that
stands behind none, its own."""

_WEIGHT_NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
_SPECTRAL_NORMS = (
    ("weight_orig", "weight_u", "weight_v"),
    ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
)
_MEAN, _COUNTER = "running_mean", ".num_batches_tracked"


def fold(path: Path, state: State, pairs: Pairs) -> tuple[State, Counter[str]]:
    """The state dict without norms of weights and batches, in float32 where there were some; how many of each kind.

    path: for errors. Raises CheckpointError naming a tensor that a norm lacks, or that does not fit, or is not finite.
    """
    found = _Tensors(path, {name: tensor for name, tensor in state.items() if not name.endswith(_COUNTER)})
    counted = {"spectral norm": _spectral_norms(found), "weight norm": _weight_norms(found)}
    branches, blocks = _branches(found)
    counted |= {"batch norm": branches + _batch_norms(found, list(pairs)), "branched block": blocks}
    for name, tensor in found.state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {name!r} has NaN or infinite values: the checkpoint is damaged")
    return found.state, +Counter(counted)


class _Tensors:
    """A state dict from which norms are taken and to which what became of them is given."""

    def __init__(self, path: Path, state: State) -> None:
        self.path, self.state = path, state

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor in float64, which leaves the dict. shape: what it must be."""
        if name not in self.state:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing")
        tensor = self.state.pop(name).double()
        if shape is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(f"{self.path}: tensor {name!r} has shape {list(tensor.shape)}, not {list(shape)}")
        return tensor

    def give(self, name: str, tensor: Tensor) -> None:
        if name in self.state:
            raise CheckpointError(f"{self.path}: tensor {name!r} is there as a whole and in parts")
        self.state[name] = tensor.float()

    def modules(self, ending: str) -> list[str]:
        """Prefixes, with their dot, of the tensors that end so."""
        return [name.removesuffix(ending) for name in self.state if name == ending or name.endswith(f".{ending}")]


def _weight_norms(found: _Tensors) -> int:
    count = 0
    for g, v in _WEIGHT_NORMS:
        for module in found.modules(g):
            gain, direction = found.take(module + g), found.take(module + v)
            if gain.ndim not in (0, direction.ndim):
                raise CheckpointError(f"{found.path}: tensor {module + g!r} has shape {list(gain.shape)}")
            over = [at for at in range(direction.ndim) if gain.ndim == 0 or gain.shape[at] == 1]
            kept = tuple(1 if at in over else size for at, size in enumerate(direction.shape))
            if gain.ndim and tuple(gain.shape) != kept:
                raise CheckpointError(f"{found.path}: tensor {module + g!r} has shape {list(gain.shape)}")
            norm = direction.square().sum(over, keepdim=True).sqrt() if over else direction.abs()
            found.give(f"{module}weight", direction * (gain / norm))
            count += 1
    return count


def _spectral_norms(found: _Tensors) -> int:
    count = 0
    for w, u, v in _SPECTRAL_NORMS:
        for module in found.modules(w):
            weight, left = found.take(module + w), found.take(module + u)
            # of a transposed convolution, the outputs come second
            matrix = weight if weight.shape[0] == len(left) else weight.transpose(0, 1)
            matrix = matrix.flatten(1)
            if left.ndim != 1 or len(left) != len(matrix):
                raise CheckpointError(f"{found.path}: tensor {module + u!r} has shape {list(left.shape)}")
            right = found.take(module + v, (matrix.shape[1],))
            found.give(f"{module}weight", weight / (left @ (matrix @ right)))
            count += 1
    return count


def _scaled(found: _Tensors, module: str, outputs: int | None = None) -> tuple[Tensor, Tensor]:
    """A batch norm as a factor and a bias for each channel."""
    mean = found.take(f"{module}.{_MEAN}", None if outputs is None else (outputs,))
    gain, bias, variance = (found.take(f"{module}.{n}", tuple(mean.shape)) for n in ("weight", "bias", "running_var"))
    factor = gain / (variance + EPS).sqrt()
    return factor, bias - mean * factor


def _convolved(found: _Tensors, convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """A convolution and the batch norm behind it as one weight and bias."""
    weight = found.take(f"{convolution}.weight")
    factor, bias = _scaled(found, norm, len(weight))
    if f"{convolution}.bias" in found.state:
        bias = bias + factor * found.take(f"{convolution}.bias", (len(weight),))
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), bias


def _branches(found: _Tensors) -> tuple[int, int]:
    """MobileOne's blocks: k × k convolutions, one of a single place and the input itself, each with its batch norm.
    How many norms there were, and blocks."""
    blocks = dict.fromkeys(name[: at.start()] for name in found.state if (at := re.search(r"\.rbr_\w+\.", name)))
    norms = 0
    for block in blocks:
        names = [name for name in found.state if name.startswith(f"{block}.rbr_conv.") and name.endswith("conv.weight")]
        parts = [_convolved(found, n.removesuffix(".weight"), f"{n.removesuffix('conv.weight')}bn") for n in names]
        if not parts:
            raise CheckpointError(f"{found.path}: tensor {f'{block}.rbr_conv.0.conv.weight'!r} is missing")
        norms += len(parts)
        weight, bias = (sum(part[1:], start=part[0]) for part in zip(*parts, strict=True))
        middle = weight.flatten(2)[..., weight[0, 0].numel() // 2]  # a view: [out, in / groups]
        if f"{block}.rbr_scale.conv.weight" in found.state:
            scale, more = _convolved(found, f"{block}.rbr_scale.conv", f"{block}.rbr_scale.bn")
            middle += scale.flatten(1)
            bias, norms = bias + more, norms + 1
        if f"{block}.rbr_skip.{_MEAN}" in found.state:
            factor, more = _scaled(found, f"{block}.rbr_skip", len(weight))
            every = torch.arange(len(weight))
            middle[every, every % weight.shape[1]] += factor
            bias, norms = bias + more, norms + 1
        found.give(f"{block}.reparam_conv.weight", weight)
        found.give(f"{block}.reparam_conv.bias", bias)
    return norms, len(blocks)


def _batch_norms(found: _Tensors, pairs: list[tuple[str, str]]) -> int:
    modules = [module.removesuffix(".") for module in found.modules(_MEAN)]
    for module in modules:
        matches = ((re.fullmatch(pattern, module), template) for pattern, template in pairs)
        convolution = next((match.expand(template) for match, template in matches if match), None)
        if convolution is None:
            raise CheckpointError(f"{found.path}: batch norm {module!r} stands behind no convolution that is known")
        alone = convolution == module
        weight, bias = _scaled(found, module) if alone else _convolved(found, convolution, module)
        found.give(f"{convolution}.weight", weight)
        found.give(f"{convolution}.bias", bias)
    return len(modules)
