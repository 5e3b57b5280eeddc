"""The gaussian of `tiny-avatar`: a head of points that 52 weights and a pose move, learned from a head that is defined.

The head that it learns from turns its jaw, its eyes and its neck about points that lie elsewhere for each part, and
its lips move together in ways that no sum of blendshapes has; the network's linear blendshapes and its skeleton of five
joints are fitted to positions alone. Colours, sizes and turns of the Gaussians are set, not learned.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.checkpoints.avatar_speech import AT, BLENDSHAPES
from recipes.checkpoints.avatar_training import Clock, save, schedule

POINTS, COLUMNS = 2048, 64
PARENTS = (-1, 0, 1, 1, 1)
PARTS = ("rotation", "neck", "jaw", "eye", "other eye")
_JOINTS = np.array([[0, -0.12, -0.02], [0, -0.09, -0.02], [0, -0.02, 0.0], [-0.03, 0.035, 0.07], [0.03, 0.035, 0.07]])


def rest() -> Tensor:
    """Where the points are, [points, 3], metres: an egg, most of them in front and around the mouth."""
    random = np.random.default_rng(5)
    found: list[np.ndarray] = []
    mouth = np.array([0, -0.045, 0.085])
    while len(found) < POINTS:
        at = random.standard_normal(3)
        at = at / np.linalg.norm(at) * np.array([0.075, 0.11, 0.09])
        keep = 0.3 + 0.7 * (at[2] > 0) + 3 * np.exp(-(((at - mouth) / 0.03) ** 2).sum())
        if random.uniform() < keep / 4:
            found.append(at)
    return torch.tensor(np.array(found), dtype=torch.float32)


def _bump(points: Tensor, x: float, y: float, width: float) -> Tensor:
    """1 at a place of the face's front, less around it."""
    near = ((points[:, 0] - x) ** 2 + (points[:, 1] - y) ** 2) / width**2
    return torch.exp(-near) * (points[:, 2] > 0)


def _moves(points: Tensor) -> Tensor:
    """By how much each blendshape moves each point, [52, points, 3]."""
    found = torch.zeros(len(BLENDSHAPES), len(points), 3)
    below = torch.sigmoid((-0.045 - points[:, 1]) / 0.004)
    lips = _bump(points, 0, -0.045, 0.022)

    def add(name: str, where: Tensor, x: float, y: float, z: float = 0.0) -> None:
        found[AT[name]] += where[:, None] * torch.tensor([x, y, z])

    add("jawOpen", _bump(points, 0, -0.085, 0.045) * below, 0, -0.025, -0.008)
    add("mouthClose", lips * below, 0, 0.02, 0.002)
    add("mouthClose", lips * (1 - below), 0, -0.004, 0)
    for name, z in (("mouthFunnel", 0.01), ("mouthPucker", 0.012)):
        found[AT[name], :, 0] -= 0.4 * lips * points[:, 0]
        add(name, lips, 0, 0, z)
    add("mouthRollLower", lips * below, 0, 0.004, -0.006)
    add("mouthRollUpper", lips * (1 - below), 0, -0.004, -0.006)
    add("tongueOut", _bump(points, 0, -0.05, 0.01), 0, 0, 0.015)
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        corner, half = _bump(points, sign * 0.025, -0.045, 0.014), torch.sigmoid(sign * points[:, 0] / 0.004)
        add(f"mouthSmile{side}", corner, sign * 0.006, 0.009, -0.003)
        add(f"mouthFrown{side}", corner, 0, -0.008, 0)
        add(f"mouthStretch{side}", corner, sign * 0.009, -0.002, -0.004)
        add(f"mouthDimple{side}", corner, sign * 0.004, 0, -0.005)
        add(f"mouthPress{side}", lips * half, 0, 0, -0.003)
        add(f"mouthLowerDown{side}", lips * half * below, 0, -0.008, 0)
        add(f"mouthUpperUp{side}", lips * half * (1 - below), 0, 0.007, 0)
        lid = _bump(points, sign * 0.03, 0.042, 0.012)
        add(f"eyeBlink{side}", lid, 0, -0.009, 0.002)
        add(f"eyeWide{side}", lid, 0, 0.004, 0)
        add(f"eyeSquint{side}", _bump(points, sign * 0.03, 0.024, 0.012), 0, 0.004, 0)
        brow = _bump(points, sign * 0.032, 0.06, 0.015)
        add(f"browDown{side}", brow, 0, -0.007, 0.001)
        add(f"browOuterUp{side}", brow, 0, 0.008, 0)
        add(f"cheekSquint{side}", _bump(points, sign * 0.045, 0.0, 0.02), 0, 0.005, 0.002)
        add(f"noseSneer{side}", _bump(points, sign * 0.012, -0.005, 0.01), 0, 0.004, 0)
    add("browInnerUp", _bump(points, 0, 0.06, 0.02), 0, 0.008, 0)
    add("cheekPuff", _bump(points, 0.045, -0.04, 0.02) + _bump(points, -0.045, -0.04, 0.02), 0, 0, 0.01)
    return found


class Head:
    """The head that is learned from."""

    def __init__(self) -> None:
        self.points = rest()
        self._moves = _moves(self.points)
        x, y, z = self.points.T
        above = torch.sigmoid((y + 0.085) / 0.012)  # of the neck
        jaw = torch.sigmoid((-0.045 - y) / 0.006) * torch.sigmoid((z - 0.0) / 0.015) * above
        eyes = [torch.exp(-(((x - s) ** 2 + (y - 0.035) ** 2) / 0.009**2)) * (z > 0) for s in (-0.03, 0.03)]
        skull = (above - jaw).clamp(min=0) * (1 - eyes[0] - eyes[1]).clamp(min=0)
        held = torch.stack([1 - above, skull, jaw, *(eye * above for eye in eyes)], 1)
        self._held = held / held.sum(1, keepdim=True)
        self._joints = torch.tensor(_JOINTS, dtype=torch.float32)

    def moved(self, weights: Tensor, turns: Tensor, place: Tensor) -> Tensor:
        """[poses, points, 3] of weights [poses, 52], axes times angles [poses, 5, 3] and places [poses, 3]."""
        shaped = self.points + torch.einsum("bk,kpc->bpc", weights, self._moves)
        # lips that are round and open at once come together at the corners
        round_ = (weights[:, AT["mouthPucker"]] + weights[:, AT["mouthFunnel"]]) * weights[:, AT["jawOpen"]]
        lips = _bump(self.points, 0, -0.045, 0.022)
        shaped[..., 0] = shaped[..., 0] - 0.2 * round_[:, None] * lips * self.points[:, 0]
        return skinned(shaped, self._joints.expand(len(weights), -1, -1), self._held, turns) + place[:, None]


def skinned(points: Tensor, joints: Tensor, held: Tensor, turns: Tensor) -> Tensor:
    """Linear blend skinning of [poses, points, 3] by joints [poses, 5, 3] at rest, of which each holds a share of each
    point [points, 5]."""
    skew = torch.zeros(*turns.shape, 3)
    for (row, column), at in {(2, 1): 0, (0, 2): 1, (1, 0): 2}.items():
        skew[..., row, column], skew[..., column, row] = turns[..., at], -turns[..., at]
    turn = torch.matrix_exp(skew)
    turned, moved = [turn[:, 0]], [joints[:, 0]]
    for at, parent in enumerate(PARENTS[1:], 1):
        turned.append(turned[parent] @ turn[:, at])
        moved.append((turned[parent] @ (joints[:, at] - joints[:, parent])[..., None])[..., 0] + moved[parent])
    whole, place = torch.stack(turned, 1), torch.stack(moved, 1)
    place = place - (whole @ joints[..., None])[..., 0]
    blended, shift = torch.einsum("pj,bjrc->bprc", held, whole), torch.einsum("pj,bjr->bpr", held, place)
    return (blended @ points[..., None])[..., 0] + shift


def poses(seed: int, count: int, tracks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Random weights [count, 52], of which a few are large, turns [count, 5, 3] and places [count, 3]; or `tracks`."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, 52, generator=g) * (torch.rand(count, 52, generator=g) < 0.3)
    size = torch.tensor([0.3, 0.3, 0.25, 0.3, 0.3])[:, None]
    turns = size * (2 * torch.rand(count, 5, 3, generator=g) - 1)
    place = 0.05 * (2 * torch.rand(count, 3, generator=g) - 1)
    return (weights if tracks is None else tracks), turns, place


def train(steps: int, rows: int) -> tuple[dict[str, Tensor], float]:
    """The tensors of a checkpoint, and the minutes that they took."""
    torch.manual_seed(0)
    head = Head()
    bias = (head.points + 0.005 * torch.randn(POINTS, 3)).requires_grad_()
    moves = torch.zeros(POINTS, 3, 52, requires_grad=True)
    held = torch.zeros(POINTS, 5, requires_grad=True)
    joints = (head._joints + 0.02 * torch.randn(5, 3)).requires_grad_()
    lift = torch.zeros(5, 3, 52, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [bias, moves, joints, lift], "base": 1e-3}, {"params": [held], "base": 3e-2}], betas=(0.9, 0.99)
    )
    clock = Clock("gaussian", steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * schedule(step, steps)
        weights, turns, place = poses(step, rows)
        shaped = bias + torch.einsum("bk,pck->bpc", weights, moves)
        at = joints + torch.einsum("bk,jck->bjc", weights, lift)
        found = skinned(shaped, at, held.softmax(1), turns) + place[:, None]
        loss = 1e4 * ((found - head.moved(weights, turns, place)) ** 2).mean()  # centimetres
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step(step, loss.item())
    with torch.no_grad():
        wide = torch.nn.functional.pad
        found = {
            "positions.weight": wide(moves.transpose(0, 1).reshape(3 * POINTS, 52), [0, COLUMNS - 52]),
            "positions.bias": bias.T.reshape(-1),
            "joints.weight": wide(lift.reshape(15, 52), [0, COLUMNS - 52]),
            "joints.bias": joints.reshape(-1),
            "skinning.weight": held.softmax(1),
            "attributes.weight": attributes(head.points),
        }
        return {name: tensor.contiguous() for name, tensor in found.items()}, clock.minutes


def posed(tensors: dict[str, Tensor], weights: Tensor, turns: Tensor, place: Tensor) -> Tensor:
    """[poses, points, 3] by a checkpoint's tensors."""
    t = {name: tensor.float() for name, tensor in tensors.items()}
    wide = torch.nn.functional.pad(weights, [0, COLUMNS - 52])
    points = (wide @ t["positions.weight"].T + t["positions.bias"]).reshape(-1, 3, POINTS).transpose(1, 2)
    joints = (wide @ t["joints.weight"].T + t["joints.bias"]).reshape(-1, 5, 3)
    return skinned(points, joints, t["skinning.weight"], turns) + place[:, None]


def attributes(points: Tensor) -> Tensor:
    """[11, points]: no turn, round, opaque, and the colours of a face."""
    colour = torch.tensor([[0.88, 0.67, 0.55]]).repeat(len(points), 1)
    x, y, z = points.T
    hair = (y > 0.07) | ((z < 0.0) & (y > -0.06))
    for where, rgb in (
        (hair, (0.26, 0.17, 0.13)),
        (_bump(points, 0, -0.045, 0.018) * ((y + 0.045).abs() < 0.012) > 0.4, (0.7, 0.33, 0.32)),
        (_bump(points, -0.03, 0.035, 0.01) + _bump(points, 0.03, 0.035, 0.01) > 0.4, (0.95, 0.95, 0.94)),
        (_bump(points, -0.03, 0.035, 0.005) + _bump(points, 0.03, 0.035, 0.005) > 0.5, (0.2, 0.3, 0.25)),
        (((x.abs() - 0.03).abs() < 0.014) & ((y - 0.058).abs() < 0.004) & (z > 0), (0.2, 0.13, 0.1)),
    ):
        colour[where] = torch.tensor(rgb)
    ones = torch.ones(1, len(points))
    return torch.cat([ones, torch.zeros(3, len(points)), 0.004 * ones.repeat(3, 1), 0.95 * ones, colour.T])


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    save(folder, {"model_type": "gaussian", "points": POINTS}, {"": tensors})
