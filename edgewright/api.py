"""What the command line does, as functions: `run`, `plan` and `validate`.

What lives here: the order of things, and the one place where recipes, compiler, runtime tests and phones meet. It
discovers the targets and quantization methods, composes the recipe schema from their options, and gives each room
its part. What must not: how anything is shown, and any work of the rooms themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import (
    EdgewrightError,
    Progress,
    read_manifest,
    silent,
    temporary_place,
    user_path,
)
from artifacts.documents import DocumentError, read_json
from artifacts.formats.frames import pace
from compiler.config import read_config
from compiler.drivers import driver_of
from compiler.licence import licence_in, licence_warning
from compiler.models.base import read_model
from compiler.plan import TargetPlan, check_files
from compiler.plan import plan as plan_targets
from compiler.quantize.methods import method_options
from compiler.targets import target_options
from compiler.targets.onnx import prepack
from device_farm import Profile, list_profiles, load_profile
from edgewright import arm64_packing
from edgewright.steps import Run, local_checkpoint, narrowed, warnings_beside
from recipes.errors import nearest
from recipes.schema import Recipe, recipe_model

if TYPE_CHECKING:
    from edgewright.fit import PlanFit
    from edgewright.report import Report, TargetReport
    from runtime_tests.validate import Limits

DEFAULT_OUT = "build"
prepack.SAVERS.update(arm64_packing.savers())
ALL_PROFILES = "all"


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
    asked = opened(
        recipe, out=out, targets=targets, profiles=profiles, checkpoint=checkpoint, validate=validate, fresh=fresh
    )
    with asked.held(progress):
        return asked.asked.unchanged() or asked.everything(progress)


def opened(
    recipe: Recipe | str | Path,
    *,
    out: str | Path,
    targets: Sequence[str],
    profiles: Sequence[str],
    checkpoint: str | Path | None,
    validate: bool,
    fresh: bool,
    since: float = 0,
) -> Run:
    """A run before its first step; the arguments are those of `run`, and `since` that of `Store`. Raises as `run`."""
    temporary_place()  # asked for when frameworks are imported (by dill, where it is installed), in their own words
    whole = load_recipe(recipe)
    chosen = with_targets(whole, targets)
    phones = _phones(chosen, profiles)
    return Run(whole, chosen, phones, out=out, checkpoint=checkpoint, validate=validate, fresh=fresh, since=since)


def plan(
    recipe: Recipe | str | Path, *, targets: Sequence[str] = (), checkpoint: str | Path | None = None
) -> list[TargetPlan]:
    """Sizes of every target's package and of what it holds in memory, from the checkpoint's config alone.

    Reads no weights and downloads nothing: a Hub recipe names its config in `checkpoint.config`. Raises RecipeError
    and EdgewrightError.
    """
    recipe = with_targets(load_recipe(recipe), targets)
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

    recipe = with_targets(load_recipe(recipe), targets)
    config = _config(recipe, checkpoint)
    return fits(recipe, config, plan_targets(recipe, config), _phones(recipe, profiles))


def plan_warnings(recipe: Recipe | str | Path, *, checkpoint: str | Path | None = None) -> list[str]:
    """What a run would warn of and can be seen without a weight: all of it where the checkpoint is a folder on this
    machine, else what the config that stands for it says of its licence."""
    recipe = load_recipe(recipe)
    config, folder = _config(recipe, checkpoint), local_checkpoint(recipe, checkpoint)
    model = read_model(config, None, recipe.context.max_tokens, recipe.vision)
    if folder is None:
        licence = licence_warning(licence_in(config)) if "license" in config else None
        return list(filter(None, [licence, pace(model.constants)]))
    return [*warnings_beside(folder), *driver_of(model).warnings(model, folder)]


def validate(
    artifact: str | Path,
    *,
    profiles: Sequence[str] = (),
    arm64: bool = False,
    device: str | None = None,
    progress: Progress = silent,
) -> TargetReport:
    """Test an artifact: its digests, parity with its golden vectors in the real runtime, memory on each phone profile.

    Quality against the unquantized checkpoint is reported without limits: those belong to a recipe. Phones are judged
    by their own limits. arm64: also compare its answers in the ARM64 tier, on the CPUs of these phones (without any: on
    all that are told apart). device: an attached Android phone to run it on too, by its serial number. The outcome is
    written into the artifact's manifest, beside that of a run by a recipe's limits.
    Raises EdgewrightError for a damaged artifact, MissingTool for a runtime that is not installed.
    """
    from device_farm.arm64 import cpus_of
    from edgewright import standing
    from edgewright.report import target_report
    from runtime_tests.validate import Limits
    from runtime_tests.validate import validate as validate_artifact

    folder = user_path(artifact, "ARTIFACT")
    phones = [(load_profile(str(user_path(name, "--profile"))), Limits()) for name in _named(profiles)]
    manifest = read_manifest(folder)
    cpus = cpus_of(phone.cpu.isa.value for phone, _ in phones) if arm64 else []
    found = target_report(
        folder, manifest, validate_artifact(folder, phones, arm64=cpus, device=device, progress=progress)
    )
    return standing.record(folder, manifest, found, None)


def load_recipe(recipe: Recipe | str | Path) -> Recipe:
    """A recipe as it is, or read from a path or by the name of one that ships. Raises RecipeError."""
    if isinstance(recipe, Recipe):
        return recipe
    user_path(recipe, "RECIPE")
    return recipe_type().load(recipe)


def with_targets(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """A recipe with these targets instead of its own, which stay where there are none. Raises EdgewrightError."""
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


def _config(recipe: Recipe, override: str | Path | None) -> Mapping[str, Any]:
    wanted, folder = recipe.checkpoint, local_checkpoint(recipe, override)
    if folder is not None:
        return read_config(folder)
    if wanted.config is None:
        raise EdgewrightError(
            f"{recipe.name}: a plan needs the checkpoint's config.json; name it in checkpoint.config, "
            "or give a local copy with --checkpoint PATH"
        )
    return read_config_file(recipe.resolve(wanted.config))


def read_config_file(path: Path) -> dict[str, Any]:
    """A config.json under any name. Raises EdgewrightError."""
    try:
        return read_json(path)
    except DocumentError as error:
        raise EdgewrightError(f"{error}; checkpoint.config names it") from error


def _named(profiles: Sequence[str]) -> list[str]:
    """Each once; "all" stands for those that ship."""
    return _distinct([one for name in profiles for one in (list_profiles() if name == ALL_PROFILES else [name])])


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
