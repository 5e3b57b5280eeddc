"""What every lie is told to: a Hub, a second server, and the folders of one run; and the register of lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.edgewright.hub_server import HubServer, Reply

TOKEN = "hf_thisMustStaySecret"
SHARD = "model-00001-of-00002.safetensors"
FILES = {
    "config.json": b'{"model_type": "no such type"}',
    SHARD: b"first shard" * 100,
    "model-00002-of-00002.safetensors": b"second shard" * 100,
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
}


@dataclass(frozen=True)
class Scene:
    """A Hub, a second server, and the folders of one run: `root` holds all of them, `mine` is the user's own."""

    hub: HubServer
    other: HubServer
    root: Path
    commit: str

    @property
    def mine(self) -> Path:
        return self.root / "mine"

    @property
    def cache(self) -> Path:
        return self.root / "one" / "two" / "home" / "hub"

    @property
    def repository(self) -> Path:
        return self.cache / "models--acme--tiny"


Mode = Callable[[Scene], None]
MODES: dict[str, Mode] = {}


def on(kind: str, name: str, change: Callable[[Reply, Scene], object]) -> None:
    """A mode that changes every reply of this kind (info, tree, file; `any`)."""

    def mode(scene: Scene) -> None:
        def lie(reply: Reply) -> None:
            if kind in ("any", reply.kind):
                change(reply, scene)

        scene.hub.lie = lie

    assert name not in MODES
    MODES[name] = mode
