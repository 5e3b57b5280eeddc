"""An avatar of canonical 3-D Gaussians, as LAM makes them: blendshapes and a skeleton of five joints move its points.

One component, `gaussians`. Entry `animate`: 52 weights and a pose to the position of every point; entry `attributes`:
what no frame changes, read once. Drawing them is the app's. Who the avatar is, is folded into its tensors (`edgewright
adopt`), which stand coordinate by coordinate, the x of all points first, in whole groups of 32 columns:

    positions.weight   [3 · points, 64]  by how much each of 52 blendshapes moves each coordinate; the rest zeros
    positions.bias     [3 · points]      where it is without any
    joints.weight      [3 · joints, 64], joints.bias [3 · joints]: the same of the joints, each with its x, y and z
    skinning.weight    [points, joints]  how much each joint holds each point
    attributes.weight  [11, points]      a quaternion (w x y z), three scales, opacity 0 … 1, red, green, blue 0 … 1

config.json: `points`, a multiple of 32; those that fill it up have no opacity. Joints are FLAME's: root, neck, jaw and
two eyes.

Topology: github.com/aigc3d/LAM, flame_arkit.py, `animation_forward`, and SMPL's linear blend skinning, without the
offsets of a pose, which it computes and never uses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from compiler.config import Keys
from compiler.models.audio2expression import BLENDSHAPES
from compiler.models.base import Component, Entry, Model, Port, scheme_arguments
from compiler.models.layers import linears
from compiler.slots import Schemes, Slot

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("gaussian",)
ATTRIBUTES = ("qw", "qx", "qy", "qz", "sx", "sy", "sz", "opacity", "red", "green", "blue")
COLUMNS = 64
GROUP = 32
PARENTS = (-1, 0, 1, 1, 1)  # of the joints
_EPS = 1e-8  # on every angle, as published


def read(config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int) -> Model:
    """See `Family`. Raises CheckpointError."""
    keys = Keys(config)
    points = keys.integer("points", GROUP, 1 << 22, 20032)
    if points % GROUP:
        raise keys.error("points", f"must be a multiple of {GROUP}")
    constants: dict[str, Any] = {"points": points, "blendshapes": list(BLENDSHAPES), "attributes": list(ATTRIBUTES)}
    return Model("gaussian", (_component(points),), "plain", constants, {"points": points}, config)


def _component(points: int) -> Component:
    joints = len(PARENTS)
    pose = {"expression": len(BLENDSHAPES), "rotation": 3, "neck": 3, "jaw": 3, "eyes": 6, "translation": 3}
    which = Port("which", "int64", (1, len(ATTRIBUTES)), below=len(ATTRIBUTES))
    slots = (
        Slot("positions", "positions.weight", 3 * points, COLUMNS, "linear"),
        Slot("positions.bias", "positions.bias", 1, 3 * points, "bias"),
        Slot("joints", "joints.weight", 3 * joints, COLUMNS, "linear"),
        Slot("joints.bias", "joints.bias", 1, 3 * joints, "bias"),
        Slot("skinning", "skinning.weight", points, joints, "linear"),
        Slot("attributes", "attributes.weight", len(ATTRIBUTES), points, "embedding"),
    )
    return Component(
        name="gaussians",
        slots=slots,
        entries=(
            Entry(
                "animate",
                tuple(Port(name, "float32", (1, size)) for name, size in pose.items()),
                (Port("positions", "float32", (1, points, 3)),),
            ),
            Entry("attributes", (which,), (Port("attributes", "float32", (1, len(ATTRIBUTES), points)),)),
        ),
        module=partial(_module, points, slots),
        live=partial(_live, points),
        work=partial(_work, points, slots),
    )


def _work(points: int, slots: tuple[Slot, ...]) -> dict[str, float]:
    """Of `animate`: blendshapes and joints once, skinning for each of a move's 12 numbers, and the points moved."""
    once = {slot.name: float(slot.rows * slot.columns) for slot in slots if slot.kind == "linear"}
    none = dict.fromkeys(("conv", "conv3d", "grouped", "depthwise", "normed", "activated"), 0.0)
    macs = once["positions"] + once["joints"] + 12 * once["skinning"]
    many = {"moved": 24.0 * points, "read": 0.0, "written": 15.0 * points, "kernels": 60.0, "layers": 60.0}
    return none | {"matmul": macs} | many


def _live(points: int, entry: Entry, sizes: Mapping[str, int]) -> int:
    """Matrices of 3 x 4 for all points, their product with the points, and the points; or the attributes."""
    return (12 + 9 + 3) * points if entry.name == "animate" else len(ATTRIBUTES) * points


def _module(points: int, slots: tuple[Slot, ...], entry: Entry, schemes: Schemes) -> torch.nn.Module:
    """animate: forward(expression float32 [1, 52], rotation, neck, jaw [1, 3], eyes [1, 6], translation [1, 3]) ->
    positions float32 [1, points, 3], rotations as axis times angle in radians; attributes: forward(which int64 [1, 11])
    -> float32 [1, 11, points].
    """
    import torch

    from compiler.dialect import edge

    linear, joints = linears(slots, schemes), len(PARENTS)

    class Attributes(torch.nn.Module):
        def forward(self, which: torch.Tensor) -> tuple[torch.Tensor]:
            scheme = scheme_arguments(schemes, "attributes")
            return (edge.embedding(which, "attributes", len(ATTRIBUTES), points, *scheme),)

    class Animate(torch.nn.Module):
        def forward(
            self,
            expression: torch.Tensor,
            rotation: torch.Tensor,
            neck: torch.Tensor,
            jaw: torch.Tensor,
            eyes: torch.Tensor,
            translation: torch.Tensor,
        ) -> tuple[torch.Tensor]:
            wide = torch.nn.functional.pad(expression, [0, COLUMNS - len(BLENDSHAPES)])
            places = linear(wide, "joints").reshape(joints, 3, 1)
            turns = _turns(torch.cat([rotation, neck, jaw, eyes], 1).reshape(joints, 3))
            moves = _moves(turns, places).reshape(1, joints, 12).transpose(1, 2)
            held = linear(moves, "skinning").reshape(3, 4, points)
            found = linear(wide, "positions").reshape(1, 3, points)
            moved = (held[:, :3] * found).sum([1]) + held[:, 3] + translation.reshape(3, 1)
            return (moved.transpose(0, 1).reshape(1, points, 3),)

    return Animate() if entry.name == "animate" else Attributes()


def _turns(pose: torch.Tensor) -> torch.Tensor:
    """Rotations [joints, 3, 3] of axes times angles [joints, 3], by Rodrigues' formula."""
    import torch

    around = pose + _EPS
    angle = torch.sqrt((around * around).sum([1], keepdim=True))
    x, y, z = (pose / angle).split(1, 1)
    sin, rest = torch.sin(angle), 1 - torch.cos(angle)
    rows = [
        *(1 - rest * (y * y + z * z), rest * x * y - sin * z, rest * x * z + sin * y),
        *(rest * x * y + sin * z, 1 - rest * (x * x + z * z), rest * y * z - sin * x),
        *(rest * x * z - sin * y, rest * y * z + sin * x, 1 - rest * (x * x + y * y)),
    ]
    return torch.cat(rows, 1).reshape(-1, 3, 3)


def _moves(turns: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What each joint does to a point that it holds alone, [joints, 3, 4]. places: [joints, 3, 1] at rest."""
    import torch

    turned, moved = [turns[0]], [places[0]]
    for at, parent in enumerate(PARENTS[1:], 1):
        turned.append(torch.matmul(turned[parent], turns[at]))
        moved.append(torch.matmul(turned[parent], places[at] - places[parent]) + moved[parent])
    turn, move = torch.stack(turned), torch.stack(moved)
    return torch.cat([turn, move - torch.matmul(turn, places)], 2)
