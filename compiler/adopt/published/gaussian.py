"""An avatar of LAM with the FLAME head that moves it, as one state dict: the buffers of `FlameHeadSubdivided` (FLAME's
assets have a licence of their own), `betas` [1, shapes], who it is, and the Gaussians of `GaussianModel`: `xyz` [N, 3],
where they stand at rest, `rotation`, `scaling`, `opacity` and `shs`, three colours, all as they are drawn.

LAM's own tools write none such: they export .ply, .glb and .json, which are not read here. Names are those of its
modules: github.com/aigc3d/LAM, flame_arkit.py and gs_renderer.py. Who it is, is folded away here: in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.adopt.shapes import Shapes
from compiler.models.audio2expression import BLENDSHAPES
from compiler.models.gaussian import COLUMNS, GROUP, PARENTS
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

BATCH_NORMS: tuple[tuple[str, str], ...] = ()
UNUSED = ("posedirs", "v_template_up", "faces", "*lmk*")
PARTS = {"": "an avatar of Gaussians"}
REQUIRED = ("",)
CONFIG: dict[str, Any] = {}
_DRAWN = {"rotation": 4, "scaling": 3, "opacity": 1, "shs": 3}
_EXPRESSIONS = len(BLENDSHAPES)


def recognized(shapes: Shapes) -> tuple[str, dict[str, Any]] | None:
    """See `Published`."""
    return ("", {"points": shapes.size("skinning.weight")}) if "skinning.weight" in shapes else None


def transformed(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """See `Published`: who the avatar is becomes where its points and joints are, and what moves them."""
    if "xyz" not in state:
        return state
    import torch
    from torch.nn.functional import pad

    left = dict(state)

    def taken(name: str, *shape: int | None) -> Tensor:
        """A tensor in float64 that has these sizes, any where there is None."""
        tensor = left.pop(name, None)
        if tensor is None:
            raise CheckpointError(f"{path}: tensor {name!r} is missing")
        if tensor.ndim != len(shape) or any(n not in (None, size) for n, size in zip(shape, tensor.shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(f"{path}: tensor {name!r} has shape {list(tensor.shape)}, not [{wanted}]")
        return tensor.double()

    if taken("parents", len(PARENTS)).tolist() != list(PARENTS):
        raise CheckpointError(f"{path}: tensor 'parents' is not {list(PARENTS)}, FLAME's root, neck, jaw and eyes")
    betas, xyz = taken("betas", 1, None)[0], taken("xyz", None, 3)
    count, shapes = len(xyz), len(betas)
    template = taken("v_template", None, 3)
    directions = taken("shapedirs", len(template), 3, shapes + _EXPRESSIONS)
    lifted = taken("shapedirs_up", count, 3, shapes + _EXPRESSIONS)[..., shapes:]
    regressor = taken("J_regressor", len(PARENTS), len(template))
    held = taken("lbs_weights_up", count, len(PARENTS))
    joints = regressor @ (template + directions[..., :shapes] @ betas)
    moved = torch.einsum("jv,vkl->jkl", regressor, directions[..., shapes:])
    drawn = torch.cat([taken(name, count, size) for name, size in _DRAWN.items()], 1)
    more = -count % GROUP  # points without opacity, in the middle, held by the root

    def wide(matrix: Tensor) -> Tensor:
        return pad(matrix.reshape(-1, _EXPRESSIONS), [0, COLUMNS - _EXPRESSIONS])

    found = {
        "positions.weight": wide(pad(lifted, [0, 0, 0, 0, 0, more]).transpose(0, 1)),
        "positions.bias": pad(xyz, [0, 0, 0, more]).T.reshape(-1),
        "joints.weight": wide(moved),
        "joints.bias": joints.reshape(-1),
        "skinning.weight": pad(held, [0, 0, 0, more]),
        "attributes.weight": pad(drawn, [0, 0, 0, more]).T,
    }
    found["skinning.weight"][count:, 0] = 1
    return {**left, **{name: tensor.float().contiguous() for name, tensor in found.items()}}
