"""What the command line does, as functions: `run`, `plan` and `validate`.

What lives here: the order of things, and the one place where recipes, compiler, runtime tests and phones meet. It
discovers the targets and quantization methods, composes the recipe schema from their options, and gives each room
its part. What must not: how anything is shown, and any work of the rooms themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import (
    EdgewrightError,
    Manifest,
    Progress,
    read_manifest,
    refuse_foreign,
    silent,
    temporary_place,
    tentative_folder,
    user_path,
)
from artifacts.documents import DocumentError, read_json
from artifacts.formats.frames import pace
from compiler.checkpoint import Checkpoint, listed
from compiler.config import adapter_beside, read_config
from compiler.drivers import driver_of
from compiler.licence import licence_in, licence_of, licence_warning
from compiler.models.base import read_model
from compiler.plan import TargetPlan, check_files
from compiler.plan import plan as plan_targets
from compiler.quantize.methods import method_options
from compiler.quantized import Quantized
from compiler.targets import target_options
from device_farm import Profile, list_profiles, load_profile
from recipes.errors import nearest
from recipes.schema import Recipe, recipe_model

if TYPE_CHECKING:
    from artifacts.stages import Store
    from edgewright.fit import PlanFit
    from edgewright.report import Report, Reused, TargetReport
    from runtime_tests.validate import Limits

DEFAULT_OUT = "build"
ALL_PROFILES = "all"
_QUANTIZED = "quantized"
_ROOM_BYTES = 512  # of path: a recipe's name, a target, and the deepest file of any package


@cache
def recipe_type() -> type[Recipe]:
    """The full recipe schema, with the options of every target and quantization method and the known phones."""
    return recipe_model(target_options(), method_options(), list_profiles())


def run(
    recipe: Recipe | str | Path,
    *,
    out: str | Path = DEFAULT_OUT,
    targets: Sequence[str] = (),
    profiles: Sequence[str] = (),
    checkpoint: str | Path | None = None,
    validate: bool = True,
    fresh: bool = False,
    progress: Progress = silent,
) -> Report:
    """Build and validate everything that a recipe asks for, below `<out>/<recipe name>/`, and write the report there.

    `recipe` is a recipe, a path to one or the name of one that ships. `targets` and `profiles` replace the recipe's;
    a profile that the recipe does not name is judged by the phone's own limits. `checkpoint` is a folder to use instead
    of the recipe's checkpoint. Without `validate` nothing is run. What an earlier run below `out` finished is used as
    it is where nothing changed that it depends on (`Report.reused`, `TargetReport.reused`), unless `fresh`. A gate that
    fails is no exception: see `Report.verdict`.

    Raises:
        RecipeError, EdgewrightError: bad input, or a place that cannot be written. MissingTool: a runtime that is not
            installed. Both carry `exit_code`.
    """
    from artifacts.stages import Store
    from edgewright.again import Asked
    from edgewright.folder import clear

    temporary_place()  # asked for when frameworks are imported (by dill, where it is installed), in their own words
    whole = load_recipe(recipe)
    recipe = _with_targets(whole, targets)
    phones = _phones(recipe, profiles)
    place = user_path(out, "--out", room=_ROOM_BYTES)
    folder = place / recipe.name
    finals = {target: folder / target for target in recipe.targets}
    for final in finals.values():
        refuse_foreign(final)
    store = Store(place, fresh=fresh)
    with tentative_folder(folder), store.running(recipe.name, lambda: progress("waiting for another run", 0, 1)):
        asked = Asked(store, whole, recipe, phones, folder, _local(recipe, checkpoint), validate)
        found = asked.unchanged()
        if found is not None:
            return found
        clear(folder, fresh)
        path, source, revision = _locate(recipe, checkpoint, folder, progress)
        asked.begin(path)
        found = _run(whole, recipe, phones, Checkpoint(path), source, revision, finals, validate, store, progress)
        store.collect()
        asked.end(path, found)
        return found


def _run(
    whole: Recipe,
    recipe: Recipe,
    phones: Sequence[tuple[Profile, Limits]],
    checkpoint: Checkpoint,
    source: str,
    revision: str | None,
    finals: Mapping[str, Path],
    validate: bool,
    store: Store,
    progress: Progress,
) -> Report:
    """Stage by stage, each as an earlier run left it if nothing changed that it depends on."""
    from compiler import pipeline
    from edgewright import packages
    from edgewright import report as reports
    from edgewright.folder import Ledger
    from edgewright.judging import judge

    started, folder = time.monotonic(), next(iter(finals.values())).parent
    sizes = {item.target: item.file_bytes for item in plan_targets(recipe, checkpoint.config, checkpoint.names())}
    quantized = pipeline.quantize(recipe, checkpoint, source, revision, folder / _QUANTIZED, progress, store)
    head = reports.Report(
        verdict="not validated",
        created=reports.now(),
        recipe=reports.RecipeUsed(
            name=recipe.name, digest=recipe.digest, file=recipe.origin.name if recipe.origin else None
        ),
        checkpoint=reports.CheckpointUsed(source=source, revision=revision),
        host=reports.host(),
        tools=pipeline.tool_versions(recipe.targets),
        targets=(),
        reused=("quantized weights",) if quantized.reused else (),
        warnings=tuple(_warnings(recipe, checkpoint, quantized)),
        seconds=0,
        folder=str(folder),
    )
    ledger = Ledger(head, started, {target: narrowed(whole, target).digest for target in target_options()}, quantized)

    alone = {target: narrowed(recipe, target) for target in finals}
    keys = {target: packages.key_of(one, target, quantized, checkpoint) for target, one in alone.items()}
    found = {target: store.find(packages.STAGE, keys[target], final) for target, final in finals.items()}
    pipeline.check(recipe, quantized, [target for target in finals if found[target] is None])
    manifests: dict[str, Manifest] = {}
    reused: dict[str, tuple[Reused, ...]] = {}
    for target, final in finals.items():
        known, said = found[target], _prefixed(progress, target, finals)
        manifest = packages.reuse(alone[target], known, final, quantized) if known else None
        reused[target] = ("package",) if manifest else ()
        room = sizes[target] + quantized.vector_bytes
        manifests[target] = manifest or packages.build(
            alone[target], target, keys[target], final, quantized, checkpoint, room, said
        )
        ledger.enter_built(final, manifests[target], reused[target])

    for target, final in finals.items() if validate else ():
        said, film = _prefixed(progress, target, finals), folder / f"{target}.mp4"
        judged = judge(recipe, final, manifests[target], phones, quantized.folder, film, store, said)
        ledger.enter(judged.model_copy(update={"reused": (*reused[target], *judged.reused)}))
    return ledger.report


def plan(
    recipe: Recipe | str | Path, *, targets: Sequence[str] = (), checkpoint: str | Path | None = None
) -> list[TargetPlan]:
    """Sizes of every target's package and of what it holds in memory, from the checkpoint's config alone.

    Reads no weights and downloads nothing: a Hub recipe names its config in `checkpoint.config`. Raises RecipeError
    and EdgewrightError.
    """
    recipe = _with_targets(load_recipe(recipe), targets)
    check_files(recipe)
    return plan_targets(recipe, _config(recipe, checkpoint))


def plan_fits(
    recipe: Recipe | str | Path,
    *,
    targets: Sequence[str] = (),
    profiles: Sequence[str] = (),
    checkpoint: str | Path | None = None,
) -> list[PlanFit]:
    """Whether each target of a plan fits each phone, by what it needs at the least; see `PlanFit`.

    `profiles` replace the recipe's, as in `run`. Raises RecipeError and EdgewrightError.
    """
    from edgewright.fit import fits

    recipe = _with_targets(load_recipe(recipe), targets)
    config = _config(recipe, checkpoint)
    return fits(recipe, config, plan_targets(recipe, config), _phones(recipe, profiles))


def plan_warnings(recipe: Recipe | str | Path, *, checkpoint: str | Path | None = None) -> list[str]:
    """What a run would warn of and can be seen without a weight: all of it where the checkpoint is a folder on this
    machine, else what the config that stands for it says of its licence."""
    recipe = load_recipe(recipe)
    config, folder = _config(recipe, checkpoint), _local(recipe, checkpoint)
    model = read_model(config, None, recipe.context.max_tokens, recipe.vision)
    if folder is None:
        licence = licence_warning(licence_in(config)) if "license" in config else None
        return list(filter(None, [licence, pace(model.constants)]))
    return [*_warnings_beside(folder), *driver_of(model).warnings(model, folder)]


def validate(artifact: str | Path, *, profiles: Sequence[str] = (), progress: Progress = silent) -> TargetReport:
    """Test an artifact: its digests, parity with its golden vectors in the real runtime, memory on each phone profile.

    Quality against the unquantized checkpoint is reported without limits: those belong to a recipe. Phones are judged
    by their own limits. The outcome is written into the artifact's manifest, beside that of a run by a recipe's limits.
    Raises EdgewrightError for a damaged artifact, MissingTool for a runtime that is not installed.
    """
    from edgewright import standing
    from edgewright.report import target_report
    from runtime_tests.validate import Limits
    from runtime_tests.validate import validate as validate_artifact

    folder = user_path(artifact, "ARTIFACT")
    phones = [(load_profile(str(user_path(name, "--profile"))), Limits()) for name in _named(profiles)]
    manifest = read_manifest(folder)
    found = target_report(folder, manifest, validate_artifact(folder, phones, progress=progress))
    return standing.record(folder, manifest, found, None)


def load_recipe(recipe: Recipe | str | Path) -> Recipe:
    """A recipe as it is, or read from a path or by the name of one that ships. Raises RecipeError."""
    if isinstance(recipe, Recipe):
        return recipe
    user_path(recipe, "RECIPE")
    return recipe_type().load(recipe)


def narrowed(recipe: Recipe, target: str) -> Recipe:
    """The recipe with one target alone, which may be one that it does not name: all that this target's package is of.

    Its digest is the same whatever else is built beside it.
    """
    options = recipe.targets.get(target) or target_options()[target]()
    return recipe.model_copy(update={"targets": {target: options}})


def _with_targets(recipe: Recipe, names: Sequence[str]) -> Recipe:
    if not names:
        return recipe
    known = target_options()
    for name in names:
        if name not in known:
            raise EdgewrightError(f"there is no target {name!r}{nearest(name, known)}")
    chosen = {name: narrowed(recipe, name).targets[name] for name in _distinct(names)}
    return recipe.model_copy(update={"targets": chosen})


def _phones(recipe: Recipe, names: Sequence[str]) -> list[tuple[Profile, Limits]]:
    from runtime_tests.validate import Limits

    asked = recipe.validation.profiles
    phones: list[tuple[Profile, Limits]] = []
    for name in _named(names) or list(asked):
        own = asked.get(name)
        is_path = name.endswith((".yaml", ".yml"))
        if name in names:
            user_path(name, "--profile")
        profile = load_profile(recipe.resolve(name) if is_path and name not in names else name)
        phones.append((profile, Limits(**own.model_dump()) if own else Limits()))
    return phones


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

    yield from _warnings_beside(checkpoint.path)
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


def _warnings_beside(folder: Path) -> Iterator[str]:
    """What lies beside a checkpoint's weights, or does not."""
    yield from filter(None, [licence_warning(licence_of(folder)), adapter_beside(folder)])


def _config(recipe: Recipe, override: str | Path | None) -> Mapping[str, Any]:
    wanted, folder = recipe.checkpoint, _local(recipe, override)
    if folder is not None:
        return read_config(folder)
    if wanted.config is None:
        raise EdgewrightError(
            f"{recipe.name}: a plan needs the checkpoint's config.json; name it in checkpoint.config, "
            "or give a local copy with --checkpoint PATH"
        )
    return read_config_file(recipe.resolve(wanted.config))


def _local(recipe: Recipe, override: str | Path | None) -> Path | None:
    """The checkpoint's folder where it is one on this machine; None where a config stands for it until it is."""
    if override is not None:
        return user_path(override, "--checkpoint")
    wanted = recipe.checkpoint
    folder = None if wanted.path is None else recipe.resolve(wanted.path)
    return None if folder is None or (wanted.config is not None and not folder.exists()) else folder


def read_config_file(path: Path) -> dict[str, Any]:
    """A config.json under any name. Raises EdgewrightError."""
    try:
        return read_json(path)
    except DocumentError as error:
        raise EdgewrightError(f"{error}; checkpoint.config names it") from error


def _prefixed(progress: Progress, target: str, targets: Mapping[str, Path]) -> Progress:
    if len(targets) == 1:
        return progress
    return lambda stage, done, total: progress(f"{target}: {stage}", done, total)


def _named(profiles: Sequence[str]) -> list[str]:
    """Each once; "all" stands for those that ship."""
    return _distinct([one for name in profiles for one in (list_profiles() if name == ALL_PROFILES else [name])])


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
