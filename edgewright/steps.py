"""A run of one recipe, step by step: quantized weights, each target's package and verdict, the report.

What lives here: the order of the steps, what each takes from an earlier run, and the lock around them all. `api.run`
takes them one after another in this process; `parallel/` has processes of their own take one each, which find what
the others finished in the store. What must not: choosing what is asked for (`api.py`), and any work of the rooms.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts import (
    EdgewrightError,
    Manifest,
    Progress,
    prefixed,
    refuse_foreign,
    tentative_folder,
    user_path,
)
from compiler.checkpoint import Checkpoint, listed
from compiler.config import adapter_beside
from compiler.drivers import driver_of
from compiler.licence import licence_of, licence_warning
from compiler.plan import plan
from compiler.quantized import Quantized
from compiler.targets import target_options
from device_farm import Profile, arm64_tier
from recipes.schema import Recipe

if TYPE_CHECKING:
    from artifacts.stages import Found, Store
    from edgewright.again import Asked
    from edgewright.folder import Ledger
    from edgewright.report import Report, Reused, TargetReport
    from runtime_tests.phones import Limits

_QUANTIZED = "quantized"
_ROOM_BYTES = 512  # of path: a recipe's name, a target, and the deepest file of any package


@dataclass(frozen=True)
class Located:
    """The checkpoint's files, what to call their source, and its commit if it has one."""

    checkpoint: Checkpoint
    source: str
    revision: str | None


@dataclass(frozen=True)
class Built:
    """A run's packages before their verdicts: each with whether it is an earlier run's."""

    found: Located
    ledger: Ledger
    packages: dict[str, tuple[Manifest, tuple[Reused, ...]]]

    def enter(self, judged: TargetReport) -> None:
        """Put a package's verdict into the report."""
        _, reused = self.packages[judged.target]
        self.ledger.enter(judged.model_copy(update={"reused": (*reused, *judged.reused)}))


class Run:
    """What a run was asked for, and its steps. Nothing is written before `held`."""

    def __init__(
        self,
        whole: Recipe,
        recipe: Recipe,
        phones: Sequence[tuple[Profile, Limits]],
        *,
        out: str | Path,
        checkpoint: str | Path | None,
        validate: bool,
        fresh: bool,
        since: float = 0,
    ) -> None:
        """whole: the recipe as it was read; recipe: with the targets that were asked for; fresh, since: see `Store`.

        Raises EdgewrightError where a place cannot be used, MissingTool where the ARM64 tier is needed and not there.
        """
        from artifacts.stages import Store

        if validate and recipe.validation.arm64:
            from runtime_tests.emulated import TARGETS

            if any(target in TARGETS for target in recipe.targets):
                arm64_tier.installed()

        self.whole, self.recipe, self.phones, self.validate = whole, recipe, phones, validate
        place = user_path(out, "--out", room=_ROOM_BYTES)
        self.folder = place / recipe.name
        self.finals = {target: self.folder / target for target in recipe.targets}
        for final in self.finals.values():
            refuse_foreign(final)
        self.store: Store = Store(place, fresh=fresh, since=since)
        self._override = checkpoint

    @contextmanager
    def held(self, progress: Progress) -> Iterator[None]:
        """Be the only run of this recipe; its folder goes again if nothing comes to lie in it."""
        with (
            tentative_folder(self.folder),
            self.store.running(self.recipe.name, lambda: progress("waiting for another run", 0, 1)),
        ):
            yield
            with suppress(OSError):  # where all that came was a failure that somebody holds
                self.folder.rmdir()

    @cached_property
    def asked(self) -> Asked:
        """What an earlier run is compared with: only while the run is held."""
        from edgewright.again import Asked

        local = local_checkpoint(self.recipe, self._override)
        return Asked(self.store, self.whole, self.recipe, self.phones, self.folder, local, self.validate)

    def clear(self) -> None:
        """Remove what killed runs left."""
        from edgewright.folder import clear

        clear(self.folder, self.store.fresh)

    def everything(self, progress: Progress) -> Report:
        """All steps in this process. The report is written after each. Raises EdgewrightError and MissingTool."""
        built = self.build(progress)
        for target, (manifest, _) in built.packages.items() if self.validate else ():
            built.enter(self.judge(target, manifest, self.prefixed(progress, target)))
        return self.end(built.found, built.ledger)

    def build(self, progress: Progress) -> Built:
        """All packages, without their verdicts. Raises as `everything`."""
        from compiler import pipeline

        self.clear()
        found = self.locate(progress)
        self.asked.begin(found.checkpoint.path)
        started = time.monotonic()
        quantized = self.quantize(found, progress)
        ledger = self.ledger(found, quantized, started, reused=quantized.reused)
        keys = {target: self._key(found, quantized, target) for target in self.finals}
        missing = [target for target, key in keys.items() if self._known(key, target) is None]
        pipeline.check(self.recipe, quantized, missing)
        built = Built(found, ledger, {})
        for target, final in self.finals.items():
            built.packages[target] = self.package(found, quantized, target, self.prefixed(progress, target))
            ledger.enter_built(final, *built.packages[target])
        return built

    def end(self, found: Located, ledger: Ledger) -> Report:
        """After the last step."""
        self.store.collect()
        report = ledger.close()
        self.asked.end(found.checkpoint.path, report)
        return report

    def locate(self, progress: Progress) -> Located:
        """The checkpoint, downloaded where it is one of the Hub."""
        path, source, revision = _locate(self.recipe, self._override, self.folder, progress)
        return Located(Checkpoint(path), source, revision)

    def quantize(self, found: Located, progress: Progress) -> Quantized:
        """The weights that every package is built from."""
        from compiler import pipeline

        place = self.folder / _QUANTIZED
        return pipeline.quantize(
            self.recipe, found.checkpoint, found.source, found.revision, place, progress, self.store
        )

    def package(
        self, found: Located, quantized: Quantized, target: str, progress: Progress
    ) -> tuple[Manifest, tuple[Reused, ...]]:
        """Have a target's package in its place, and whether it is an earlier run's."""
        from edgewright import packages

        alone, final = narrowed(self.recipe, target), self.finals[target]
        key = self._key(found, quantized, target)
        known = self._known(key, target)
        if known is not None and (manifest := packages.reuse(alone, known, final, quantized)) is not None:
            return manifest, ("package",)
        (planned,) = plan(alone, found.checkpoint.config, found.checkpoint.names())
        room = planned.file_bytes + quantized.vector_bytes
        return packages.build(alone, target, key, final, quantized, found.checkpoint, room, progress), ()

    def judge(self, target: str, manifest: Manifest, progress: Progress) -> TargetReport:
        """The verdict of a package that is in its place."""
        from edgewright.judging import judge

        film = self.folder / f"{target}.mp4"
        quantized = self.folder / _QUANTIZED
        return judge(self.recipe, self.finals[target], manifest, self.phones, quantized, film, self.store, progress)

    def ledger(self, found: Located, quantized: Quantized, started: float, *, reused: bool) -> Ledger:
        """The report as it is before the first package; started: `time.monotonic()`; reused: the weights are."""
        from compiler import pipeline
        from edgewright import report as reports
        from edgewright.charts import missing
        from edgewright.folder import Ledger

        recipe = self.recipe
        head = reports.Report(
            verdict="not validated",
            created=reports.now(),
            recipe=reports.RecipeUsed(
                name=recipe.name, digest=recipe.digest, file=recipe.origin.name if recipe.origin else None
            ),
            checkpoint=reports.CheckpointUsed(source=found.source, revision=found.revision),
            host=reports.host(),
            tools=pipeline.tool_versions(recipe.targets),
            targets=(),
            reused=("quantized weights",) if reused else (),
            warnings=(*_warnings(recipe, found.checkpoint, quantized), *filter(None, [missing()])),
            seconds=0,
            folder=str(self.folder),
        )
        digests = {target: narrowed(self.whole, target).digest for target in target_options()}
        return Ledger(head, started, digests, quantized)

    def _key(self, found: Located, quantized: Quantized, target: str) -> str:
        from edgewright import packages

        return packages.key_of(narrowed(self.recipe, target), target, quantized, found.checkpoint)

    def _known(self, key: str, target: str) -> Found | None:
        from edgewright import packages

        return self.store.find(packages.STAGE, key, self.finals[target])

    def prefixed(self, progress: Progress, target: str) -> Progress:
        """Stages named by their target where there are several."""
        return progress if len(self.finals) == 1 else prefixed(progress, target)


def narrowed(recipe: Recipe, target: str) -> Recipe:
    """The recipe with one target alone, which may be one that it does not name: all that this target's package is of.

    Its digest is the same whatever else is built beside it.
    """
    options = recipe.targets.get(target) or target_options()[target]()
    return recipe.model_copy(update={"targets": {target: options}})


def local_checkpoint(recipe: Recipe, override: str | Path | None) -> Path | None:
    """The checkpoint's folder where it is one on this machine; None where a config stands for it until it is."""
    if override is not None:
        return user_path(override, "--checkpoint")
    wanted = recipe.checkpoint
    folder = None if wanted.path is None else recipe.resolve(wanted.path)
    return None if folder is None or (wanted.config is not None and not folder.exists()) else folder


def _locate(
    recipe: Recipe, override: str | Path | None, folder: Path, progress: Progress
) -> tuple[Path, str, str | None]:
    """The checkpoint's folder, what to call its source, and its commit if it has one."""
    wanted = recipe.checkpoint
    if override is not None:
        return user_path(override, "--checkpoint"), str(override), None
    if wanted.path is not None:
        path = recipe.resolve(wanted.path)
        if wanted.config is not None and not path.exists():
            raise EdgewrightError(f"checkpoint.path: {path}: no such folder; --checkpoint FOLDER gives another")
        return path, wanted.path, None
    from edgewright.hub import LOCK, fetch

    assert wanted.hub is not None  # the schema: exactly one of path and hub
    path, revision = fetch(wanted.hub, wanted.revision, folder / LOCK, progress)
    return path, wanted.hub, revision


def _warnings(recipe: Recipe, checkpoint: Checkpoint, quantized: Quantized) -> Iterator[str]:
    from edgewright.text import size

    yield from warnings_beside(checkpoint.path)
    yield from driver_of(quantized.model).warnings(quantized.model, checkpoint.path)
    parts = " and ".join(component.name for component in quantized.model.components)
    if unread := checkpoint.unread(slot.tensor for slot in quantized.model.slots):
        yield (
            f"tensors of the checkpoint are not part of the {parts} that config.json describes, and the packages are "
            f"built without them: {listed(unread)}"
        )
    if unfused := quantized.unfused:
        names = ", ".join(name.rsplit(".", 1)[-1] for name in unfused[0])
        yield (
            f"{names} of {unfused[0][0].rsplit('.', 1)[0]} have different bits or groups and stay apart, which costs "
            f"speed ({len(unfused)} such projections)"
        )
    for same, cost in quantized.doubled.items():
        yield (
            f"{' and '.join(same)} are one tensor of the checkpoint, which each component stores for itself: "
            f"{size(cost)} more"
        )
    if recipe.publish is not None:
        yield f"publish: a run publishes nothing; {recipe.publish.repo} is as it was; `edgewright publish` does"


def warnings_beside(folder: Path) -> Iterator[str]:
    """What lies beside a checkpoint's weights, or does not."""
    yield from filter(None, [licence_warning(licence_of(folder)), adapter_beside(folder)])
